"""Settings on the embedded model at FLUX.1's schedule: `python -m benchmarks.context.photos FILE`.

The embedded model has a schedule of its own, which is nearly done after its first step. Here it
takes eight steps at FLUX.1's shift (mu 1.15), where what is kept from a step has time to grow old.
Every photograph is filled under a mask of each class, by every method from the same noise. Rows are
appended as they are made, one photograph after another in the order of their names' hashes: what is
broken off is a sample still, and the same command goes on.
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
from hilotoken.data.cases import CLASSES, Case, cases_of
from hilotoken.methods import Dense, FewerSteps
from hilotoken.metrics.lpips import LPIPS, load_lpips
from hilotoken.metrics.regions import Seen, distances, psnr, see
from hilotoken.record import Run

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
# Not settings: they choose no tokens.
CONTROLS = {"dense": Dense(), "dense, half the steps": FewerSteps()}
RUN = CONTROLS | {name: replace(method, bucket=1) for name, method in METHODS.items()}


@dataclass(frozen=True)
class PhotoRow:
    """One photograph under one mask by one method.

    flops:      of all steps, as a share of dense's
    psnr_dense: dB in the mask, to dense from the same noise; of a range of 255
    psnr:       the same, to the photograph; over_dense: that less dense's own
    ssim, lpips: means of their maps over the mask, where LPIPS is asked for
    """

    photo: str
    mask_class: str
    method: str
    tokens: int
    flops: float
    psnr_dense: float
    psnr: float
    over_dense: float
    ssim: float | None = None
    ssim_dense: float | None = None
    lpips: float | None = None
    lpips_dense: float | None = None


class Bench:
    """The embedded model at FLUX.1's schedule, and what its fills are judged by."""

    def __init__(self, perceptual: LPIPS | None) -> None:
        self.perceptual, self.pipe = perceptual, load_model()
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=SHIFT, max_shift=SHIFT
        )

    def rows(self, case: Case, wanted: list[str]) -> Iterator[PhotoRow]:
        """Rows of the methods wanted, each from the noise that dense has."""
        dense, whole = self._fill(case, Dense())
        own = psnr(dense, case.truth, case.mask)
        seen = [see(self.perceptual, x) for x in (case.truth, dense)] if self.perceptual else []
        for name in wanted:
            filled, run = self._fill(case, RUN[name]) if name != "dense" else (dense, whole)
            true = psnr(filled, case.truth, case.mask)
            yield PhotoRow(
                case.name,
                case.mask_class,
                name,
                run.plan.tokens_run,
                round(self._flops(run), 5),
                round(psnr(filled, dense, case.mask), 3),
                round(true, 3),
                round(true - own, 3),
                **self._perceived(case, filled, seen),
            )

    def _fill(self, case: Case, method: Any) -> tuple[np.ndarray, Run]:
        fast = compress(self.pipe, method)
        output = fast(**case.arguments, num_inference_steps=STEPS, generator=case.noise())
        assert fast.last_run is not None
        return np.asarray(output.images[0]), fast.last_run

    def _flops(self, run: Run) -> float:
        """Of the last call, as a share of those of dense in STEPS steps."""
        sigmas = self.pipe.scheduler.sigmas[:-1].tolist()
        return EMBEDDED.share(run.plan, run.method, sigmas) * run.steps / STEPS

    def _perceived(self, case: Case, filled: np.ndarray, seen: list[Seen]) -> dict[str, float]:
        """SSIM and LPIPS to the photograph and to dense; nothing where LPIPS is not asked for."""
        if self.perceptual is None:
            return {}
        mine, found = see(self.perceptual, filled), {}
        for other, end in zip(seen, ("", "_dense"), strict=True):
            apart = distances(self.perceptual, mine, other, case.mask)
            found |= {f"ssim{end}": round(apart.ssim, 5), f"lpips{end}": round(apart.lpips, 5)}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="photographs")
    parser.add_argument("--limit", type=int, default=16, help="photographs, by hash of their names")
    parser.add_argument("--only", nargs="*", default=[*METHODS], choices=RUN)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--lpips", type=Path, help="its weights: see hilotoken.metrics.lpips")
    parser.add_argument("--out", type=Path, help="unless given, results/embedded_SIZE.csv")
    given = parser.parse_args()
    out = given.out or RESULTS / f"embedded_{given.size}.csv"
    try:
        _measure(given, out)
    except KeyboardInterrupt:
        print(f"broken off; the same command goes on from {out}")


@torch.no_grad()
def _measure(given: argparse.Namespace, out: Path) -> None:
    torch.set_num_threads(1)
    bench = Bench(load_lpips(given.lpips) if given.lpips else None)
    done = {(r["photo"], r["mask_class"], r["method"]) for r in read(out)}
    files = by_hash(given.files)[: given.limit]
    cases = (case for file in files for case in cases_of(file, given.size))
    with experimental():
        for case in tqdm(cases, total=len(files) * len(CLASSES), unit="mask"):
            left = [m for m in given.only if (case.name, case.mask_class, m) not in done]
            for row in bench.rows(case, left) if left else ():
                append(out, row)


if __name__ == "__main__":
    main()
