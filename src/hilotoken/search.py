"""A run without a mask: every token runs until what changes is found, then that alone.

B batch, N tokens of the grid h w, C channels of a token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .methods.find import LATEST, Find, Look, grown, look


class Searching:
    """A run that looks for its region, and runs by what is known of it: see `Search`.

    dense: the steps at which every token ran, found in vain or before it was looked for

    Args:
        run: the `Lane` whose plan it changes
        find: the options
    """

    def __init__(self, run: Any, find: Find) -> None:
        self.run, self.find = run, find
        self.search: Search | None = None  # of what is not known before the first call
        self.dense: list[int] = []
        self._region_hw: Tensor | None = None  # that the plan in force was made by

    def begin(self, photo_size: torch.Size) -> None:
        """Begin with the run's source: of a photo whose output has another size, in vain."""
        run = self.run
        size, steps = run.source.photo_B3HW.shape[-2:], len(run.pipe.scheduler.sigmas) - 1
        same = size == photo_size
        self.search = Search(
            self.find,
            run.source.latents_BNC,
            run.source.grid,
            run.family.latents_a_side,
            steps - run.clock.index,
            run.method.find is not None,
            "" if same else f"the output is {tuple(size)}, the photo {tuple(photo_size)}",
        )

    @property
    def found(self) -> bool:
        """Whether there is a region to run by."""
        return self.search is not None and self.search.found

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why every token ran, and why no pixel of the photo was put back."""
        return self.search.reasons if self.search else ()

    def follow(self, step: int) -> None:
        """Run the step as far as the region is known."""
        run, search = self.run, self.search
        assert search is not None
        region_hw = search.plan(step)
        if region_hw is None:
            if run.short is not None:
                run.rest()
            self.dense.append(step)
        elif region_hw is not self._region_hw or run.short is None:
            run.use(run.planned(), carry=run.short is not None)
        if run.reuse and not search.found:
            run.reuse.start = step  # what is kept is of the last step that looked in vain
        self._region_hw = region_hw

    def look(self, velocity: Tensor, sample: Tensor) -> None:
        """Look at where the run is going, once guidance is over and before the scheduler steps."""
        run, search, step = self.run, self.search, self.run.clock.step
        every = run.short is None or run.reuse is None or run.reuse.refreshing
        if not (search and every and search.due(step)):
            return
        with run.watch.time("plan"):
            x0 = sample.float() - run.clock.sigma * velocity.float()
            x0_BTC = x0 if x0.ndim == 3 else run.family.pack(x0)
            search.see(step, run.clock.sigma, x0_BTC[:, : run.plan.tokens_full])
        shown_11hw = search.shown_hw[None, None].to(run.mask_B1HW)
        run.mask_B1HW = F.interpolate(shown_11hw, run.mask_B1HW.shape[-2:])


class Search:
    """What is known of the region that changes: nothing at first, then a region that may grow.

    region_hw: the region found, grown, bool [h, w]; None while every token runs
    reason:    why every token runs, or ran; empty once a region is found

    Args:
        find: the options
        source_BNC, grid, fold: see `methods.find.look`
        steps: of the run
        early: whether it is found during the run, to save what it costs; else at the end alone
        reason: why the region cannot be found at all, if so
    """

    def __init__(
        self,
        find: Find,
        source_BNC: Tensor,
        grid: tuple[int, int],
        fold: int,
        steps: int,
        early: bool,
        reason: str = "",
    ) -> None:
        self.find, self.source_BNC, self.grid, self.fold = find, source_BNC, grid, fold
        self.steps, self.early, self.impossible = steps, early, bool(reason)
        self.first = find.dense_steps(steps)
        self.reason = reason
        if early and not reason and steps < find.fewest:
            self.early, self.reason = False, f"{steps} steps, fewer than {find.fewest}"
        elif early and not reason and self.first + find.last >= steps:
            self.early, self.reason = False, f"{steps} steps, all of them dense ones or the last"
        self.region_hw: Tensor | None = None
        self.end: Look | None = None  # of a run that every token ran to the end
        self._changed_hw = torch.zeros(grid, dtype=torch.bool)  # the region before it is grown
        self._looks: list[Look] = []

    @property
    def found(self) -> bool:
        """Whether there is a region to run by."""
        return self.region_hw is not None

    def plan(self, step: int) -> Tensor | None:
        """The region to run this step by; an empty one to run, and keep, all; None to run all."""
        if self.region_hw is not None:
            return None if step >= self.steps - self.find.last else self.region_hw
        if not self.early or not self.first - 1 <= step < LATEST * self.steps:
            return None
        return torch.zeros(self.grid, dtype=torch.bool)

    def due(self, step: int) -> bool:
        """Whether a step that runs every token is to be looked at."""
        if self.impossible:
            return False
        if self.region_hw is not None:
            return self.find.recheck
        return step == self.steps - 1 or (self.early and step >= self.first - self.find.looks)

    def see(self, step: int, sigma: float, x0_BNC: Tensor) -> None:
        """Look at the estimate of a step, at this noise level, at which every token ran."""
        source_BNC = self.source_BNC.repeat(len(x0_BNC) // len(self.source_BNC), 1, 1)
        now = look(x0_BNC, source_BNC, self.grid, self.fold, sigma, self.find)
        if self.region_hw is not None:
            self._take(step, [Look(self._changed_hw), now])
            self.early = self.region_hw is not None
        elif step == self.steps - 1:
            self.end = now
        else:
            self._looks = [*self._looks, now][-self.find.looks :]
            if step >= self.first - 1:
                self._take(step, self._looks)
            self.early = step + 1 < LATEST * self.steps

    def _take(self, step: int, looks: list[Look]) -> None:
        """The union of looks, if all can be trusted and there is something; else every token."""
        changed_hw = torch.stack([one.region_hw for one in looks]).any(0)
        covered = changed_hw.float().mean().item()
        reason = next((one.reason for one in looks if one.reason), "")
        if not reason and not covered:
            reason = "nothing has changed yet"
        if not reason and covered > self.find.most:
            reason = f"the region covers {covered:.0%}, more than {self.find.most:.0%}"
        if reason:
            self.reason, self.region_hw = f"step {step}: {reason}", None
        elif self.region_hw is None or not torch.equal(changed_hw, self._changed_hw):
            self.reason, self._changed_hw = "", changed_hw
            self.region_hw = grown(changed_hw, self.find)

    @property
    def shown_hw(self) -> Tensor:
        """Whose pixels are the run's, bool [h, w]; all others are the photo's own."""
        if self.region_hw is not None:
            return self.region_hw
        if self.end is not None and not self.end.reason:
            return grown(self.end.region_hw, self.find)
        return torch.ones(self.grid, dtype=torch.bool)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why every token ran, and why no pixel of the photo was put back."""
        end = f"end: {self.end.reason}" if self.end and self.end.reason else ""
        return tuple(reason for reason in (self.reason, end) if reason)
