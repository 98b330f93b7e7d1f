"""Where refreshes belong: the whole context computed at two or three of eight steps.

`python -m benchmarks.refresh_steps PHOTOS` appends a row for each photograph, shift of the schedule
and placement: how near the fill is to dense from the same noise. Interrupted, it goes on.
`python -m benchmarks.refresh_steps --table` prints the table of
docs/explanation/reusing-context.md.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler
from tqdm import tqdm

from hilotoken import Dense, HiLo, compress, load_model
from hilotoken.bench.results.readings import by_hash
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import Case, cases_of
from hilotoken.data.manifest import read_manifest
from hilotoken.methods.refresh import refresh_steps
from hilotoken.metrics.regions import psnr

RESULTS = Path(__file__).parent / "results" / "refresh_steps_cpu.csv"
SHIFTS = {-2.5: "the embedded model's own", 0.0: "none", 1.15: "FLUX.1's at 1024 px"}
STEPS, MASKS = 8, "medium"
PLACES = [
    *((0, k) for k in range(1, 7)),
    *((0, 1, 2), (0, 1, 3), (0, 2, 4), (0, 2, 5), (0, 3, 5), (0, 3, 6), (0, 4, 6), (0, 5, 7)),
]


@dataclass(frozen=True)
class PlaceRow:
    """One photograph. psnr_dense: dB in the mask, to dense from the same noise."""

    photo: str
    mask_class: str
    mu: float
    steps: int
    refresh: str
    psnr_dense: float


def shifted(mu: float) -> FlowMatchEulerDiscreteScheduler:
    """A scheduler whose sigmas have this shift."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=mu, max_shift=mu
    )  # fmt: skip


def rows(pipe: Any, case: Case, mu: float) -> Iterator[PlaceRow]:
    """A row for each placement."""
    pipe.scheduler = shifted(mu)

    def fill(method: Any) -> np.ndarray:
        given = case.arguments | {"num_inference_steps": STEPS, "generator": case.noise()}
        return np.asarray(compress(pipe, method)(**given).images[0])

    dense = fill(Dense())
    for place in PLACES:
        near = psnr(fill(HiLo(detail=1.0, coarse=0, refresh=place)), dense, case.mask)
        yield PlaceRow(case.name, case.mask_class, mu, STEPS, str(place), round(near, 3))


def table(path: Path = RESULTS) -> str:
    """Mean dB to dense of every placement at every shift; in bold what `refresh_steps` chooses."""
    with path.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    lines = []
    for place in PLACES:
        cells = []
        for mu in SHIFTS:
            mine = [r for r in found if float(r["mu"]) == mu and r["refresh"] == str(place)]
            text = f"{fmean(float(row['psnr_dense']) for row in mine):.1f}"
            chosen = refresh_steps(len(place), sigmas_of(mu)) == set(place)
            cells.append(f"**{text}**" if chosen else text)
        lines.append([", ".join(map(str, place)), *cells])
    return markdown(["steps", *(f"mu {mu:g}: {said}" for mu, said in SHIFTS.items())], lines)


def sigmas_of(mu: float) -> list[float]:
    """The noise levels of the steps."""
    scheduler = shifted(mu)
    scheduler.set_timesteps(sigmas=[1 - k / STEPS for k in range(STEPS)], mu=mu)
    return scheduler.sigmas[:-1].tolist()


def main(
    photos: Annotated[Path | None, typer.Argument(help="Photographs never trained on.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A CSV.")] = RESULTS,
    limit: Annotated[int, typer.Option(help="Photographs, by hash of their names.")] = 12,
    as_table: Annotated[bool, typer.Option("--table", help="Print the table alone.")] = False,
) -> None:
    """Measure placements of refreshes on the embedded model, on one thread."""
    if as_table or photos is None:
        print(table(output), end="")
        return
    torch.set_num_threads(1)
    pipe = load_model()
    pipe.set_progress_bar_config(disable=True)
    done = set()
    if output.is_file():
        with output.open(newline="") as stream:
            done = {(row["photo"], float(row["mu"])) for row in csv.DictReader(stream)}
    files = by_hash([entry.file for entry in read_manifest(photos)])[:limit]
    left = [(f, mu) for f in files for mu in SHIFTS if (f.name, mu) not in done]
    for file, mu in tqdm(left, unit="photograph and shift", file=sys.stderr):
        (case,) = (case for case in cases_of(file, 256) if case.mask_class == MASKS)
        append_rows(output, list(rows(pipe, case, mu)))


if __name__ == "__main__":
    typer.run(main)
