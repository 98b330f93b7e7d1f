"""What unedited tokens look like during a run: `python -m benchmarks.found.calibrate PHOTOS`.

The constants of `hilotoken.methods.find` come from these rows. The embedded model edits photographs
that `photos` does not use, see `instructed`, under a mask of every class, and the estimate of every
step is held against where the dense run ends. Interrupted, it goes on from there; `--table` prints
the table.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from hilotoken import Dense, Find
from hilotoken.attach import attached
from hilotoken.bench.results.readings import by_hash
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import Case, cases_of
from hilotoken.hooks import shadowed
from hilotoken.methods.find import FLOOR, background, grown, look, scores, without_drift

from .instructed import Instructed, instructed

RESULTS = Path(__file__).parents[1] / "results" / "found_calibration_cpu.csv"
SIZE, STEPS = 256, 28
CHANGED = 0.2  # of the spread: a token that ends so far from the photo is edited
SHOWN = (1, 2, 4, 5, 8, 12, 17, 22, 27)  # steps in the table


@dataclass(frozen=True)
class CalibrationRow:
    """The estimate of one step.

    drift:       of the colours: see `without_drift`
    level, deviation: of the background's log scores: see `background`
    quiet, loud: 50th and 99th percentile of the scores of tokens that end unedited
    edited:      share of the tokens that end edited
    recall:      of those, the share that the region of this look, grown, holds
    region:      share of the tokens in the region, before it is grown
    """

    photo: str
    mask_class: str
    step: int
    sigma: float
    drift: float
    level: float
    deviation: float
    quiet: float
    loud: float
    edited: float
    recall: float
    region: float
    reason: str


def rows(
    case: Case, grid: tuple[int, int], source_NC: Tensor, x0_SNC: Tensor, sigmas: list[float]
) -> Iterator[CalibrationRow]:
    """A row a step, from the estimates of a dense run."""
    find = Find()
    end_N = scores(without_drift(x0_SNC[-1] - source_NC, source_NC)[0], source_NC)
    edited_N = end_N > CHANGED
    for step, (x0_NC, sigma) in enumerate(zip(x0_SNC, sigmas, strict=True)):
        change_NC, drift = without_drift(x0_NC - source_NC, source_NC)
        score_N = scores(change_NC, source_NC)
        quiet, loud = score_N[~edited_N].quantile(torch.tensor([0.5, 0.99])).tolist()
        level, deviation = background((score_N + FLOOR).log())
        seen = look(x0_NC[None], source_NC[None], grid, 2, sigma, find)
        held_N = grown(seen.region_hw, find).flatten() & edited_N
        yield CalibrationRow(
            case.name, case.mask_class, step, sigma, drift, level, deviation, quiet, loud,
            edited_N.float().mean().item(), (held_N.sum() / edited_N.sum().clamp_min(1)).item(),
            seen.region_hw.float().mean().item(), seen.reason,
        )  # fmt: skip


def estimates(pipe: Instructed, case: Case) -> tuple[tuple[int, int], Tensor, Tensor, list[float]]:
    """Grid, source and estimates of a dense run, and its noise levels."""
    given = case.arguments
    pipe.hidden = given.pop("mask_image")
    x0: list[Tensor] = []

    def note(original: Any, velocity: Tensor, time: Any, x: Tensor, **kwargs: Any) -> Any:
        x0.append(x[0] - float(pipe.scheduler.sigmas[len(x0)]) * velocity[0])
        return original(velocity, time, x, **kwargs)

    with attached(pipe, Dense(), None, find=Find()) as run, shadowed(pipe.scheduler, "step", note):
        pipe(**given, num_inference_steps=STEPS, generator=case.noise(), output_type="latent")
    assert run.source is not None
    sigmas = pipe.scheduler.sigmas[:-1].tolist()
    return run.source.grid, run.source.latents_BNC[0], torch.stack(x0), sigmas


def table(path: Path = RESULTS) -> str:
    """A line a step: the worst edit of each figure, but for the 99th percentile in deviations."""
    with path.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    lines = []
    for step in SHOWN:
        own = [row for row in found if int(row["step"]) == step]
        sigma, drift, quiet, loud, level, deviation, recall = (
            [float(row[name]) for row in own]
            for name in ("sigma", "drift", "quiet", "loud", "level", "deviation", "recall")
        )
        above = median(
            (math.log(x + FLOOR) - mode) / spread
            for x, mode, spread in zip(loud, level, deviation, strict=True)
        )
        held = sum(share == 1 for share in recall)
        lines.append([
            str(step), f"{sigma[0]:.2f}", f"{max(drift):.2f}", f"{max(quiet):.2f}",
            f"{max(deviation):.2f}", f"{above:.1f}", f"{held} of {len(own)}",
            str(sum(bool(row["reason"]) for row in own)),
        ])  # fmt: skip
    head = ["step", "sigma", "drift", "score", "deviation", "99th percentile, in deviations",
            "all held", "not told"]  # fmt: skip
    return markdown(head, lines)


def main(
    photos: Annotated[Path, typer.Argument()] = Path(),
    count: int = 8,
    output: Path = RESULTS,
    only_table: Annotated[bool, typer.Option("--table")] = False,
) -> None:
    if only_table:
        print(table(output))
        return
    torch.set_num_threads(1)
    done = set()
    if output.exists():
        with output.open(newline="") as stream:
            done = {(row["photo"], row["mask_class"]) for row in csv.DictReader(stream)}
    files = by_hash([path for path in photos.iterdir() if path.is_file()])[-count:]
    cases = [case for file in files for case in cases_of(file, SIZE)]
    pipe = instructed()
    for case in tqdm([case for case in cases if (case.name, case.mask_class) not in done]):
        append_rows(output, list(rows(case, *estimates(pipe, case))))


if __name__ == "__main__":
    typer.run(main)
