"""`hilo bench difficulty`: photographs that naive downsampling already solves, and the others.

After VTC-Bench (arXiv 2510.07143): where the whole edit at a lower resolution is as good as dense,
any way to save tokens will do, and only the rest tells methods apart. Which part a photograph
under a mask belongs to is settled by downsampling's rows, so that its own figures on the two parts
are chosen, not measured: those of the other methods are what to look at.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..results.readings import (
    CLASSICAL,
    DENSE,
    Frame,
    Readings,
    by_photo,
    difference,
    figure,
    groups_of,
    tokens,
    verdict,
)
from .cells import markdown, spread

MARGIN = 0.01
PARTS = {"solved": "downsampling solves", "open": "downsampling does not solve"}


@dataclass(frozen=True)
class Parts:
    """The rows of one class of masks on each part; `by` is the method that divided them."""

    by: str
    rows: dict[str, dict[str, Frame]]  # part, then method


def divided(readings: Readings, margin: float = MARGIN) -> dict[str, Parts]:
    """The rows of every class of masks, in two parts.

    A photograph under a mask is solved where downsampling's LPIPS in the mask is at most `margin`
    above dense's, both over its seeds on the mean.

    Raises:
        ValueError: no row is of downsampling, or none of dense; a margin below 0; rows of speeds.
    """
    if margin < 0:
        raise ValueError(f"margin must be 0 or more, got {margin}")
    if readings.kind != "fill":
        raise ValueError(f"{readings.path} holds rows of {readings.kind}: give those of fills")
    found = {}
    for mask_class, methods in groups_of(readings.rows).items():
        by = next((name for name in methods if name.split()[0] == "downsample"), None)
        if by is None or DENSE not in methods:
            raise ValueError(
                f"{readings.path} needs rows of downsample and of dense under {mask_class} masks: "
                f"hilo bench fill ... --method downsample; found {list(methods)}"
            )
        mine, theirs = (by_photo(methods[name], "lpips") for name in (by, DENSE))
        solved = mine <= theirs.reindex(mine.index, fill_value=0) + margin
        parts = {"solved": mine.index[solved], "open": mine.index[~solved]}
        rows = {
            part: {
                name: own
                for name, group in methods.items()
                if not (own := group[group["photo"].isin(photos)]).empty
            }
            for part, photos in parts.items()
        }
        found[mask_class] = Parts(by, rows)
    return found


def difficulty_table(readings: Readings, labels: Mapping[str, str], margin: float = MARGIN) -> str:
    """Every method on each part: tokens, LPIPS, and its difference from dense, in Markdown."""
    lines = []
    for mask_class, parts in divided(readings, margin).items():
        for part, methods in parts.rows.items():
            for i, (name, group) in enumerate(methods.items()):
                change = difference(group, methods[DENSE], "lpips")
                count = group["photo"].nunique()
                other = name not in (DENSE, parts.by)
                lines.append(
                    [
                        "" if i else mask_class,
                        "" if i else f"{PARTS[part]}: {count}",
                        labels.get(name, name),
                        "" if name in CLASSICAL else f"{tokens(group):.0f}",
                        spread(figure(group, "lpips"), 3),
                        "" if name == DENSE else spread(change, 4),
                        verdict(change) if other else "divides" * (name == parts.by),
                    ]
                )
    header = ["mask", "photographs", "method", "tokens", "LPIPS", "over dense's", "difference"]
    return markdown(header, lines)
