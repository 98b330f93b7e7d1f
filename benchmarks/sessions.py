"""What a photo kept open saves and keeps: the second edit of a photo, and variations.

`python -m benchmarks.sessions PHOTOS` appends rows for each photograph: what every way of making
the same edit cost, and how near it came to dense from the same noise. Interrupted, it goes on from
there. `--table` prints the tables of docs/how-to/sessions.md, `--plot` draws their picture.
"""

import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from hilotoken import Dense, HiLo, compress, load_model
from hilotoken.bench.measure.flops import flops_by_pass
from hilotoken.bench.results.readings import by_hash
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import Case, cases_of
from hilotoken.data.manifest import read_manifest
from hilotoken.metrics.regions import psnr

RESULTS = Path(__file__).parent / "results" / "sessions_cpu.csv"
STEPS, VARIATIONS = 8, 3
PRESETS = ("faithful", "fast")
EDIT_ONLY = HiLo(detail=0.0, coarse=0)  # the control: no context at all
SECOND = {
    "dense": "dense",
    "from nothing": "from nothing",
    "session": "in a session",
    "context": "its context reused",
    "edit only": "edit tokens only",
}


@dataclass(frozen=True)
class SessionRow:
    """One edit.

    part:    "second", the edit after one under another mask; or "variations", of three
    way:     how it was made; a variation's number is behind it
    seconds: of the process, which other work on the machine disturbs less than the clock
    dit, vae: shares of it, by the clock
    psnr_dense: dB in the mask, to dense from the same noise; empty for dense
    psnr_alone: the same, to the same edit from nothing; empty for that
    lent:    share of the context at refreshes that was lent
    """

    photo: str
    mask_class: str
    preset: str
    part: str
    way: str
    seconds: float
    dit: float
    vae: float
    tflops: float
    encoded: float
    lent: float
    psnr_dense: float | None
    psnr_alone: float | None


class Bench:
    """Edits of one photograph."""

    def __init__(self, pipe: Any, case: Case, preset: str) -> None:
        self.pipe, self.case, self.preset = pipe, case, preset
        given = case.arguments
        self.photo, self.mask = given.pop("image"), given.pop("mask_image")
        self.given = given | {"num_inference_steps": STEPS}

    def fill(self, fast: Any, seed: int, **changes: Any) -> Callable[[], Any]:
        """An edit from nothing, to be timed."""
        noise = torch.Generator().manual_seed(seed)
        pictures = {"image": self.photo, "mask_image": self.mask}
        return lambda: fast(**pictures, generator=noise, **self.given, **changes).images[0]

    def noise(self, seed: int) -> torch.Tensor:
        """The tokens that an edit of this seed begins with, [1, N, C]."""
        seen: list[torch.Tensor] = []
        channels = self.pipe.transformer.config.out_channels

        def stop(module: Any, args: Any, given: dict[str, Any]) -> None:
            seen.append(given["hidden_states"][..., :channels].clone())
            raise InterruptedError

        handle = self.pipe.transformer.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.fill(self.pipe, seed)()
        except InterruptedError:
            return seen[0]
        finally:
            handle.remove()
        raise AssertionError("the transformer was not called")

    def timed(
        self, part: str, way: str, fast: Any, edit: Callable[[], Any], dense: Any, alone: Any
    ) -> tuple[SessionRow, np.ndarray]:
        """An edit's row and its picture."""
        made: list[Any] = []
        started = time.process_time()
        flops = flops_by_pass(lambda: made.append(edit()), self.pipe.transformer)
        seconds = time.process_time() - started
        picture, run = np.asarray(made[0]), fast.last_run
        near = [
            None if to is None else round(psnr(picture, to, self.case.mask), 3)
            for to in (dense, alone)
        ]
        return SessionRow(
            self.case.name, self.case.mask_class, self.preset, part, way, seconds,
            run.dit_seconds / run.total_seconds, run.vae_seconds / run.total_seconds,
            sum(flops) / 1e12, run.encoded,
            run.reused.get("context", 0.0), *near,
        ), picture  # fmt: skip


def second(pipe: Any, first: Case, case: Case, preset: str) -> Iterator[SessionRow]:
    """The edit of a photo after one under another mask, in every way."""
    bench, seed = Bench(pipe, case, preset), case.seed
    before = Bench(pipe, first, preset)
    dense = compress(pipe, Dense())
    row, truth = bench.timed("second", "dense", dense, bench.fill(dense, seed), None, None)
    yield row
    fast = compress(pipe, preset)
    row, alone = bench.timed("second", "from nothing", fast, bench.fill(fast, seed), truth, None)
    yield row
    for way in ("session", "context"):
        with fast.open(bench.photo, reuse_context=way == "context") as session:
            session.edit(before.mask, seed=seed, **bench.given)
            edit = lambda: session.edit(bench.mask, seed=seed, **bench.given).images[0]  # noqa: E731
            yield bench.timed("second", way, fast, edit, truth, alone)[0]
    only = compress(pipe, EDIT_ONLY)
    yield bench.timed("second", "edit only", only, bench.fill(only, seed), truth, alone)[0]


def variations(pipe: Any, case: Case, preset: str) -> Iterator[SessionRow]:
    """Three results under one mask that share the first's context, each beside its own dense one.

    They share the context's noise too, so the dense ones do.
    """
    bench, fast, dense = Bench(pipe, case, preset), compress(pipe, preset), compress(pipe, Dense())
    row, truth = bench.timed(
        "variations", "dense 0", dense, bench.fill(dense, case.seed), None, None
    )
    yield row
    row, _ = bench.timed("variations", "alone 0", fast, bench.fill(fast, case.seed), truth, None)
    yield row
    edit_N = fast.last_run.plan.edit_N
    noises = [bench.noise(case.seed + number) for number in range(VARIATIONS)]
    with fast.open(bench.photo) as session:
        made = session.variations(bench.mask, VARIATIONS, seed=case.seed, **bench.given)
        for number, noise in enumerate(noises):
            if number:
                mixed = noise.where(edit_N[:, None], noises[0])
                fill = bench.fill(dense, case.seed, latents=mixed)
                row, truth = bench.timed("variations", f"dense {number}", dense, fill, None, None)
                yield row
            edit = lambda: next(made).images[0]  # noqa: E731
            yield bench.timed("variations", f"shared {number}", fast, edit, truth, None)[0]


def rows(pipe: Any, file: Path, preset: str, part: str) -> list[SessionRow]:
    """Of a photograph: an edit under a medium mask after one under a small; variations of it."""
    small, medium, _ = cases_of(file, 256)
    if part == "second":
        return list(second(pipe, small, medium, preset))
    return list(variations(pipe, medium, preset))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def _of(rows: list[dict[str, str]], preset: str, way: str) -> list[dict[str, str]]:
    """The second edits made in this way."""
    wanted = preset, "second", way
    return [row for row in rows if (row["preset"], row["part"], row["way"]) == wanted]


def _mean(rows: list[dict[str, str]], name: str) -> str:
    found = [float(row[name]) for row in rows if row[name]]
    return f"{fmean(found):.1f}" if found else ""


def table(path: Path = RESULTS) -> str:
    """What the second edit costs and keeps in every way, and what variations do."""
    found = _read(path)
    lines = [
        [preset, said, *_cells(_of(found, preset, way))]
        for preset in PRESETS
        for way, said in SECOND.items()
    ]
    heads = ["preset", "the second edit", "CPU s", "DiT, GFLOPs", "encoded", "lent"]
    heads += ["dB to dense", "dB to the same from nothing"]
    return markdown(heads, lines) + "\n" + _variations_table(found)


def _cells(rows: list[dict[str, str]]) -> list[str]:
    mean = lambda name: fmean(float(row[name]) for row in rows)  # noqa: E731
    return [
        f"{median(float(row['seconds']) for row in rows):.2f}",
        f"{1000 * mean('tflops'):.1f}",
        f"{mean('encoded'):.0%}",
        f"{mean('lent'):.0%}",
        _mean(rows, "psnr_dense"),
        _mean(rows, "psnr_alone"),
    ]


def _variations_table(found: list[dict[str, str]]) -> str:
    lines = []
    for preset in PRESETS:
        mine = [r for r in found if r["preset"] == preset and r["part"] == "variations"]
        ways = {
            way: [r for r in mine if r["way"].startswith(way)]
            for way in ("dense", "alone", "shared")
        }
        cost = {way: fmean(float(r["tflops"]) for r in rows) for way, rows in ways.items()}
        later = [r for r in ways["shared"] if not r["way"].endswith("0")]
        lines.append([
            preset, f"{VARIATIONS * cost['shared'] / cost['alone']:.2f}",
            f"{cost['dense'] / cost['shared']:.2f}", _mean(ways["alone"], "psnr_dense"),
            _mean(later, "psnr_dense"), str(len(ways["alone"])),
        ])  # fmt: skip
    heads = ["preset", "three results, in edits", "times fewer FLOPs than dense"]
    heads += ["dB to dense, one edit", "the last two", "photos"]
    return markdown(heads, lines)


def plot(path: Path = RESULTS, output: Path | None = None) -> None:
    """The second edit's seconds, in parts, for each way of making it."""
    from hilotoken.bench.show.plots import pyplot

    found, plt = _read(path), pyplot()
    figure, axes = plt.subplots(1, len(PRESETS), figsize=(9, 3), sharey=True, layout="constrained")
    for axis, preset in zip(axes, PRESETS, strict=True):
        for part, colour in (("dit", "#3b6ea8"), ("vae", "#d98b3a"), ("rest", "#9a9a9a")):
            heights, bottoms = [], []
            for way in SECOND:
                mine = _of(found, preset, way)
                spent = {
                    p: fmean(float(r[p]) * float(r["seconds"]) for r in mine)
                    for p in ("dit", "vae")
                }
                spent["rest"] = fmean(float(r["seconds"]) for r in mine) - sum(spent.values())
                order = list(spent)
                heights.append(spent[part])
                bottoms.append(sum(spent[p] for p in order[: order.index(part)]))
            axis.barh(list(SECOND.values()), heights, left=bottoms, color=colour, label=part)
        axis.invert_yaxis()
        axis.set_title(preset)
        axis.set_xlabel("CPU seconds of the second edit, 256 px")
    axes[-1].legend(["DiT", "autoencoder", "rest"], frameon=False)
    figure.savefig(output or Path("docs/images/sessions.svg"))


def main(
    photos: Annotated[Path | None, typer.Argument(help="Photographs never trained on.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A CSV.")] = RESULTS,
    limit: Annotated[int, typer.Option(help="Photographs, by hash of their names.")] = 8,
    as_table: Annotated[bool, typer.Option("--table", help="Print the tables alone.")] = False,
    part: Annotated[str, typer.Option(help="`second` or `variations`, of `--preset`.")] = "second",
    preset: Annotated[str, typer.Option(help="A preset that refreshes.")] = "faithful",
    as_plot: Annotated[bool, typer.Option("--plot", help="Draw the picture alone.")] = False,
) -> None:
    """Measure sessions on the embedded model, at 256 px, on one thread."""
    if as_plot:
        plot(output)
        return
    if as_table or photos is None:
        print(table(output), end="")
        return
    torch.set_num_threads(1)
    pipe = load_model()
    pipe.set_progress_bar_config(disable=True)
    found = _read(output) if output.is_file() else []
    done = {r["photo"] for r in found if (r["preset"], r["part"]) == (preset, part)}
    files = by_hash([entry.file for entry in read_manifest(photos)])[:limit]
    for file in tqdm([f for f in files if f.name not in done], unit="photo", file=sys.stderr):
        append_rows(output, rows(pipe, file, preset, part))


if __name__ == "__main__":
    typer.run(main)
