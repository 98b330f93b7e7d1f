"""What the rows of `hilo bench speed` say: medians in tables, and cost curves as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from rich.box import SIMPLE
from rich.table import Table

from ...methods import HiLo
from ..measure.speed import Case, SpeedRow
from ..results.rows import grouped

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
            "tokens": lambda group: f"{group[0].tokens_run}/{group[0].tokens_full}",
            "DiT s": lambda group: f"{_middle(group, 'dit_seconds'):.2f}",
            "DiT faster": lambda group: _ratio(group, "dit_speedup"),
            "FLOPs": lambda group: _ratio(group, "flop_ratio", spread=False),
            "realised": lambda group: f"{_middle(group, 'realised'):.0%}",
            "edit faster": lambda group: _ratio(group, "speedup"),
        },
    )


def parts_table(rows: Sequence[SpeedRow]) -> Table:
    """Where time and memory go, medians; graphs compiled until the warm-up's end, and after."""
    columns = {
        "DiT least": lambda group: f"{min(row.dit_seconds for row in group):.2f}",
        "edit s": lambda group: f"{_middle(group, 'total_seconds'):.2f}",
        "VAE s": lambda group: f"{_middle(group, 'vae_seconds'):.2f}",
        "rest s": lambda group: f"{_middle(group, 'rest_seconds'):.2f}",
        "plan ms": lambda group: f"{1000 * _middle(group, 'plan_seconds'):.1f}",
        "of DiT": lambda group: f"{_middle(group, 'plan_share'):.2%}",
    }
    if rows[0].peak_gib is not None:
        columns["peak GiB"] = lambda group: f"{_middle(group, 'peak_gib'):.1f}"
    if rows[0].processor_seconds is not None:
        columns["CPU time"] = lambda group: _ratio(group, "processor_speedup")
    if rows[-1].warm_graphs:
        columns["graphs"] = lambda group: f"{group[-1].warm_graphs} + {group[-1].new_graphs}"
    return _table(rows, columns)


def _table(rows: Sequence[SpeedRow], columns: dict[str, Callable[[list[SpeedRow]], str]]) -> Table:
    sized = len({row.size for row in rows}) > 1
    table = Table("mask", *["px"] * sized, "method", *columns, box=SIMPLE, padding=(0, 1, 0, 0))
    for (mask, size, method), group in grouped(rows, "mask_class", "size", "method").items():
        first = [str(mask), *[str(size)] * sized, str(method)]
        table.add_row(*first, *(say(group) for say in columns.values()))
    return table


def _middle(group: list[SpeedRow], name: str) -> float:
    return median(getattr(row, name) for row in group)


def _ratio(group: list[SpeedRow], name: str, spread: bool = True) -> str:
    if group[0].method == "dense":
        return ""
    values = [getattr(row, name) for row in group]
    between = f" {min(values):.2f}-{max(values):.2f}" if spread and len(values) > 1 else ""
    return f"{median(values):.2f}x{between}"


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axis = plt.subplots(figsize=(6, 4))
    for (method,), group in grouped(rows, "method").items():
        seconds: dict[float, list[float]] = {}
        for row in group:
            x = row.size if curve == "size" else 100 * row.mask_share
            seconds.setdefault(x, []).append(row.processor_seconds or row.dit_seconds)
        style = {"dense": "k-o", LIMIT: "k--"}.get(str(method), "-o")
        middle = [median(each) for each in seconds.values()]
        (line,) = axis.plot(list(seconds), middle, style, label=str(method), markersize=3)
        low, high = ([pick(each) for each in seconds.values()] for pick in (min, max))
        axis.fill_between(list(seconds), low, high, alpha=0.15, color=line.get_color())
    row = rows[0]
    clock = "CPU seconds" if row.processor_seconds else "seconds"
    axis.set_ylabel(f"DiT, {clock}, {row.steps} step{'s' * (row.steps > 1)}")
    if curve == "size":
        sizes = sorted({row.size for row in rows})
        axis.set(xscale="log", yscale="log", xlabel="pixels a side")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set(ylim=(0, None), xlabel="mask, % of the picture")
    under = f"mask of {row.mask_share:.1%}" if curve == "size" else f"{row.size} px"
    axis.set_title(f"{row.arch} at scale {row.scale}, {row.dtype}, {under}", fontsize=10)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
