"""What the rows of `hilo bench speed` say: medians in tables, and cost curves as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from ...methods import HiLo
from ..measure.memory import MemoryRow
from ..measure.speed import Case, SpeedRow
from ..results.readings import (
    DENSE,
    Frame,
    grouped,
)
from .plots import pyplot, save_plot

SIZES = (256, 512, 768, 1024, 1536, 2048)
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
# What could be saved at most: no token runs but those the mask touches.
LIMIT = "mask alone"
LIMIT_METHOD = HiLo(dilate=0, detail=0, coarse=0, bucket=1)


def speed_table(rows: Sequence[SpeedRow]) -> Table:
    """Medians over the repeats; after a ratio its least and greatest."""
    return _table(
        rows,
        {
            "tokens": lambda group: "{tokens_run}/{tokens_full}".format(**group.iloc[0]),
            "DiT s": lambda group: f"{group['dit_seconds'].median():.2f}",
            "DiT faster": lambda group: _ratio(group, "dit_speedup"),
            "FLOPs": lambda group: _ratio(group, "flop_ratio", spread=False),
            "realised": lambda group: f"{group['realised'].median():.0%}",
            "edit faster": lambda group: _ratio(group, "speedup"),
        },
    )


def parts_table(rows: Sequence[SpeedRow]) -> Table:
    """Where time and memory go, medians; graphs compiled until the warm-up's end, and after."""
    columns = {
        "DiT least": lambda group: f"{group['dit_seconds'].min():.2f}",
        "edit s": lambda group: f"{group['total_seconds'].median():.2f}",
        "VAE s": lambda group: f"{group['vae_seconds'].median():.2f}",
        "encoded": lambda group: f"{group['encoded'].median():.0%}",
        "decoded": lambda group: f"{group['decoded'].median():.0%}",
        "rest s": lambda group: f"{group['rest_seconds'].median():.2f}",
        "plan ms": lambda group: f"{1000 * group['plan_seconds'].median():.1f}",
        "of DiT": lambda group: f"{group['plan_share'].median():.2%}",
    }
    if rows[0].peak_gib is not None:
        columns["peak GiB"] = lambda group: f"{group['peak_gib'].median():.1f}"
    if rows[0].processor_seconds is not None:
        columns["CPU time"] = lambda group: _ratio(group, "processor_speedup")
        columns["edit's"] = lambda group: _ratio(group, "edit_processor_speedup")
    if rows[-1].warm_graphs:
        columns["graphs"] = lambda group: "{warm_graphs} + {new_graphs}".format(**group.iloc[-1])
    return _table(rows, columns)


def _table(rows: Sequence[SpeedRow], columns: dict[str, Callable[[Frame], str]]) -> Table:
    frame = pd.DataFrame(rows)
    sized = frame["size"].nunique() > 1
    table = Table("mask", *["px"] * sized, "method", *columns, box=SIMPLE, padding=(0, 1, 0, 0))
    for (mask, size, method), group in grouped(frame, "mask_class", "size", "method").items():
        first = [str(mask), *[str(size)] * sized, str(method)]
        table.add_row(*first, *(say(group) for say in columns.values()))
    return table


def _ratio(group: Frame, name: str, spread: bool = True) -> str:
    if group["method"].iloc[0] == DENSE:
        return ""
    values = group[name]
    between = f" {values.min():.2f}-{values.max():.2f}" if spread and len(values) > 1 else ""
    return f"{values.median():.2f}x{between}"


def curve_cases(curve: str, first: Case) -> list[Case]:
    """Along `size`: the first case's mask, up to its size. Along `mask`: at its size.

    Raises:
        ValueError: another curve.
    """
    if curve == "size":
        sizes = sorted({size for size in SIZES if size < first.size} | {first.size})
        return [Case(first.mask_class, first.share, size) for size in sizes]
    if curve == "mask":
        return [Case(f"{share:.0%}", share, first.size) for share in SHARES]
    raise ValueError(f"unknown curve {curve!r}; choose from ['mask', 'size']")


def plot_curve(rows: Sequence[SpeedRow], curve: str, path: Path) -> None:
    """The DiT's seconds, of a CPU its CPU time: medians, shaded from the least to the greatest."""
    figure, axis = pyplot().subplots(figsize=(6, 4))
    frame, row = pd.DataFrame(rows), rows[0]
    frame["x"] = frame["size"] if curve == "size" else 100 * frame["mask_share"]
    clock_column = "processor_seconds" if row.processor_seconds else "dit_seconds"
    for method, group in grouped(frame, "method").items():
        seconds = group.groupby("x", sort=False)[clock_column]
        middle, style = seconds.median(), {DENSE: "k-o", LIMIT: "k--"}.get(method, "-o")
        (line,) = axis.plot(middle.index, middle, style, label=method, markersize=3)
        low, high = seconds.min(), seconds.max()
        axis.fill_between(middle.index, low, high, alpha=0.15, color=line.get_color())
    clock = "CPU seconds" if row.processor_seconds else "seconds"
    axis.set_ylabel(f"DiT, {clock}, {row.steps} step{'s' * (row.steps > 1)}")
    if curve == "size":
        sizes = sorted(frame["size"].unique())
        axis.set(xscale="log", yscale="log", xlabel="pixels a side")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set(ylim=(0, None), xlabel="mask, % of the picture")
    under = f"mask of {row.mask_share:.1%}" if curve == "size" else f"{row.size} px"
    axis.set_title(f"{row.arch} at scale {row.scale}, {row.dtype}, {under}", fontsize=10)
    axis.legend(fontsize=8)
    figure.tight_layout()
    save_plot(figure, path)


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """Peaks of predicted edits and the smallest card for each, in Markdown."""
    head = ["model", "pixels", "preset", "keys kept as", "tokens", "kept", "a step", "decoder"]
    head += ["all on the GPU", "model offload", "group offload"]
    lines = [head, ["---"] * 5 + ["--:"] * 6]
    for row in rows:
        places = (
            f"{peak:.1f} ({card} GB)" if card else f"{peak:.1f} (none)"
            for peak, card in (
                (row.all_gb, row.fits_all),
                (row.offload_gb, row.fits_offload),
                (row.group_gb, row.fits_group),
            )
        )
        tokens = f"{row.tokens_run} of {row.tokens_full}"
        parts = (f"{gb:.2f}" for gb in (row.kept_gb, row.step_gb, row.decode_gb))
        named = [row.model, str(row.size), row.preset, row.store, tokens]
        lines.append([*named, *parts, *places])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
