"""`hilo bench ablate`: one choice of HiLo at a time, every variant at the same token count.

A group holds the variants of one choice; the first is the default. Under a mask, the longest
variant of a group sets the length, and the others are filled up to it with the next-best detail
tokens, so that no variant wins by running more. Only `allocation`, which moves tokens from plain
photographs to busy ones, is equal on the mean of the photographs at hand instead.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...compress import compress
from ...data.cases import TOKEN, Case, cases_of
from ...methods import Dense, HiLo, plan_tokens
from ...methods.parse import as_words
from ...metrics.lpips import LPIPS
from ...metrics.regions import Distances, distances, see
from ...plan import TokenPlan
from ...scores import SCORES
from .compass import Compass

Options = Mapping[str, Any]
Key = tuple[str, str, str, str]

ENERGY = "energy"  # the variant whose share of energy is set by the photographs at hand
GROUPS: dict[str, dict[str, Options]] = {
    "score": {name: {"score": name} for name in (*SCORES, "random")},
    "allocation": {"detail": {"bucket": 1}, ENERGY: {"bucket": 1}},
    "context": {
        "frequency": {},
        "frequency, weighted": {"weights": True},
        "sampled": {"context": "sampled", "weights": False},
        "sampled, weighted": {"context": "sampled"},
        "one of 3x3, weighted": {"context": "sampled", "cell": 3},
    },
    # Without a share of detail of its own, so that the length is that of the widest alone.
    "dilation": {f"dilate {n}": {"dilate": n, "detail": 0.0} for n in (2, 0, 1, 3, 4)},
    "coarse": {f"coarse {n}": {"coarse": n} for n in (4, 0, 2, 8)},
    "positions": {name: {"positions": name} for name in ("interpolated", "aligned", "native")},
}
REFRESH: dict[str, Options] = {
    "every step": {},
    "steps 0, 2, 5": {"refresh": (0, 2, 5)},
    "steps 0, 1, 2, 5": {"refresh": (0, 1, 2, 5)},
    "steps 0, 4": {"refresh": (0, 4)},
}
KNOWN = {**GROUPS, "refresh": REFRESH}


@dataclass(frozen=True)
class AblateRow:
    """One variant under one mask of one photograph; pictures are compared in the mask.

    default:   whether it is the group's default
    tokens_run, mean_tokens_run: of a call with context, and over the steps
    velocity:  error of one call over the dense one's, at fixed noise; empty where context is reused
    psnr_dense: dB, to dense from the same noise; empty, with the next two, without fills
    lpips:     to the truth; lpips_over_dense: the same less dense's
    """

    photo: str
    mask_class: str
    mask_share: float
    group: str
    variant: str
    default: bool
    options: str
    seed: int
    size: int
    steps: int
    tokens_full: int
    tokens_run: int
    mean_tokens_run: float
    velocity: float | None
    psnr_dense: float | None
    lpips: float | None
    lpips_over_dense: float | None


@dataclass(frozen=True, eq=False)
class Contest:
    """A photograph under a mask, and the methods that it is to be filled by: group, variant."""

    case: Case
    methods: dict[tuple[str, str], HiLo]


def contests(files: Sequence[Path], size: int, groups: Sequence[str], steps: int) -> list[Contest]:
    """Every photograph under a mask of each class, with variants of equal length.

    Where the longest variant of a group runs every token, the group is left out: none of it could
    differ from dense.

    Raises:
        ValueError: an unknown group; a size that is no multiple of a token; too few steps.
    """
    if unknown := [name for name in groups if name not in KNOWN]:
        raise ValueError(f"unknown group {unknown[0]!r}; choose from {list(KNOWN)}")
    if size % TOKEN:
        raise ValueError(f"size must be a multiple of {TOKEN} pixels, got {size}")
    if "refresh" in groups and steps < 6:
        raise ValueError(
            f"the schedules of refresh have steps up to 5: give 6 or more, got {steps}"
        )
    cases = [case for file in files for case in cases_of(file, size)]
    shares: dict[str, float | None] = {}
    if "allocation" in groups:
        for mask_class in {case.mask_class for case in cases}:
            shares[mask_class] = _energy_share([c for c in cases if c.mask_class == mask_class])
    return [Contest(case, _methods(groups, case, shares, steps)) for case in cases]


def _methods(
    groups: Sequence[str], case: Case, shares: Mapping[str, float | None], steps: int
) -> dict[tuple[str, str], HiLo]:
    found: dict[tuple[str, str], HiLo] = {}
    for group in groups:
        made = _variants(group, case, shares.get(case.mask_class), steps)
        found |= {(group, name): method for name, method in made.items()}
    return found


def _plan(case: Case, method: HiLo) -> TokenPlan:
    grid = case.photo.shape[0] // TOKEN, case.photo.shape[1] // TOKEN
    photo = case.photo.astype(np.float32) / 255
    return plan_tokens(photo, case.mask.astype(np.float32), grid=grid, method=method)


def _variants(group: str, case: Case, share: float | None, steps: int) -> dict[str, HiLo]:
    """The methods of a group, all of one length; none where that is the whole grid."""
    if group == "allocation":
        energy = None if share is None else HiLo(bucket=1, energy=share)
        return {"detail": HiLo(bucket=1), ENERGY: energy} if energy else {}
    methods = {name: HiLo(**{"bucket": 1, **options}) for name, options in KNOWN[group].items()}
    plans = {name: _plan(case, method) for name, method in methods.items()}
    length = max(plan.tokens_run for plan in plans.values())
    full = next(iter(plans.values())).tokens_full
    if length >= full:
        return {}
    filled = {name: replace(method, bucket=length) for name, method in methods.items()}
    if group == "refresh":
        edit = next(iter(plans.values())).counts["edit"]
        filled = {
            name: _longer(method, length, edit, full, steps) for name, method in filled.items()
        }
    return filled


def _longer(method: HiLo, length: int, edit: int, full: int, steps: int) -> HiLo:
    """The method with as much more context as its seldom refreshing pays for."""
    refresh: Any = method.refresh
    if refresh is None:
        return method
    share = len(refresh.at) / steps
    return replace(method, bucket=min(full, round((length - (1 - share) * edit) / share)))


def _energy_share(cases: Sequence[Case]) -> float | None:
    """The share of energy that keeps as many tokens as the default, on the mean of photographs.

    None where no share comes within 2 %: a photograph nearly all of which runs may jump to the
    whole of it.
    """

    def mean(method: HiLo) -> float:
        return float(np.mean([_plan(case, method).tokens_run for case in cases]))

    wanted, low, high = mean(HiLo(bucket=1)), 0.0, 1.0
    kept: dict[float, float] = {}
    for _ in range(9):
        middle = (low + high) / 2
        kept[middle] = mean(HiLo(bucket=1, energy=middle))
        low, high = (middle, high) if kept[middle] < wanted else (low, middle)
    best = min(kept, key=lambda share: abs(kept[share] - wanted))
    return best if abs(kept[best] - wanted) <= 0.02 * wanted else None


def bench_ablate(
    pipe: Any,
    contest: Contest,
    perceptual: LPIPS | None,
    *,
    steps: int = 8,
    done: Container[Key] = (),
) -> Iterator[AblateRow]:
    """Rows of a contest, but for those that are there already.

    Args:
        perceptual: None for the velocity alone, without fills
        done: photo, class, group and variant of rows that need not be measured again
    """
    case = contest.case
    wanted = {
        (group, variant): method
        for (group, variant), method in contest.methods.items()
        if (case.name, case.mask_class, group, variant) not in done
    }
    if not wanted:
        return
    compass = Compass(pipe, case.arguments, case.seed)
    dense = _fill(pipe, Dense(), case, steps)[0] if perceptual else None
    for (group, variant), method in wanted.items():
        plan = _plan(case, method)
        figures: dict[str, float | None] = dict.fromkeys(
            ("psnr_dense", "lpips", "lpips_over_dense")
        )
        mean_run: float = plan.tokens_run
        if perceptual and dense is not None:
            filled, mean_run = _fill(pipe, method, case, steps)
            true, own, near = (
                _between(perceptual, case.mask, *pair)
                for pair in ((filled, case.truth), (dense, case.truth), (filled, dense))
            )
            figures = {
                "psnr_dense": near.psnr,
                "lpips": true.lpips,
                "lpips_over_dense": true.lpips - own.lpips,
            }
        yield AblateRow(
            photo=case.name,
            mask_class=case.mask_class,
            mask_share=float(case.mask.mean()),
            group=group,
            variant=variant,
            default=variant == next(iter(KNOWN[group])),
            options=as_words(method),
            seed=case.seed,
            size=case.truth.shape[0],
            steps=steps,
            tokens_full=plan.tokens_full,
            tokens_run=plan.tokens_run,
            mean_tokens_run=mean_run,
            velocity=compass.ratio(method) if method.refresh is None else None,
            **figures,
        )


def _between(perceptual: LPIPS, mask: np.ndarray, one: np.ndarray, other: np.ndarray) -> Distances:
    return distances(perceptual, see(perceptual, one), see(perceptual, other), mask)


def _fill(pipe: Any, method: Any, case: Case, steps: int) -> tuple[np.ndarray, float]:
    """The fill, and the mean tokens a step that it ran on."""
    fast = compress(pipe, method)
    output = fast(**case.arguments, num_inference_steps=steps, generator=case.noise())
    assert fast.last_run is not None
    return np.asarray(output.images[0]), fast.last_run.mean_tokens_run
