"""The region found on photographs: `python -m benchmarks.found.photos PHOTOS LPIPS`.

The embedded model is driven as an instruction editor, see `instructed`: it has a mask that HiLo
never sees. Each photograph is edited under one mask, the classes in turn, at 28 and at 8 steps, by
every method from the same noise. Interrupted, it goes on from there; `--table` prints the tables.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from hilotoken import Find, HiLo, compress
from hilotoken.bench.measure.flops import flops_by_pass
from hilotoken.bench.results.readings import by_hash
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import CLASSES, Case, cases_of
from hilotoken.metrics.lpips import LPIPS, load_lpips
from hilotoken.metrics.regions import distances, see

from .instructed import Instructed, instructed

RESULTS = Path(__file__).parents[1] / "results" / "found_photos_cpu.csv"
SIZE, STEPS = 256, (28, 8)
VISIBLE = 16  # levels of 255
FOUND, KEPT, FEWER = "found", "kept", "fewer steps"


@dataclass(frozen=True)
class PhotoRow:
    """One edit, beside dense from the same noise, whose pixels outside the true mask are put back.

    mask_share, found_share: of the picture: the true mask, and the region shown
    changed: share of the picture that dense changes by more than 16 levels, in the mask
    missed:  of that, the share that is not shown
    psnr, lpips: to dense, in the true mask
    flop_ratio: FLOPs of dense over this one's, counted
    """

    photo: str
    mask_class: str
    steps: int
    method: str
    mask_share: float
    found_share: float
    changed: float
    missed: float
    psnr: float
    lpips: float
    flop_ratio: float
    whole_steps: int
    reasons: str


def rows(pipe: Instructed, case: Case, steps: int, perceptual: LPIPS) -> Iterator[PhotoRow]:
    """By the region found early, by that found at the end, and by fewer steps at a like cost."""
    given = case.arguments
    pipe.hidden = given.pop("mask_image")
    at_end, early = compress(pipe, keep="found"), compress(pipe, HiLo(find=Find(fewest=min(STEPS))))
    dense = edited(pipe, at_end, case, given, steps)
    found: list[np.ndarray] = []
    passes = flops_by_pass(
        lambda: found.append(edited(pipe, early, case, given, steps)), pipe.transformer
    )
    ratio = steps * passes[0] / sum(passes)  # the first is dense
    few = max(1, round(steps / ratio))
    fewer = edited(pipe, pipe, case, given, few)
    photo, mask = case.photo, case.mask
    changed = (np.abs(dense.astype(int) - photo).max(-1) > VISIBLE) & mask
    truth = see(perceptual, np.where(mask[..., None], dense, photo))
    for name, image, run, cost in (
        (FOUND, found[0], early.last_run, ratio),
        (KEPT, dense, at_end.last_run, 1.0),
        (FEWER, fewer, None, steps / few),
    ):
        shown = mask if run is None or run.mask is None else run.mask[0, 0].numpy() > 0
        image = np.where((shown & mask)[..., None], image, photo)  # else LPIPS sees the ring too
        near = distances(perceptual, see(perceptual, image), truth, mask)
        whole = few if run is None else steps if run.refreshed is None else len(run.refreshed)
        yield PhotoRow(
            case.name, case.mask_class, steps, name, float(mask.mean()), float(shown.mean()),
            float(changed.mean()), float((changed & ~shown).sum() / max(1, changed.sum())),
            min(99.0, near.psnr), near.lpips, cost, whole,
            "; ".join(run.reasons) if run else "",
        )  # fmt: skip


def edited(pipe: Any, fast: Any, case: Case, given: dict[str, Any], steps: int) -> np.ndarray:
    """The raw picture that a run makes, before anything is put back: uint8 [H, W, 3]."""
    size = given["height"], given["width"]
    given = given | {"num_inference_steps": steps, "generator": case.noise()}
    latents = fast(**given, output_type="latent").images
    latents = pipe._unpack_latents(latents, *size, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    with torch.no_grad():
        decoded = pipe.vae.decode(latents, return_dict=False)[0]
    return np.asarray(pipe.image_processor.postprocess(decoded)[0])


def table(path: Path = RESULTS) -> str:
    """A line a number of steps, size of the mask and method: means over the photographs."""
    with path.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    lines = []
    for steps in STEPS:
        for mask_class in CLASSES:
            for method in (FOUND, KEPT, FEWER):
                own = [r for r in found if (int(r["steps"]), r["mask_class"], r["method"])
                       == (steps, mask_class, method)]  # fmt: skip
                if own:
                    lines.append([str(steps), mask_class, method, *_means(own)])
    head = ["steps", "mask", "method", "photos", "true mask", "shown", "change missed",
            "PSNR to dense", "LPIPS to dense", "FLOPs", "stayed dense"]  # fmt: skip
    return markdown(head, lines)


def _means(own: list[dict[str, str]]) -> list[str]:
    def mean(name: str) -> float:
        return fmean(float(row[name]) for row in own)

    shares = [f"{mean(name):.1%}" for name in ("mask_share", "found_share", "missed")]
    near = [f"{mean('psnr'):.1f}", f"{mean('lpips'):.4f}", f"{mean('flop_ratio'):.2f}x less"]
    stayed = sum(row["whole_steps"] == row["steps"] for row in own)
    return [str(len(own)), *shares, *near, str(stayed)]


def main(
    photos: Annotated[Path, typer.Argument()] = Path(),
    lpips: Annotated[Path, typer.Argument()] = Path(),
    count: int = 48,
    output: Path = RESULTS,
    only_table: Annotated[bool, typer.Option("--table")] = False,
) -> None:
    if only_table:
        print(table(output))
        return
    torch.set_num_threads(1)
    pipe, perceptual = instructed(), load_lpips(lpips)
    done = set()
    if output.exists():
        with output.open(newline="") as stream:
            done = {(row["photo"], int(row["steps"])) for row in csv.DictReader(stream)}
    files = by_hash([path for path in photos.iterdir() if path.is_file()])[:count]
    wanted = [(i, f, n) for i, f in enumerate(files) for n in STEPS if (f.name, n) not in done]
    for i, file, steps in tqdm(wanted):
        case = list(cases_of(file, SIZE))[i % len(CLASSES)]
        append_rows(output, list(rows(pipe, case, steps, perceptual)))


if __name__ == "__main__":
    typer.run(main)
