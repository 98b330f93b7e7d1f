"""Markdown tables of rows of every kind, as documents hold them."""

from collections.abc import Callable, Mapping, Sequence

from ..results.readings import (
    DENSE,
    FEWEST,
    TOO_FEW,
    Figure,
    Frame,
    Readings,
    Series,
    by_photo,
    difference,
    figure,
    grouped,
    groups_of,
    interval,
    verdict,
)
from .cells import Labels, markdown, spread
from .fill_tables import paired_table, quality_table, regions_table, sets_table


def labels_from(texts: Sequence[str]) -> dict[str, str]:
    """Labels by method, from texts `LABEL: METHOD`.

    Raises:
        ValueError: a text without the colon.
    """
    found = {}
    for text in texts:
        label, colon, method = text.partition(": ")
        if not colon:
            raise ValueError(f'a label is "LABEL: METHOD", got {text!r}')
        found[method.strip()] = label.strip()
    return found


def speed_table(readings: Readings, labels: Labels) -> str:
    """Of speeds: medians, and from the least to the greatest, a table for each set-up."""
    kinds = ("arch", "scale", "dtype", "size", "steps")
    setups = grouped(readings.rows, *(name for name in kinds if name in readings.rows))
    parts = []
    for (*words, size, steps), rows in setups.items():
        caption = ", ".join([*words, f"{size} px, {steps} steps"])
        parts.append(f"{caption}\n\n" * (len(setups) > 1) + _one_setup(rows, labels))
    return "\n".join(parts)


def _one_setup(rows: Frame, labels: Labels) -> str:
    names = [name for name in rows["method"].unique() if name != DENSE]
    several, lines = len(names) > 1, []
    for methods in groups_of(rows).values():
        for name in names:
            if name not in methods:
                continue
            group = methods[name]
            first = group.iloc[0]
            lines.append(
                [
                    f"{first['mask_share']:.2%}".replace("%", " %"),
                    *[labels.get(name, name)] * several,
                    f"{first['tokens_run']} of {first['tokens_full']}",
                    *(f"{g['dit_seconds'].median():.2f} s" for g in (methods[DENSE], group)),
                    f"{_times(group['dit_speedup'], '**')}",
                    _times(group["speedup"]),
                ]
            )
    mine = "DiT" if several else f"DiT, {labels.get(names[0], names[0])}"
    header = ["mask", *["method"] * several, "tokens run", "DiT, dense", mine]
    return markdown([*header, "DiT speed-up", "whole edit"], lines)


def _times(values: Series, around: str = "") -> str:
    middle = f"{around}{values.median():.2f}x{around}"
    return f"{middle} ({values.min():.2f} to {values.max():.2f})"


def ablate_table(readings: Readings, labels: Labels) -> str:
    """Of an ablation: every variant, all classes of masks together, and its difference from the
    default of its group; below, the best of each group."""
    lines, winners = [], []
    for group, rows in grouped(readings.rows, "group").items():
        variants = grouped(rows, "variant")
        default = next((n for n, some in variants.items() if some["default"].iloc[0]), None)
        if default is None:
            raise ValueError(f"{readings.path} holds no default of {group}: let the run go on")
        # Where context is reused, one call says nothing: the finished picture must.
        judge, sign = ("velocity", 1) if figure(rows, "velocity") else ("psnr_dense", -1)
        for name, some in variants.items():
            change = difference(some, variants[default], "velocity")
            lines.append(
                [
                    group if name == next(iter(variants)) else "",
                    labels.get(name, name) + " (default)" * (name == default),
                    f"{some['mean_tokens_run'].mean():.0f}",
                    _percent(figure(some, "velocity"), less=1),
                    "" if name == default else _percent(change),
                    spread(figure(some, "psnr_dense"), 1),
                    spread(figure(some, "lpips_over_dense"), 4),
                ]
            )
        if found := _winner(group, variants, default, judge, sign):
            winners.append(found)
    header = ["choice", "variant", "tokens", "velocity error over dense's, %"]
    header += ["less the default's, points", "PSNR to dense, dB", "LPIPS over dense's"]
    best = ["choice", "best", "by", "over the default", "the interval"]
    return f"{markdown(header, lines)}\n{markdown(best, winners)}"


def _percent(found: Figure | None, less: float = 0, digits: int = 2) -> str:
    return "" if found is None else spread(found.scaled(100, less), digits)


def _winner(
    group: str, variants: Mapping[str, Frame], default: str, judge: str, sign: int
) -> list[str] | None:
    """The variant of the best mean, and whether its interval tells it from the default."""
    figures = {name: figure(some, judge) for name, some in variants.items()}
    means = {name: found.mean for name, found in figures.items() if found}
    if default not in means:
        return None
    best = min(means, key=lambda name: sign * means[name])
    change = difference(variants[best], variants[default], judge)
    if best == default or change is None:
        return [group, best, judge, "it is the default", ""]
    apart = change.low > 0 or change.high < 0
    said = "leaves 0 out" if apart else "holds 0: no reason to change"
    if change.photos < FEWEST:
        said = f"of {change.photos} photographs: {TOO_FEW}"
    amount = spread(change, 2) + " dB" if sign < 0 else _percent(change) + " points"
    return [group, best, judge, amount, said]


def classify_table(readings: Readings, labels: Labels) -> str:
    """Of a classification: accuracy, what it loses on dense photo by photo, and how fast it is."""
    methods = grouped(readings.rows, "method")
    dense, lines = methods[DENSE], []
    times = by_photo(dense, "seconds")
    for name, rows in methods.items():
        accuracy = _percent(figure(rows, "correct"), digits=1)
        cells = [labels.get(name, name), str(len(by_photo(rows, "correct"))), accuracy]
        if name != DENSE:
            change = difference(rows, dense, "correct")
            mine = by_photo(rows, "seconds")
            faster = interval((times.reindex(mine.index) / mine).dropna())
            cells += [_percent(change, digits=1), verdict(change, lower_is_better=False)]
            cells += [spread(faster, 2)]
        lines.append([*cells, "", "", ""][:6])
    header = ["method", "photographs", "accuracy, %", "over dense's, points", "difference"]
    labelled = dense["labels"].iloc[0]
    chance = f"By chance {100 / labelled:.1f} %, of {labelled} labels.\n"
    return f"{markdown([*header, 'times as fast'], lines)}\n{chance}"


Part = Callable[[Readings, Labels], str]
PARTS: dict[str, dict[str, Part]] = {
    "fill": {"quality": quality_table, "paired": paired_table, "regions": regions_table},
    "sets": {"sets": sets_table},
    "speed": {"speed": speed_table},
    "ablate": {"ablate": ablate_table},
    "classify": {"classify": classify_table},
}


# Columns without which a part cannot be made: older rows do not have them.
NEEDED = {"regions": "ring_psnr"}


def parts_of(readings: Readings) -> list[str]:
    """The parts that these rows have the columns for."""
    parts = PARTS[readings.kind]
    return [part for part in parts if NEEDED.get(part, "method") in (*readings.rows, "method")]


def tables(readings: Readings, labels: Labels, part: str | None = None) -> str:
    """The tables of rows of this kind, or one of them, with an empty line between two.

    Raises:
        ValueError: a part that this kind does not have, or that these rows lack a column for.
    """
    parts = PARTS[readings.kind]
    if part is not None and part not in parts:
        raise ValueError(f"{readings.kind} rows have no part {part!r}; choose from {list(parts)}")
    if part is not None and part not in parts_of(readings):
        raise ValueError(
            f"{readings.path} has no column {NEEDED[part]}: its rows are of an earlier version; "
            "measure them anew, or choose from " + str(parts_of(readings))
        )
    chosen = parts_of(readings) if part is None else [part]
    return "\n".join(parts[name](readings, labels) for name in chosen)
