"""Settings on the embedded model at FLUX.1's schedule: `python -m benchmarks.context.photos FILE`.

The embedded model has a schedule of its own, which is nearly done after its first step. Here it
takes eight steps at FLUX.1's shift (mu 1.15), where what is kept from a step has time to grow old.
Every photograph is filled under a mask of each class, by every method from the same noise.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tqdm import tqdm

from hilotoken import HiLo, Refresh, compress, load_model
from hilotoken.bench.results.readings import by_hash
from hilotoken.data.cases import Case, cases_of
from hilotoken.methods import Dense
from hilotoken.metrics.regions import psnr

from .evaluate import STEPS
from .flops import Shape
from .model import SHIFT
from .rows import RESULTS, append, read
from .selections import Attended, experimental

EMBEDDED = Shape(1, 18, 256, 4, 8, 320, 32, 8, 32, False)
TWICE, ONCE = Refresh(2, text=True), Refresh(1, text=True)
WHOLE = HiLo(detail=1.0, coarse=0)
SAMPLED = HiLo(context="sampled", detail=0.0, refresh=TWICE)
METHODS: dict[str, Any] = {
    "paper": HiLo(),
    "edit only": HiLo(detail=0.0, coarse=0),
    "random": HiLo(score="random", detail=0.16, coarse=0),
    "whole, once": replace(WHOLE, refresh=1),
    "whole, twice": replace(WHOLE, refresh=2),
    "attended 25 %, once": Attended(detail=1.0, coarse=0, refresh=1),
    "detail 40 %, once, text kept": HiLo(detail=0.4, coarse=0, refresh=ONCE),
    "paper, twice, text kept": HiLo(refresh=TWICE),
    "detail and sampled 3, twice, text kept": HiLo(context="sampled", cell=3, refresh=TWICE),
    "sampled 2, twice, text kept": SAMPLED,
    "detail, twice, text kept": HiLo(coarse=0, refresh=TWICE),
    "detail and sampled 3, once, text kept": HiLo(context="sampled", cell=3, refresh=ONCE),
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="photographs")
    parser.add_argument("--limit", type=int, default=16, help="photographs, by hash of their names")
    parser.add_argument("--only", nargs="*", default=[*METHODS], choices=METHODS)
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
    done = {(r["photo"], r["mask_class"], r["method"]) for r in read(given.out)}
    files = by_hash(given.files)[: given.limit]
    with experimental():
        for case in tqdm([c for file in files for c in cases_of(file, given.size)], unit="fill"):
            left = [m for m in given.only if (case.name, case.mask_class, m) not in done]
            for row in rows(pipe, case, left) if left else ():
                append(given.out, row)


if __name__ == "__main__":
    main()
