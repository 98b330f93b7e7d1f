"""Plots of what `hilo bench` measured. They need matplotlib, of the extra `bench`."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..results.readings import (
    CLASSICAL,
    DENSE,
    OPENCV,
    Figure,
    Frame,
    Readings,
    cost,
    figure,
    grouped,
    groups_of,
    with_best_classical,
)

_TIMES = (0.5, 1, 2, 4, 8, 16, 32)
MARKS = "osD^vP<>X*hp"
COSTS = {
    "tokens": "tokens run, % of dense",
    "flops": "FLOPs of the DiT, % of dense",
    "seconds": "seconds of the DiT, % of dense",
}
QUALITIES = {
    "lpips": "LPIPS to the truth, lower is better",
    "psnr_dense": "PSNR to dense, dB, higher is nearer",
}


def plot_quality(readings: Readings, labels: Mapping[str, str], kind: str = "tokens") -> Any:
    """Cost against quality in the mask: a panel a class, a mark a method, bars of 95 %.

    Dense is the line that a method must hold in the upper row; OpenCV, which runs no transformer,
    the dotted one. Against dense itself there is nothing but methods in the lower row.

    Args:
        labels: what a method is called, by its text
        kind: of `COSTS`

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an unknown kind of cost.
    """
    if kind not in COSTS:
        raise ValueError(f"unknown cost {kind!r}; choose from {list(COSTS)}")
    plt = pyplot()
    classes = groups_of(readings.rows)
    picture, axes = plt.subplots(
        2, len(classes), figsize=(1.5 + 3.6 * len(classes), 7.2), sharex=True, squeeze=False
    )
    names = [n for n in readings.rows["method"].unique() if n not in (DENSE, *CLASSICAL)]
    styles = {name: i for i, name in enumerate(names)}
    for column, (mask_class, methods) in enumerate(classes.items()):
        share = methods[DENSE]["mask_share"].mean()
        axes[0, column].set_title(f"{mask_class} masks, {share:.1%}", fontsize=10)
        for row, quality in enumerate(QUALITIES):
            _panel(axes[row, column], methods, quality, kind, styles, labels)
        axes[1, column].set_xlabel(COSTS[kind])
    axes[0, 0].set_xlim(left=0)  # of all panels, and last: it ends their fitting to what is drawn
    for row, said in enumerate(QUALITIES.values()):
        axes[row, 0].set_ylabel(said)
    lines, said = axes[0, 0].get_legend_handles_labels()
    picture.legend(lines, said, loc="lower center", ncols=min(3, len(said)), fontsize=8)
    picture.tight_layout(rect=(0, 0.03 + 0.025 * -(-len(said) // 3), 1, 1))
    return picture


def _panel(
    axis: Any,
    methods: Mapping[str, Frame],
    quality: str,
    kind: str,
    styles: Mapping[Any, int],
    labels: Mapping[str, str],
) -> None:
    dense = methods[DENSE]
    axis.grid(alpha=0.25)
    if quality == "lpips":
        _level(axis, figure(dense, quality), "k-", DENSE)
        if (classical := with_best_classical(methods).get(OPENCV)) is not None:
            _level(axis, figure(classical, quality), "k:", OPENCV, band=False)
    for name, group in methods.items():
        if name not in styles:
            continue
        x, y = cost(group, dense, kind), figure(group, quality)
        if x is None or y is None:
            continue
        percent = x.scaled(100)
        axis.errorbar(
            percent.mean,
            y.mean,
            xerr=_arms(percent),
            yerr=_arms(y),
            fmt=MARKS[styles[name] % len(MARKS)],
            color=f"C{styles[name] % 10}",
            markersize=5,
            elinewidth=1,
            label=labels.get(name, name),
        )


def _level(axis: Any, found: Figure | None, style: str, label: str, band: bool = True) -> None:
    if found is None:
        return
    axis.axhline(found.mean, ls=style[1:], color=style[0], lw=1, label=label)
    if band:
        axis.axhspan(found.low, found.high, color=style[0], alpha=0.06)


def _arms(found: Figure) -> list[list[float]]:
    """An interval as matplotlib wants it: how far it reaches below and above the mean."""
    return [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]


def plot_speed(readings: Readings, labels: Mapping[str, str]) -> Any:
    """How many times as fast the DiT is, against the share that the mask covers; a panel a set-up.

    Medians, with bars from the least to the greatest. The dotted line is what running the masked
    tokens alone would give if a token cost the same in sequences of any length.
    """
    plt = pyplot()
    keys = [name for name in ("arch", "dtype", "size") if name in readings.rows]
    setups = dict(iter(readings.rows.groupby(keys, sort=False)))
    picture, axes = plt.subplots(1, len(setups), figsize=(5 * len(setups), 4), squeeze=False)
    for axis, (setup, rows) in zip(axes[0], setups.items(), strict=True):
        for method, group in grouped(rows, "method").items():
            if method == DENSE:
                continue
            ratios = group.groupby("mask_share", sort=False)["dit_speedup"]
            middle = ratios.median()
            arms = [middle - ratios.min(), ratios.max() - middle]
            label = labels.get(method, method)
            axis.errorbar(100 * middle.index, middle, yerr=arms, fmt="-o", label=label)
        shares = np.sort(rows["mask_share"].unique())
        axis.plot(100 * shares, 1 / shares, "k:", label="mask alone, at a price a token")
        axis.set(yscale="log", xlabel="mask, % of the picture", ylabel="DiT, times as fast")
        axis.set_yticks(_TIMES, [f"{times}x" for times in _TIMES])
        axis.minorticks_off()
        words = [f"{v} px" if key == "size" else str(v) for key, v in zip(keys, setup, strict=True)]
        axis.set_title(", ".join(words), fontsize=10)
        axis.axhline(1, color="k", lw=1)
        axis.legend(fontsize=8)
    picture.tight_layout()
    return picture


def save_plot(picture: Any, path: Path) -> None:
    """Write a plot: the suffix says as what.

    Raises:
        ValueError: a suffix that matplotlib does not write.
    """
    known = picture.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise ValueError(f"a plot cannot be written as {path.name!r}: name a file .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)
    pyplot().close(picture)


def embedded(picture: Any) -> str:
    """A plot as the source of an <img>, with nothing outside the document; the plot is closed."""
    buffer = io.BytesIO()
    picture.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot().close(picture)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def pyplot() -> Any:
    """matplotlib, drawing into files.

    Raises:
        ImportError: it is not there; the message names the extra.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'hilotoken[bench]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "hilo"  # else the same plot differs from run to run
    return plt
