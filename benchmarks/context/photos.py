"""Settings on the embedded model at FLUX.1's schedule: `python -m benchmarks.context.photos FILE`.

The embedded model has a schedule of its own, which is nearly done after its first step. Here it
takes eight steps at FLUX.1's shift (mu 1.15), where what is kept from a step has time to grow old.
Every photograph is filled under a mask of each class, by every method from the same noise.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hilotoken.bench.cases import Case, cases_of
from hilotoken.bench.measures import psnr
from hilotoken.bench.readings import by_hash
from tqdm import tqdm

from hilotoken import HiLo, compress, load_model
from hilotoken.methods import Dense

from .evaluate import RESULTS, STEPS
from .flops import Shape
from .model import SHIFT
from .selections import Attended, experimental, foveated

EMBEDDED = Shape(1, 18, 256, 4, 8, 320, 32, 8, 32, False)
EVERY = {"detail": 1.0, "coarse": 0}
SAMPLED: dict[str, Any] = {"context": "sampled", "detail": 0.0}
TEXT_KEPT: dict[str, Any] = {"refresh_text": True}
METHODS: dict[str, Any] = {
    "paper": HiLo(),
    "edit only": HiLo(detail=0.0, coarse=0),
    "random": HiLo(score="random", detail=0.16, coarse=0),
    "whole, once": HiLo(**EVERY, refresh=(0,)),
    "whole, twice": HiLo(**EVERY, refresh=(0, 4)),
    "whole, twice, text kept": HiLo(**EVERY, **TEXT_KEPT, refresh=(0, 4)),
    "attended 25 %, once": Attended(detail=1.0, coarse=0, refresh=(0,)),
    "sampled 2, 1 ring, twice, text kept": HiLo(
        **SAMPLED, **TEXT_KEPT, cell=2, dilate=1, refresh=(0, 4)
    ),
    "sampled 2, once, text kept": HiLo(**SAMPLED, **TEXT_KEPT, cell=2, refresh=(0,)),
    "sampled 3, twice, text kept": HiLo(**SAMPLED, **TEXT_KEPT, cell=3, refresh=(0, 4)),
    "foveated, twice, text kept": foveated(1.0, **TEXT_KEPT, refresh=(0, 4)),
}
SHORT_GRIDS = {name: replace(method, bucket=1) for name, method in METHODS.items()}


@dataclass(frozen=True)
class PhotoRow:
    """One photograph under one mask by one method.

    flops:      of all steps, as a share of dense's
    psnr_dense: dB in the mask, to dense from the same noise; of a range of 255
    psnr:       the same, to the photograph
    over_dense: that less dense's own
    """

    photo: str
    mask_class: str
    method: str
    tokens: int
    flops: float
    psnr_dense: float
    psnr: float
    over_dense: float


def rows(pipe: Any, case: Case, wanted: list[str]) -> Iterator[PhotoRow]:
    """Rows of the methods wanted, each from the noise that dense has."""
    dense = _fill(pipe, case, Dense())[0]
    own = psnr(dense, case.truth, case.mask)
    for name in wanted:
        method = SHORT_GRIDS[name]
        filled, plan = _fill(pipe, case, method)
        sigmas = pipe.scheduler.sigmas[:-1].tolist()
        true = psnr(filled, case.truth, case.mask)
        yield PhotoRow(
            case.name,
            case.mask_class,
            name,
            plan.tokens_run,
            round(EMBEDDED.share(plan, method, sigmas), 5),
            round(psnr(filled, dense, case.mask), 3),
            round(true, 3),
            round(true - own, 3),
        )


def _fill(pipe: Any, case: Case, method: Any) -> tuple[np.ndarray, Any]:
    fast = compress(pipe, method)
    output = fast(**case.arguments, num_inference_steps=STEPS, generator=case.noise())
    assert fast.last_run is not None
    return np.asarray(output.images[0]), fast.last_run.plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="photographs")
    parser.add_argument("--limit", type=int, default=16, help="photographs, by hash of their names")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS / "embedded_mu_1.15.csv")
    given = parser.parse_args()
    try:
        _measure(given)
    except KeyboardInterrupt:
        print(f"broken off; the same command goes on from {given.out}")


@torch.no_grad()
def _measure(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    pipe = load_model()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=SHIFT, max_shift=SHIFT
    )
    done = set()
    if given.out.is_file():
        with open(given.out, newline="") as stream:
            done = {(r["photo"], r["mask_class"], r["method"]) for r in csv.DictReader(stream)}
    files = by_hash(given.files)[: given.limit]
    with experimental():
        for case in tqdm([c for file in files for c in cases_of(file, given.size)], unit="fill"):
            left = [m for m in METHODS if (case.name, case.mask_class, m) not in done]
            for row in rows(pipe, case, left) if left else ():
                _append(given.out, row)


def _append(out: Path, row: PhotoRow) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    new = not out.is_file()
    with open(out, "a", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(PhotoRow)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


if __name__ == "__main__":
    main()
