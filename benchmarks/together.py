"""What photos in one call save: `python -m benchmarks.together PHOTOS -o ROWS`.

PHOTOS holds NAME.jpg and NAME_mask.png. All are edited one by one, two and four in a call of the
pipeline, by turns: under masks of their own, and under one mask for all, which share every call of
the model. A row is a round; times are of all photos.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from tqdm import tqdm

from hilotoken import load_model
from hilotoken.bench.results.rows import append_rows
from hilotoken.edit import Job, as_mask, as_photo, edit_jobs
from hilotoken.request import Request

SIDE, STEPS = 512, 8
PRESETS = ("paper", "balanced", "fast")
ONE_MASK = (192, 192, 320, 320)  # left, top, right, bottom: a medium one's half


@dataclass(frozen=True)
class TogetherRow:
    """Some photos, so many in a call of the pipeline.

    masks:    "own" or "one"
    cpu_seconds: of the process, which other work on the machine disturbs less than the clock
    apart:    the greatest difference of a pixel to the same photo made by itself, of 255
    """

    preset: str
    masks: str
    photos: int
    together: int
    round: int
    cpu_seconds: float
    apart: int


def jobs_of(folder: Path, masks: str) -> list[Job]:
    """The photos at the working size, each in the noise of its own seed."""
    found = []
    for seed, path in enumerate(sorted(folder.glob("*.jpg"))):
        photo = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        own = Image.open(path.with_name(f"{path.stem}_mask.png")).convert("L")
        mask = own.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        if masks == "one":
            mask = Image.new("L", (SIDE, SIDE))
            mask.paste(255, ONE_MASK)
        opened = as_photo(photo)
        found.append(Job(opened, as_mask(mask, opened), Request(seed=seed, steps=STEPS)))
    return found


def measured(
    pipe: Any, jobs: Sequence[Job], preset: str, together: int
) -> tuple[float, list[np.ndarray]]:
    """Seconds, and the pictures."""
    before = time.process_time()
    edits = edit_jobs(pipe, jobs, preset, together=together, size=SIDE)
    seconds = time.process_time() - before
    return seconds, [edit.photo.pixels.astype(int) for edit in edits]


def main(
    photos: Annotated[Path, typer.Argument(help="NAME.jpg and NAME_mask.png.")],
    output: Annotated[Path, typer.Option("--output", "-o")],
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Append rows of all presets and masks to a CSV."""
    torch.set_num_threads(1)
    pipe = load_model()
    pipe.set_progress_bar_config(disable=True)
    kinds = [(preset, masks) for preset in PRESETS for masks in ("own", "one")]
    for preset, masks in tqdm(kinds):
        jobs = jobs_of(photos, masks)
        measured(pipe, jobs[:1], preset, 1)  # warm
        for turn in range(rounds):
            alone: list[np.ndarray] = []
            for together in (1, 2, 4):
                seconds, pictures = measured(pipe, jobs, preset, together)
                alone = alone or pictures
                apart = max(int(np.abs(a - b).max()) for a, b in zip(alone, pictures, strict=True))
                timed = round(seconds, 3)
                row = TogetherRow(preset, masks, len(jobs), together, turn, timed, apart)
                append_rows(output, [row])


if __name__ == "__main__":
    typer.run(main)
