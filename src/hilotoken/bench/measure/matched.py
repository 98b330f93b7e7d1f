"""Every method at the same cost: FLOPs of the DiT counted, and each method's own knob set by them.

A setting is a method with its options, as text: what `--method` takes.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ...compress import compress
from ...data.cases import CLASSES, TOKEN, Case, cases_of
from ...data.samples import Sample
from ...method import Method
from ...methods import METHODS, plan_tokens
from ...methods.parse import read_method
from .flops import flops_by_pass

Ladder = list[str]  # settings of one method, from the dearest to the cheapest
PROBES = 8  # photographs whose masks the knobs are set by


class Costs:
    """FLOPs of the DiT over a whole edit, as shares of dense.

    They follow from the setting and from how many tokens the plan keeps, so each such pair is
    counted once; but case by case for what looks at the picture as it comes to be.
    """

    def __init__(self, pipe: Any, steps: int) -> None:
        self.pipe, self.steps = pipe, steps
        self._counted: dict[tuple[object, ...], float] = {}

    def share(self, setting: str, case: Case) -> float:
        """What the setting costs under this mask, over what dense does."""
        return self._flops(setting, case) / self._flops("dense", case)

    def mean(self, setting: str, cases: Sequence[Case]) -> float:
        """The mean share over cases."""
        return fmean(self.share(setting, case) for case in cases)

    def _flops(self, setting: str, case: Case) -> float:
        fast = compress(self.pipe, read_method(setting))
        method = fast.method
        key = setting, *_follows_from(method, case)
        if key not in self._counted:
            steps = 1 if method.alike else self.steps
            edit = partial(fast, **case.arguments, generator=case.noise())
            passes = flops_by_pass(partial(edit, num_inference_steps=steps), self.pipe.transformer)
            self._counted[key] = sum(passes) * self.steps / steps
        return self._counted[key]


def _follows_from(method: Method, case: Case) -> tuple[object, ...]:
    """What a method's cost follows from, besides its options."""
    if method.adaptive:
        return case.name, case.mask_class, case.seed
    photo, mask = case.photo.astype(np.float32) / 255, case.mask.astype(np.float32)
    grid = case.mask.shape[0] // TOKEN, case.mask.shape[1] // TOKEN
    plan = plan_tokens(photo, mask, grid=grid, method=method)
    return plan.tokens_run, plan.counts["edit"] if method.refresh is not None else 0


def matched_settings(
    like: str, files: Iterable[Path | Sample], costs: Costs, size: int
) -> dict[str, dict[str, str]]:
    """For each class of masks, every method at the cost of `like` under such masks, by its name.

    The cost is the mean over the first photographs of a class, whatever the number to be filled,
    so that the settings stay when more are added. See `matched`.
    """
    cases: dict[str, list[Case]] = {name: [] for name in CLASSES}
    for file in files:
        if all(len(found) >= PROBES for found in cases.values()):
            break
        for case in cases_of(file, size):
            cases[case.mask_class].append(case)
    return {
        name: dict(matched(like, found[:PROBES], costs)) for name, found in cases.items() if found
    }


def matched(like: str, cases: Sequence[Case], costs: Costs) -> Iterator[tuple[str, str]]:
    """Every method at the cost of `like` on these cases, by its name: the nearest it can come.

    Of a method with several ladders the first that reaches down to that cost is taken; one that
    reaches it by none runs at its most saving setting. `random_keep` runs as many tokens as `like`.

    Raises:
        ValueError: `like` is no HiLo: there is no budget; or a method that cannot run on the grid.
    """
    name, *options = like.split()
    if name != "hilo" or "+" in options:
        raise ValueError(f"the budget is that of HiLo alone: name it first, not {like!r}")
    budget = costs.mean(like, cases)
    yield "random_keep", " ".join(["random_keep", *filter(_of_random, options)])
    for method, ladders in ladders_of(costs.steps, cases[0].mask.shape[0] // TOKEN).items():
        yield method, nearest(ladders, budget, partial(costs.mean, cases=cases))


def _of_random(option: str) -> bool:
    return option.partition("=")[0] in ("dilate", "detail", "coarse", "bucket")


def nearest(ladders: Sequence[Ladder], budget: float, share: Callable[[str], float]) -> str:
    """The setting whose share is nearest to the budget, on the first ladder that reaches it."""
    ladder = next((each for each in ladders if share(each[-1]) <= budget), ladders[-1])
    below = bisect_left(ladder, -budget, key=lambda setting: -share(setting))
    around = ladder[max(0, below - 1) : below + 1]
    return min(around, key=lambda setting: abs(share(setting) - budget))


def ladders_of(steps: int, side: int) -> dict[str, list[Ladder]]:
    """The settings of every method that has a knob, on a grid of `side` tokens a side."""
    knobs = {name: kind.knob(steps, side) for name, kind in METHODS.items()}
    return {
        name: [[f"{name} {options}" for options in ladder] for ladder in ladders]
        for name, ladders in knobs.items()
        if ladders
    }
