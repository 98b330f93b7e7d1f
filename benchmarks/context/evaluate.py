"""Measure every selection on held-out pictures: `python -m benchmarks.context.evaluate`.

Training-free, each picture under every selection from the same noise, in eight steps of FLUX.1's
schedule. Rows are appended as they are made: break it off and call it again, and it goes on.

N grid tokens, C channels of x_t.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Generator, Tensor
from tqdm import tqdm

from hilotoken import HiLo, Refresh, compress, plan_tokens
from hilotoken.bench.measure.compass import Compass
from hilotoken.methods import Dense
from hilotoken.plan import TokenPlan

from .flops import CONTEXT
from .model import ContextModel, load, tokens_of
from .pictures import DRAWN, GRID, GROUNDS, KINDS, SIDE, Pictures, draw, enlarge
from .rows import RESULTS, append, read
from .selections import Attended, Needed, Pyramid, Spread, experimental, foveated
from .settings import BALANCED, FAITHFUL, FAST

STEPS = 8
SIGMAS = (1.0, 0.8, 0.6, 0.4, 0.2)
SOLVED = 20.0  # dB in the mask, of a range of 2
NOTHING = HiLo(detail=0.0, coarse=0, bucket=1)
WHOLE = replace(BALANCED, bucket=1)
MIXED = {"laplacian": 1.0, "variance": 1.0, "frequency": 1.0, "dct": 1.0}


@dataclass(frozen=True, eq=False)
class Case:
    """One held-out picture of a kind."""

    kind: str
    number: int
    picture: Pictures

    @property
    def photo_13HW(self) -> Tensor:
        return self.picture.image_B3HW / 2 + 0.5

    @property
    def mask_11HW(self) -> Tensor:
        return enlarge(self.picture.mask_Bhw)[:, None].float()

    @property
    def seed(self) -> int:
        return 1000 * list(KINDS).index(self.kind) + self.number

    def noise(self) -> Generator:
        return Generator().manual_seed(self.seed)

    def arguments(self, model: ContextModel) -> dict[str, Any]:
        """What the pipeline is given, but for steps and noise."""
        kind = torch.tensor([list(KINDS).index(self.kind)])
        return {
            "image": self.photo_13HW,
            "mask_image": self.mask_11HW,
            "height": SIDE,
            "width": SIDE,
            "output_type": "latent",
        } | model.prompt(kind)

    def plan(self, method: HiLo) -> TokenPlan:
        return plan_tokens(self.photo_13HW, self.mask_11HW, grid=(GRID, GRID), method=method)

    @cached_property
    def need(self) -> tuple[int, ...]:
        return tuple(self.picture.need_Bhw.flatten().nonzero().flatten().tolist())


def held_out(kind: str, count: int) -> list[Case]:
    """Pictures that no training draws: their generator's seed is beyond those of any step."""
    generator = Generator().manual_seed(10**12 + list(DRAWN).index(kind))
    drawn = draw(kind, count, generator)
    parts = [{k: v[i : i + 1] for k, v in vars(drawn).items()} for i in range(count)]
    return [Case(kind, i, Pictures(**part)) for i, part in enumerate(parts)]


def selections(case: Case) -> dict[str, tuple[Any, int]]:
    """Every selection by name: the method and its steps.

    Those that choose context at every step run as many tokens as the paper's selection on the same
    picture, or else as few as they are named for. Those that reuse context cost what they cost.
    """
    paper = HiLo(bucket=1)
    plan = case.plan(paper)
    total, edit = plan.tokens_run, plan.counts["edit"]
    free = (total - edit) / plan.tokens_full
    detail = replace(NOTHING, detail=free)
    sampled = Spread(context="sampled", bucket=1)
    chosen: dict[str, Any] = {
        "dense": Dense(),
        "edit only": NOTHING,
        "edit only, 3 rings": replace(NOTHING, dilate=3),
        "needed": Needed(bucket=1, need=case.need),
        # At every step, the paper's count of tokens.
        "paper": paper,
        "paper, native": replace(paper, positions="native"),
        "paper, aligned": replace(paper, positions="aligned"),
        "detail": detail,
        "detail, mixed scores": replace(detail, score=MIXED),
        "coarse 4": replace(NOTHING, coarse=4),
        "coarse 2": replace(NOTHING, coarse=2),
        "random": replace(detail, score="random"),
        "sampled 3": replace(sampled, cell=3, total=total),
        "sampled 3, no weights": replace(sampled, cell=3, total=total, weights=False),
        "sampled 3, 3 rings": replace(sampled, cell=3, dilate=3, total=total),
        "sampled 2": sampled,
        "sampled 2, 1 ring": replace(sampled, dilate=1, total=total),
        "half detail, half random": _half(total, edit, plan.tokens_full),
        "foveated": foveated(2.0, bucket=1),
        "pyramid": Pyramid(bucket=1, growth=2.0),
        # Context computed at some steps and reused at the others.
        "whole, once (balanced)": WHOLE,
        "whole, twice (faithful)": replace(FAITHFUL, bucket=1),
        "attended 25 %, once": Attended(detail=1.0, coarse=0, bucket=1, refresh=(0,)),
        "attended 10 %, once": Attended(detail=1.0, coarse=0, bucket=1, refresh=(0,), share=0.1),
        "whole, 1 ring, once": replace(WHOLE, dilate=1, refresh=Refresh((0,), text=True)),
        "sampled 2, twice (fast)": replace(FAST, bucket=1),
        "sampled 2, twice, no weights": replace(FAST, weights=False, bucket=1),
        "sampled 3, twice": replace(FAST, cell=3, bucket=1),
        "sampled 2, 1 ring, twice": replace(FAST, dilate=1, bucket=1),
        "foveated, twice": foveated(1.0, bucket=1, refresh=Refresh((0, 4), text=True)),
    }
    return {name: (method, STEPS) for name, method in chosen.items()} | {
        "dense, 2 steps": (Dense(), 2)
    }


def _half(total: int, edit: int, tokens: int) -> HiLo:
    """Half of the context by detail, half at random: a mix of two kinds of evidence."""
    half = (total - edit) / 2 / tokens
    return Spread(context="sampled", cell=GRID, detail=half, total=total)


@dataclass(frozen=True)
class Row:
    """One picture under one selection.

    tokens:     that run in a call with context
    flops:      of all steps, as a share of dense's eight
    psnr:       dB in the mask, to the truth; of a range of 2
    solved:     whether that is above SOLVED
    psnr_dense: to dense from the same noise; empty for dense itself
    v_*:        mean squared error of the velocity in the mask at that noise level, where measured;
                with context kept from noise level 1 where it is reused
    """

    model: str
    kind: str
    ground: str
    number: int
    selection: str
    tokens: int
    flops: float
    psnr: float
    solved: int
    psnr_dense: float | None
    v_1: float | None = None
    v_08: float | None = None
    v_06: float | None = None
    v_04: float | None = None
    v_02: float | None = None


class Bench:
    """A model at work on held-out pictures."""

    def __init__(self, name: str) -> None:
        self.name, self.model = name, load(name)
        self.pipe, self.linear = self.model.pipeline(), self.model.pipeline()
        # Without a shift, so that the noise levels are those given.
        self.linear.scheduler = FlowMatchEulerDiscreteScheduler()

    def rows(self, case: Case, wanted: list[str], velocities: bool) -> Iterator[Row]:
        """Rows of the selections wanted; the errors of velocity where asked for."""
        x0_NC = tokens_of(case.picture.image_B3HW)[0]
        hidden_N = case.picture.mask_Bhw.flatten()
        dense_NC = self._fill(case, Dense(), STEPS)[0]
        compass = self._compass(case) if velocities else None
        for name, (method, steps) in selections(case).items():
            if name not in wanted:
                continue
            out_NC, plan = self._fill(case, method, steps)
            sigmas = self.pipe.scheduler.sigmas[:-1].tolist()
            share = CONTEXT.share(plan, method, sigmas) * steps / STEPS
            true = psnr(out_NC[hidden_N], x0_NC[hidden_N])
            errors = compass.errors(method) if compass and steps == STEPS else [None] * len(SIGMAS)
            yield Row(
                self.name,
                case.kind,
                GROUNDS[int(case.picture.ground_B)],
                case.number,
                name,
                plan.tokens_run,
                round(share, 5),
                round(true, 3),
                int(true > SOLVED),
                None if name == "dense" else round(psnr(out_NC[hidden_N], dense_NC[hidden_N]), 3),
                *(None if error is None else round(error, 6) for error in errors),
            )

    def _fill(self, case: Case, method: Any, steps: int) -> tuple[Tensor, TokenPlan]:
        fast = compress(self.pipe, method)
        given = case.arguments(self.model) | {"num_inference_steps": steps}
        out_BNC = fast(**given, generator=case.noise()).images
        assert fast.last_run is not None
        return out_BNC[0], fast.last_run.plan

    def _compass(self, case: Case) -> Compass:
        return Compass(self.linear, case.arguments(self.model), case.seed, calls=len(SIGMAS))


def psnr(one: Tensor, other: Tensor) -> float:
    """In dB of a range of 2; at most 80."""
    return float(10 * torch.log10(4 / (one - other).square().mean().clamp_min(4e-8)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dense", help="which of the weights")
    parser.add_argument("--pictures", type=int, default=100, help="held out, a kind")
    parser.add_argument("--velocities", type=int, default=40, help="of them with velocity errors")
    parser.add_argument("--first", type=int, default=0, help="the first picture")
    parser.add_argument("--only", nargs="*", default=[], help="some selections")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    out = given.out or RESULTS / f"{given.model}.csv"
    try:
        _measure(given, out)
    except KeyboardInterrupt:
        print(f"broken off; the same command goes on from {out}")


@torch.no_grad()
def _measure(given: argparse.Namespace, out: Path) -> None:
    torch.set_num_threads(1)
    bench = Bench(given.model)
    done = {(r["kind"], int(r["number"]), r["selection"]) for r in read(out)}
    cases = [held_out(kind, given.pictures)[given.first :] for kind in KINDS]
    with experimental():
        names = given.only or list(selections(cases[0][0]))
        # Kind by turns, so that what is broken off is still a sample of all.
        for case in tqdm([c for turn in zip(*cases, strict=True) for c in turn], unit="picture"):
            left = [n for n in names if (case.kind, case.number, n) not in done]
            for row in bench.rows(case, left, case.number < given.velocities) if left else ():
                append(out, row)


if __name__ == "__main__":
    main()
