"""Measure every selection on held-out pictures: `python -m benchmarks.context.evaluate`.

Training-free, each picture under every selection from the same noise, in eight steps of FLUX.1's
schedule. Pictures under one mask run in one call, each by its own plan. Rows are appended as they
are made: break it off and call it again, and it goes on.

N grid tokens, C channels of x_t.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Generator, Tensor
from tqdm import tqdm

from hilotoken import HiLo, Refresh, compress, plan_tokens
from hilotoken.bench.measure.compass import Compass
from hilotoken.methods import Dense
from hilotoken.methods.presets import IN_NOISE_ALONE
from hilotoken.plan import TokenPlan

from .flops import CONTEXT
from .model import MAIN, ContextModel, load, tokens_of
from .pictures import BROAD, GRID, GROUNDS, KINDS, SIDE, Pictures, draw, enlarge
from .rows import RESULTS, append, read
from .selections import Attended, Needed, Pyramid, Spread, experimental, foveated

STEPS = 8
SIGMAS = (1.0, 0.8, 0.6, 0.4, 0.2)
HELD_OUT, BATCH = 400, 20  # pictures a kind, and under one mask
ROWS = 4  # of rows under one mask: their frames all stand alike there
NUMBERS = {name: k for k, name in enumerate([*KINDS, *BROAD])}
SOLVED = 20.0  # dB in the mask, of a range of 2
NOTHING = HiLo(detail=0.0, coarse=0, bucket=1)
WHOLE = HiLo(detail=1.0, coarse=0, bucket=1, refresh=1)
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
    def hidden(self) -> tuple[int, ...]:
        """The hidden tokens, by their number."""
        return tuple(self.picture.mask_Bhw.flatten().nonzero().flatten().tolist())

    @property
    def seed(self) -> int:
        return 1000 * NUMBERS[self.kind] + self.number

    def plan(self, method: HiLo) -> TokenPlan:
        return plan_tokens(self.photo_13HW, self.mask_11HW, grid=(GRID, GRID), method=method)

    @cached_property
    def need(self) -> tuple[int, ...]:
        return tuple(self.picture.need_Bhw.flatten().nonzero().flatten().tolist())


def held_out(kind: str, count: int) -> list[Case]:
    """Pictures that no training draws: their generators' seeds are beyond those of any step.

    Every BATCH of them lie under one mask, so that one call can fill them.
    """
    size = ROWS if kind == "row" else BATCH
    cases: list[Case] = []
    while len(cases) < count:
        seed = 10**12 + 1000 * NUMBERS[kind] + len(cases)
        drawn = draw(kind, size, Generator().manual_seed(seed), one_mask=True)
        parts = [{k: v[i : i + 1] for k, v in vars(drawn).items()} for i in range(size)]
        cases += [Case(kind, len(cases) + i, Pictures(**part)) for i, part in enumerate(parts)]
    return cases[:count]


def arguments(cases: Sequence[Case], model: ContextModel) -> dict[str, Any]:
    """What the pipeline is given for a batch under one mask, but for its steps."""
    kinds_B = torch.tensor([model.kinds.index(case.kind) for case in cases])
    # All of the mask begins as noise.
    return (
        ({} if model.shown else {"strength": 1.0})
        | {
            "image": torch.cat([case.photo_13HW for case in cases]),
            "mask_image": cases[0].mask_11HW,
            "height": SIDE,
            "width": SIDE,
            "output_type": "latent",
            "generator": [Generator().manual_seed(case.seed) for case in cases],
        }
        | model.prompt(kinds_B)
    )


def selections(case: Case) -> dict[str, tuple[Any, int]]:
    """Every selection by name: the method and its steps.

    Those that choose context at every step run as many tokens as the paper's selection under the
    same mask, or else as few as they are named for. Those that reuse context cost what they cost.
    """
    paper = HiLo(bucket=1)
    plan = case.plan(replace(paper, score="random"))  # its count, whatever the picture
    total, edit = plan.tokens_run, plan.counts["edit"]
    free = (total - edit) / plan.tokens_full
    detail = replace(NOTHING, detail=free)
    sampled = Spread(context="sampled", detail=0.0, bucket=1)
    twice, once = Refresh(2, text=True), Refresh(1, text=True)
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
        "whole, once": WHOLE,
        "whole, twice": replace(WHOLE, refresh=2),
        "whole, twice, text kept": replace(WHOLE, refresh=twice),
        "attended 25 %, once": Attended(detail=1.0, coarse=0, bucket=1, refresh=1),
        "attended 10 %, once": Attended(detail=1.0, coarse=0, bucket=1, refresh=1, share=0.1),
        "whole, 1 ring, once": replace(WHOLE, dilate=1, refresh=once),
        "detail 40 %, once": replace(NOTHING, detail=0.4, refresh=once),
        "paper, twice": replace(paper, refresh=twice),
        "detail, twice": HiLo(coarse=0, bucket=1, refresh=twice),
        "sampled 2, twice": replace(sampled, refresh=twice),
        "sampled 2, twice, no weights": replace(sampled, weights=False, refresh=twice),
        "sampled 3, twice": replace(sampled, cell=3, refresh=twice),
        "detail and sampled 3, twice": HiLo(context="sampled", cell=3, bucket=1, refresh=twice),
        "detail and sampled 3, once": HiLo(context="sampled", cell=3, bucket=1, refresh=once),
        "sampled 2, 1 ring, twice": replace(sampled, dilate=1, refresh=twice),
        "foveated, twice": foveated(1.0, bucket=1, refresh=twice),
    }
    return {name: (method, STEPS) for name, method in chosen.items()} | {
        "dense, 2 steps": (Dense(), 2)
    }


def in_noise(case: Case) -> dict[str, tuple[Any, int]]:
    """The selections for a model that sees the photo in x_t alone: when is context computed?"""
    given = selections(case)
    names = ("dense", "edit only", "random", "paper", "detail", "sampled 2")
    chosen = {name: given[name][0] for name in names}
    chosen |= {f"whole, at 0 and {k}": replace(WHOLE, refresh=(0, k)) for k in range(2, 7)}
    chosen |= {
        f"preset {name}": replace(preset, bucket=1)
        for name, preset in IN_NOISE_ALONE.items()
        if name != "paper"
    }
    chosen["whole, at 0, 2 and 4"] = replace(WHOLE, refresh=(0, 2, 4))
    chosen["whole, four times"] = replace(WHOLE, refresh=4)
    found = {name: (method, STEPS) for name, method in chosen.items()}
    return found | {"dense, half the steps": (Dense(), STEPS // 2)}


def _half(total: int, edit: int, tokens: int) -> HiLo:
    """Half of the context by detail, half at random: a mix of two kinds of evidence."""
    half = (total - edit) / 2 / tokens
    return Spread(context="sampled", cell=GRID, detail=half, total=total)


def alone(method: Any) -> bool:
    """Whether it is made for one picture, and takes a call for each."""
    return isinstance(method, Needed | Attended)


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
        self.name, self.model = Path(name).stem, load(name)
        self.selections = selections if self.model.shown else in_noise
        self.shape = replace(CONTEXT, channels_in=self.model.transformer.x_embedder.in_features)
        self.pipe, self.linear = self.model.pipeline(), self.model.pipeline()
        # Without a shift, so that the noise levels are those given.
        self.linear.scheduler = FlowMatchEulerDiscreteScheduler()

    def rows(
        self, cases: Sequence[Case], name: str, dense_BNC: Tensor, velocities: bool = False
    ) -> list[Row]:
        """Rows of one selection for pictures under one mask."""
        method, steps = self.selections(cases[0])[name]
        if alone(method) and len(cases) > 1:
            pairs = zip(cases, dense_BNC.split(1), strict=True)
            return [r for case, d_BNC in pairs for r in self.rows([case], name, d_BNC, velocities)]
        out_BNC, plans = self.fill(cases, method, steps)
        sigmas = self.pipe.scheduler.sigmas[:-1].tolist()
        x0_BNC = tokens_of(torch.cat([case.picture.image_B3HW for case in cases]))
        hidden = list(cases[0].hidden)
        true_B = psnr(out_BNC[:, hidden], x0_BNC[:, hidden])
        near_B = psnr(out_BNC[:, hidden], dense_BNC[:, hidden])
        errors_BV: list[list[float | None]] = [[None] * len(SIGMAS)] * len(cases)
        if velocities and steps == STEPS:
            errors_BV = self._compass(cases).errors_by_picture(method).T.tolist()
        return [
            Row(
                self.name,
                case.kind,
                GROUNDS[int(case.picture.ground_B)],
                case.number,
                name,
                plan.tokens_run,
                round(self.shape.share(plan, method, sigmas) * steps / STEPS, 5),
                round(float(true), 3),
                int(true > SOLVED),
                None if name == "dense" else round(float(near), 3),
                *(None if error is None else round(error, 6) for error in errors_V),
            )
            for case, plan, true, near, errors_V in zip(
                cases, plans, true_B, near_B, errors_BV, strict=True
            )
        ]

    def fill(
        self, cases: Sequence[Case], method: Any, steps: int = STEPS
    ) -> tuple[Tensor, list[TokenPlan]]:
        """The filled pictures as tokens, and the plans that they were filled by."""
        fast = compress(self.pipe, method)
        out_BNC = fast(**arguments(cases, self.model), num_inference_steps=steps).images
        assert fast.last_run is not None
        return out_BNC, [fast.last_run.of_picture(i, len(cases)).plan for i in range(len(cases))]

    def _compass(self, cases: Sequence[Case]) -> Compass:
        given = arguments(cases, self.model)
        return Compass(self.linear, given, cases[0].seed, calls=len(SIGMAS))


def psnr(one_BNC: Tensor, other_BNC: Tensor) -> Tensor:
    """Of each picture, in dB of a range of 2; at most 80."""
    error_B = (one_BNC - other_BNC).square().mean((1, 2))
    return 10 * torch.log10(4 / error_B.clamp_min(4e-8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MAIN, help="which of the weights, or their file")
    parser.add_argument("--pictures", type=int, default=HELD_OUT, help="held out, a kind")
    parser.add_argument("--alone", type=int, default=HELD_OUT, help="of them, where a call is one")
    parser.add_argument("--velocities", type=int, default=40, help="of them with velocity errors")
    parser.add_argument("--kinds", nargs="+", choices=[*NUMBERS], default=[])
    parser.add_argument("--only", nargs="*", default=[], help="some selections")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    out = given.out or RESULTS / f"{Path(given.model).stem}.csv"
    try:
        _measure(given, out)
    except KeyboardInterrupt:
        print(f"broken off; the same command goes on from {out}")


@torch.no_grad()
def _measure(given: argparse.Namespace, out: Path) -> None:
    torch.set_num_threads(1)
    bench = Bench(given.model)
    done = {(r["kind"], int(r["number"]), r["selection"]) for r in read(out)}
    named = given.kinds or bench.model.kinds
    kinds = [held_out(kind, given.pictures) for kind in named]
    starts = range(0, given.pictures, BATCH)
    # Kinds by turns, so that what is broken off is still a sample of all.
    turns = [cases[start : start + BATCH] for start in starts for cases in kinds]
    groups = [list(mine) for cases in turns for _, mine in groupby(cases, lambda c: c.hidden)]
    with experimental():
        for group in tqdm(groups, unit="mask"):
            dense_BNC = bench.fill(group, Dense())[0]
            for name, (method, _) in bench.selections(group[0]).items():
                limit = given.alone if alone(method) else given.pictures
                for quick in (True, False):
                    left = [
                        i
                        for i, case in enumerate(group)
                        if (case.number < given.velocities) is quick
                        and case.number < limit
                        and name in (given.only or [name])
                        and (case.kind, case.number, name) not in done
                    ]
                    if left:
                        some = [group[i] for i in left]
                        for row in bench.rows(some, name, dense_BNC[left], velocities=quick):
                            append(out, row)


if __name__ == "__main__":
    main()
