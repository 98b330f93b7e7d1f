"""`hilo bench report`: rows of measurements as one HTML file that needs nothing beside it."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..results.readings import (
    CLASSICAL,
    COSTS,
    DENSE,
    KINDS,
    Readings,
    cost,
    difference,
    figure,
    groups_of,
    verdict,
)
from ..results.rows import ORIGIN
from .cells import markdown, signed, spread
from .fill_tables import called
from .markdown import parts_of, tables
from .plots import embedded, plot_quality, plot_speed

try:
    from jinja2 import Environment, PackageLoader
    from markdown_it import MarkdownIt
    from markupsafe import Markup
except ImportError as error:
    raise ImportError(
        "reports need jinja2 and markdown-it-py: pip install 'hilotoken[bench]'"
    ) from error

_TITLES = {"fill": "Quality of fills", "speed": "Speed"}
_TITLES |= {"sets": "Sets of fills", "ablate": "Ablation", "classify": "Classification"}
_ABOUT = {
    "fill": "Means over photographs of what is in the mask, with 95 % bootstrap intervals over "
    "photographs; differences are paired, photograph by photograph. Distance from the truth "
    "favours copying and blur: a plausible fill that differs from what was hidden counts as wrong. "
    "Gradient energy tells blur from detail, whatever the detail: 100 % is as much as the truth "
    "has, and noise has more. Distance from dense says what compression changes, not whether it "
    "is worse. Around the mask (16 px) and outside it, the raw picture is compared, before the "
    "photo's own pixels are put back.",
    "sets": "How far the fills of a method lie, as a set, from the set of truths: the unbiased "
    "squared kernel distance of KID, on AlexNet features of LPIPS pooled over the mask. "
    "Comparable within this table alone.",
    "speed": "Dense and compressed edits in turn; medians, and in brackets the least and the "
    "greatest. Ratios are within one round.",
    "ablate": "Variants of HiLo at equal token counts within each group. The velocity error is of "
    "one call of the transformer at fixed noise, in the mask, over the dense one's.",
    "classify": "What is on a photograph, by the label whose velocity is nearest to the truth. The "
    "whole photograph is hidden, and noise is the same for all labels.",
}
# Not figures but what a row is of, or figures that have a table of their own.
_IDENTITY = {"mask_share", "seed", "tokens_full", "tokens_run", "lpips", "psnr", "psnr_dense"}
_IN_TABLES = {"size", "steps", "flop_share", "ssim", "ssim_dense", "sharpness", "outside_psnr"}
_IN_TABLES |= {"ring_psnr", "ring_ssim", "ring_lpips", "ring_psnr_dense"}
_IN_TABLES |= {"step", "step_photo", "colour", "colour_photo"}


def html_report(
    readings: Sequence[Readings], labels: Mapping[str, str], pictures: Sequence[Path] = ()
) -> str:
    """The report of several CSVs, a section each: plots, wins and losses, tables, origin.

    Args:
        labels: what a method is called, by its name
        pictures: files that are shown first

    Raises:
        ImportError: the extra `bench` is not installed.
        OSError: a picture cannot be read, or is none.
    """
    folder = PackageLoader(__package__ or "", ".")
    pages = Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("report.html.jinja").render(
        pictures=[(path.stem, _source(path)) for path in pictures],
        sections=[_section(each, labels) for each in readings],
    )


def _section(readings: Readings, labels: Mapping[str, str]) -> dict[str, Any]:
    fills = readings.kind == "fill"
    shown = {part: tables(readings, labels, part) for part in parts_of(readings)}
    if fills and (others := _others(readings)):
        shown["other figures"] = _other_table(readings, labels, others)
    return {
        "title": _TITLES[readings.kind],
        "file": readings.path.name,
        "count": len(readings.rows),
        "about": _ABOUT[readings.kind],
        "origin": readings.origin,
        "plots": [(alt, embedded(plot)) for alt, plot in _plots(readings, labels)],
        "outcomes": _outcomes(readings, labels) if fills else [],
        "tables": {name.capitalize(): _html(text) for name, text in shown.items()},
    }


def _plots(readings: Readings, labels: Mapping[str, str]) -> list[tuple[str, Any]]:
    if readings.kind == "speed":
        return [("speed-up of the DiT by mask", plot_speed(readings, labels))]
    if readings.kind != "fill":
        return []
    kinds = [kind for kind in COSTS if kind != "flops" or "flop_share" in readings.rows]
    return [(f"quality against {k}", plot_quality(readings, labels, k)) for k in kinds]


def _outcomes(readings: Readings, labels: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """Every method in every class: its cost, and whether a loss shows, a gain or neither."""
    lines = []
    for mask_class, methods in groups_of(readings.rows).items():
        dense = methods.pop(DENSE)
        for name, group in methods.items():
            share = None if name in CLASSICAL else cost(group, dense, "tokens")
            changes = []
            for column, digits in (("lpips", 4), ("psnr", 2)):
                change = difference(group, dense, column)
                word = verdict(change, lower_is_better=column == "lpips")
                changes.append((signed(change, digits), word))
            tokens = f"{share.mean:.0%}" if share else ""
            lines.append((mask_class, called(group, labels), tokens, changes))
    return lines


def _others(readings: Readings) -> list[str]:
    """Columns of numbers that the fixed tables leave out, such as those of later versions."""
    left_out = {*ORIGIN, *_IDENTITY, *KINDS["fill"]}
    if "regions" in parts_of(readings):
        left_out |= _IN_TABLES
    numbers = readings.rows.select_dtypes("number").dropna(axis=1, how="all")
    return [name for name in numbers if name not in left_out]


def _other_table(readings: Readings, labels: Mapping[str, str], names: Sequence[str]) -> str:
    lines = [
        [mask_class, called(group, labels), *(spread(figure(group, n), 4) for n in names)]
        for mask_class, methods in groups_of(readings.rows).items()
        for group in methods.values()
    ]
    return markdown(["mask", "method", *names], lines)


def _source(path: Path) -> str:
    """A picture as it is in its file, as the source of an <img>."""
    with Image.open(path) as picture:
        kind = Image.MIME[picture.format or ""]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _html(text: str) -> Markup:
    """The tables as HTML: what is HTML in a name stays text."""
    return Markup(MarkdownIt("js-default").render(text))
