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
from ...grid import touch
from ...methods.dense import whole_plan
from ...methods.parse import method_from
from ...methods.within import Within
from ...plan import TokenPlan, as_batch, plan_tokens
from .flops import flops_by_pass, steps_alike

Ladder = list[str]  # settings of one method, from the dearest to the cheapest
THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
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
        method = method_from(*setting.split())
        key = setting, *_follows_from(method, case)
        if key not in self._counted:
            steps = 1 if steps_alike(method) else self.steps
            edit = partial(compress(self.pipe, method), **case.arguments, generator=case.noise())
            passes = flops_by_pass(partial(edit, num_inference_steps=steps), self.pipe.transformer)
            self._counted[key] = sum(passes) * self.steps / steps
        return self._counted[key]


def _follows_from(method: Any, case: Case) -> tuple[object, ...]:
    """What a method's cost follows from, besides its options."""
    refresh, plan = getattr(method, "refresh", None), _plan(method, case)
    if refresh == "auto" or hasattr(method, "threshold"):
        return case.name, case.mask_class, case.seed
    return plan.tokens_run, plan.counts["edit"] if refresh is not None else 0


def _plan(method: Any, case: Case) -> TokenPlan:
    """The tokens that a method runs of the case's grid; all of them where it plans none."""
    if isinstance(method, Within):
        return _plan(method.outer, case)
    photo, mask = case.photo.astype(np.float32) / 255, case.mask.astype(np.float32)
    grid = case.mask.shape[0] // TOKEN, case.mask.shape[1] // TOKEN
    if hasattr(method, "plan"):
        return plan_tokens(photo, mask, grid=grid, method=method)
    if hasattr(method, "smaller"):
        return method.smaller(as_batch(photo, 3), as_batch(mask, 1), TOKEN)[1]
    return whole_plan(grid, touch(as_batch(mask, 1), grid)[0].flatten())


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
    """The settings of every method that is not a HiLo, on a grid of `side` tokens a side.

    Merging is in attention alone where that saves enough, and in the feed-forward too where it
    does not. What would be dense is left out.
    """
    sides = range(2, min(8, side) + 1)
    return {
        **{name: _merging(name, 0.75) for name in ("tome", "bigain_tm")},
        "pooling": _merging("pooling", 0.95),
        "sdtm": [[f"sdtm ratio={r} deviation={min(0.2, r, 0.75 - r):.2g}" for r in _shares(0.75)]],
        **{name: [[f"{name} factor={n}" for n in sides]] for name in ("todo", "bigain_td")},
        "downsample": [[f"downsample factor={n}" for n in sides]],
        "crop_stitch": [[f"crop_stitch margin={n}" for n in range(side - 1, -1, -1)]],
        "step_cache": [[f"step_cache threshold={t}" for t in THRESHOLDS]],
        "fewer_steps": [[f"fewer_steps share={k / steps:.3g}" for k in range(steps - 1, 0, -1)]],
    }


def _merging(name: str, most: float) -> list[Ladder]:
    plain = [f"{name} ratio={ratio}" for ratio in _shares(most)]
    return [plain, [f"{setting} feed_forward=True" for setting in plain]]


def _shares(most: float) -> list[float]:
    return [i / 20 for i in range(1, round(20 * most) + 1)]
