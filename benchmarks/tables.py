"""Tables of the documents whose rows `hilo bench table` does not read.

    python -m benchmarks.tables NAME

A document holds such a table between `<!-- python -m benchmarks.tables NAME -->` and
`<!-- end -->`. A test fails where it differs from the committed rows.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from benchmarks.context.robust import table as robust_table
from hilotoken.bench.results.readings import (
    Figure,
    by_photo,
    groups_of,
    interval,
    read_rows,
    with_best_classical,
)
from hilotoken.bench.show.cells import markdown, signed, spread
from hilotoken.bench.show.tables import memory_table

RESULTS = Path(__file__).parent / "results"
ROBUST = Path(__file__).parent / "context/results/robust.csv"
KINDS = ("edit_", "")  # of columns: of the edit, of the fill in it
MASKS = {"small": "small, 6.4 %", "medium": "medium, 15.9 %", "large": "large, 35.4 %"}
# What the whole edit was wanted to gain, set beforehand, by mask and preset.
WANTED = {
    ("small", "paper"): 2.8, ("small", "fast"): 3.5, ("medium", "paper"): 2.0,
    ("medium", "fast"): 2.5, ("large", "paper"): 1.35, ("large", "fast"): 1.5,
}  # fmt: skip


def _rows(name: str) -> Any:
    return pd.read_csv(RESULTS / name)


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _times(values: Iterable[float]) -> str:
    """The median in bold, and of several the least and the greatest."""
    all_ = pd.Series(list(values))
    middle = f"**{all_.median():.2f}x**"
    return middle if len(all_) == 1 else f"{middle} ({all_.min():.2f} to {all_.max():.2f})"


def methods() -> str:
    """What methods inside blocks save, and what their matching costs."""
    stage = "`sdtm`, {} stage, first step (0.5 removed)"
    lines: dict[str, list[str]] = {}
    for row in _rows("methods_speed.csv").itertuples():
        name = f"`{row.method}`"
        if row.method.startswith("sdtm"):
            name = stage.format("structure" if "structure=1" in row.method else "detail")
        lines.setdefault(name, [name]).extend(
            [f"{row.flop_ratio:.2f}x", f"**{row.speedup:.2f}x**", _percent(row.match_share, 1)]
        )
    header = ["", "1024: FLOPs", "realised", "matching", "4096: FLOPs", "realised", "matching"]
    return markdown(header, list(lines.values()))


def _by_mask(name: str, **where: str) -> dict[tuple[str, str], Any]:
    """Rows of `hilo bench speed` but for dense's, by class of mask and method."""
    rows = _rows(name)
    for column, value in where.items():
        rows = rows[rows[column] == value]
    found = rows[rows["method"] != "dense"].groupby(["mask_class", "method"], sort=False)
    return dict(iter(found))


def processor() -> str:
    """A narrow FLUX on a busy CPU, by CPU time and by the clock."""
    lines = []
    for (mask, _), rows in _by_mask("speed_flux-fill_cpu.csv", scale="tiny").items():
        first, clock, plan = rows.iloc[0], rows["dit_speedup"], rows["plan_share"]
        own = rows["processor_speedup"]
        lines.append([
            MASKS[mask], f"{first.tokens_run} of {first.tokens_full}", f"{first.flop_ratio:.2f}x",
            _times(own), _percent(own.median() / first.flop_ratio),
            f"{clock.min():.2f}x to {clock.max():.2f}x",
            f"{100 * plan.min():.2f} to {_percent(plan.max(), 2)}",
        ])  # fmt: skip
    header = ["mask", "tokens run", "FLOPs, counted", "DiT by CPU time", "of the FLOP ratio"]
    return markdown([*header, "DiT by the clock", "planning, of dense DiT"], lines)


def true_width() -> str:
    """A shallow FLUX of the true width, by the clock."""
    lines = []
    for (mask, _), rows in _by_mask("speed_flux-fill_cpu.csv", scale="small").items():
        one = rows.iloc[0]
        lines.append([
            MASKS[mask], f"{one.tokens_run} of {one.tokens_full}", f"{one.flop_ratio:.2f}x",
            _times(rows["dit_speedup"]), _percent(one.realised),
        ])  # fmt: skip
    header = ["mask", "tokens run", "FLOPs, counted", "DiT by the clock", "of the FLOP ratio"]
    return markdown(header, lines)


def presets() -> str:
    """The whole edit, autoencoder included, by CPU time."""
    lines = []
    for (mask, preset), rows in _by_mask("speed_presets_cpu.csv").items():
        first = rows.iloc[0]
        lines.append([
            MASKS[mask], f"`{preset}`", f"{len(rows)}", f"{rows.processor_speedup.median():.2f}x",
            _times(rows["edit_processor_speedup"]), f"{WANTED[mask, preset]}x",
            _percent(first.encoded), _percent(first.decoded),
        ])  # fmt: skip
    header = ["mask", "preset", "rounds", "DiT", "whole edit", "wanted", "encoded", "decoded"]
    return markdown(header, lines)


def load() -> str:
    """The service under load."""
    runs = pd.read_json(RESULTS / "serve_load_cpu.jsonl", lines=True).to_dict("records")
    whole: dict[str, Callable[[dict[str, Any]], str]] = {
        "workers killed": lambda run: f"{run['workers killed']}",
        "edited, the outside bit for bit": lambda run: (
            f"{run['edited, its outside bit for bit']:,}"
        ),
        "malformed, refused with 4xx": lambda run: f"{run['malformed, refused']}",
        "cancelled by the client": lambda run: f"{run['cancelled by the client']}",
        "lost, mixed up, or answered without a way on": lambda run: f"**{run['faults']}**",
        "told to come again (429), and did": lambda run: (
            f"{run['asked to come again (429)']:,} times"
        ),
        "median, 95th percentile, retries included": lambda run: (
            f"{run['median_seconds']:.2f} s, {run['p95_seconds']:.2f} s"
        ),
        "memory of the service, early and late": lambda run: (
            f"{run['memory_early_mb']:.0f} MB, {run['memory_late_mb']:.0f} MB"
        ),
    }
    header = [
        f"{run['requests']:,} requests, {run['together']} run at once, {run['kept_mb']} MB kept"
        for run in runs
    ]
    return markdown(["", *header], [[name, *map(of, runs)] for name, of in whole.items()])


def nodes() -> str:
    """The ComfyUI nodes in its sampler."""
    rows = _rows("comfyui_cpu.csv")
    dense = rows[rows["name"] == "dense"].set_index("round")["cpu_seconds"]
    lines = []
    for name, own in rows.groupby("name", sort=False):
        ratio = dense / own.set_index("round")["cpu_seconds"]
        faster = f"**{ratio.median():.1f}** ({ratio.min():.1f} to {ratio.max():.1f})"
        seconds = f"{own['cpu_seconds'].median():.2f} s"
        lines.append([name, f"{own['tokens_run'].iloc[0]}", seconds, faster * (name != "dense")])
    header = ["", "tokens run", "sampler", "times faster than dense (least to most)"]
    return markdown(header, lines)


def overhead() -> str:
    """Host time of what is put around and inside the transformer."""
    rows = _rows("overhead.csv")
    lines = [
        [
            row.what if row.what.startswith(("the ", "attention")) else f"`{row.what}`",
            f"{row.median_us:.0f} ({row.lower_us:.0f} to {row.upper_us:.0f})",
        ]
        for row in rows[rows["source"] == "after"].itertuples()
    ]
    return markdown(["what", "microseconds a call"], lines)


def together() -> str:
    """Photos in one call of the pipeline, beside each by itself."""
    rows = _rows("together_cpu.csv")
    lines = []
    for (preset, masks), own in rows.groupby(["preset", "masks"], sort=False):
        middle = own.groupby("together")["cpu_seconds"].median()
        cells = [f"{seconds:.1f}" for seconds in middle]
        lines.append([f"{preset}, {masks} mask{'s' * (masks == 'own')}", *cells])
    return markdown(["", "one by one", "two in a call", "four in a call"], lines)


def command() -> str:
    """What `hilo edit` costs around the edit."""
    parts = ["start", "load", "edit", "write", "end", "around"]
    rows = _rows("command_cpu.csv")
    found = rows[rows["source"] == "after"].groupby("libraries", sort=False)[parts].median()
    lines = [
        [libraries, *(f"{row[part]:.2f}" for part in parts[:-1]), f"{row['around']:.1f}"]
        for libraries, row in found.iterrows()
    ]
    return markdown(["", *parts[:-1], "around the edit"], lines)


def imports() -> str:
    """What importing libraries costs, each after those above it."""
    rows = _rows("imports_cpu.csv")
    found = rows.groupby("library", sort=False)["seconds"].median()
    lines = [[f"`{name}`", f"{seconds:.2f}"] for name, seconds in found.items()]
    return markdown(["", "CPU s"], [*lines, ["in all", f"{found.sum():.2f}"]])


def _ratio(ours: Any, theirs: Any) -> Figure:
    """A mean over another, with the 95 % bootstrap interval over photographs."""
    both = np.stack([ours, theirs.reindex(ours.index)])
    drawn = both[:, np.random.default_rng(0).integers(both.shape[1], size=(2000, both.shape[1]))]
    over, under = drawn.mean(-1)
    low, high = np.percentile(over / under, [2.5, 97.5])
    return Figure(float(both[0].mean() / both[1].mean()), float(low), float(high), both.shape[1])


def opencv() -> str:
    """The embedded model's dense edits and fills over OpenCV's, beside the bars that were set."""
    lines = []
    for mask, rows in groups_of(read_rows(RESULTS / "fill_embedded_cpu.csv").rows).items():
        best, dense = next(iter(with_best_classical(rows).values())), rows["dense"]
        ratios = [
            _ratio(by_photo(dense, f"{kind}lpips"), by_photo(best, "lpips")) for kind in KINDS
        ]
        gained = [
            by_photo(dense, f"{kind}psnr").mean() - by_photo(best, "psnr").mean() for kind in KINDS
        ]
        seam = [dense[name].sum() / dense[f"{name}_photo"].sum() for name in ("step", "colour")]
        lines.append([
            mask, *(spread(one, 3) for one in ratios), "0.75",
            ", ".join(f"{round(gain, 1) + 0.0:+.1f}" for gain in gained) + " dB", "-2 dB",
            ", ".join(f"{one:.2f}" for one in seam), "2",
        ])  # fmt: skip
    header = ["mask", "LPIPS over OpenCV's: the edit, dense", "the fill, dense", "bar"]
    header += ["PSNR over OpenCV's: the edit, the fill", "bar", "seam: step, mean colour", "bar"]
    return markdown(header, lines)


def around() -> str:
    """Fills that are shown what lies around their region, less fills of the region alone."""
    rows = _rows("beyond_crop_cpu.csv")
    ways = dict(iter(rows.groupby("shown", sort=False)))
    alone = ways.pop("region alone").set_index("photo")
    figures = {"psnr": 1, "lpips": 3, "texture": 1}
    means = [f"{alone[name].mean():.{digits}f}" for name, digits in figures.items()]
    lines = [["the region alone", "0", *means, ""]]
    for name, way in ways.items():
        less = way.set_index("photo")[list(figures)] - alone[list(figures)]
        cells = [signed(interval(less[figure]), digits) for figure, digits in figures.items()]
        nearer = f"{(less['lpips'] < 0).sum()} of {len(less)}"
        lines.append([str(name), f"{way['coarse'].iloc[0]}", *cells, nearer])
    header = ["shown", "coarse tokens", "PSNR, dB", "LPIPS", "texture, log2", "nearer by LPIPS"]
    return markdown(header, lines)


def memory() -> str:
    """What an edit at full size takes on a GPU, predicted."""
    rows = _rows("memory.csv")
    fits = [name for name in rows if name.startswith("fits_")]
    rows[fits] = rows[fits].fillna(0).astype(int)  # 0: no card
    return memory_table(list(rows.itertuples()))


def robust() -> str:
    """The context-bound model without the adapter and with it."""
    return robust_table(ROBUST) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        *(methods, processor, true_width, presets, load, nodes, overhead, command, imports, opencv),
        *(around, memory, robust, together),
    )
}


def main(name: Annotated[str, typer.Argument(help=f"One of {', '.join(TABLES)}.")]) -> None:
    """Print a table as its document holds it."""
    if name not in TABLES:
        raise typer.BadParameter(f"no table {name}: choose from {', '.join(TABLES)}")
    print(TABLES[name](), end="")


if __name__ == "__main__":
    typer.run(main)
