"""One photo under one mask in a call under way: its plan, and everything derived from it.

A batch of several photos or masks is several of these. Each runs its own tokens, so each picture is
what it would be by itself; those that run as many share a call, see `together`.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.base import ShortCall
from .adapters.family import Family
from .hooks import Call, StepClock, any_compiled, for_this_thread_alone
from .lending import Loan, Opened
from .method import Method
from .methods.find import Find
from .plan import TokenPlan
from .reuse import Reuse
from .search import Searching
from .source import Source
from .timing import Stopwatch


class Lane:
    """A plan at work in a call under way.

    number, count: which pictures of the batch run by it: every `count`-th one from `number` on
    short:     the short call that runs next; None where every token runs
    plan:      the plan in force; assign another by `use`
    sequence:  image tokens of a call, references included: all of them, and those that ran
    searching: of a run without a mask, how it looks for what changes

    Args:
        call: the first one of the transformer, of these pictures alone
        opened: what a session brings
        find: how the region is found, where there is no mask
        photo_size: of the photo as it was given, which may not be the output's
    """

    def __init__(
        self,
        family: Family,
        method: Method,
        source: Source,
        mask_B1HW: Tensor,
        call: Call,
        watch: Stopwatch,
        number: int = 0,
        count: int = 1,
        opened: Opened | None = None,
        find: Find | None = None,
        photo_size: torch.Size | None = None,
    ) -> None:
        self.family, self.method, self.pipe, self.watch = family, method, family.pipe, watch
        self.transformer: nn.Module = family.pipe.transformer
        self.source, self.mask_B1HW = source, mask_B1HW
        self.number, self.count = number, count
        self.clock = StepClock(self.pipe.scheduler)
        self.short: ShortCall | None = None
        self.reuse: Reuse | None = None
        self.loan: Loan | None = None
        self._call = call  # the one under way, whole
        self._shorter: Call | None = None  # the same, once it was shortened
        self._inside = ExitStack()  # what is put inside the transformer for `short`
        self._is_inside = False
        self._cache = ExitStack()  # what names these pictures to a step cache of diffusers
        self._cached = bool(getattr(self.transformer, "is_cache_enabled", False))
        self.searching = Searching(self, find) if find else None
        if self.searching:
            assert photo_size is not None
            self.searching.begin(photo_size)
        tokens = family.tokens(call).shape[1]
        self.sequence = tokens, tokens
        self.plan = self.planned()
        if method.shortens:
            self._shorten(opened)

    def _shorten(self, opened: Opened | None) -> None:
        self.use(self.plan)
        assert self.short is not None
        if self.method.refresh is not None:
            self.loan = self._borrow(opened)
            self.reuse = Reuse(self, self.method.refresh, self.short, self.loan)
        if self.searching:
            self.rest()

    def _borrow(self, opened: Opened | None) -> Loan | None:
        """What a session lends of the context."""
        lending, refresh = opened and opened.lending, self.method.refresh
        if not lending or refresh.blocks != "all" or any_compiled(self.transformer):
            return None
        assert self.short is not None
        key = repr(refresh), self.clock.index, *self.pipe.scheduler.sigmas.tolist()
        return Loan(lending, self.short, self._call, self.clock.sigma, key)

    def planned(self) -> TokenPlan:
        """The method's plan, by the mask; while a region is looked for, of no edit yet."""
        mask_B1HW = self.mask_B1HW
        if self.searching and not self.searching.found:
            mask_B1HW = torch.zeros_like(mask_B1HW)
        with self.watch.time("plan"):
            photo_B3HW = (self.source.photo_B3HW / 2 + 0.5).clamp(0, 1)
            return self.method.plan(photo_B3HW, mask_B1HW, self.source.grid)

    def use(self, plan: TokenPlan, carry: bool = False) -> None:
        """Run by this plan from the next call on, whatever ran before.

        Args:
            carry: what was kept of the context stays, see `Reuse.take`

        Raises:
            ValueError: a plan for another grid.
        """
        if plan.grid != self.source.grid:
            raise ValueError(f"the plan is for a grid of {plan.grid}, the run's {self.source.grid}")
        before = self.inside if self.short else None
        if self._cached and self.short:  # what was kept is of another length
            self.transformer._reset_stateful_cache()  # pyright: ignore[reportCallIssue]
        self.plan = plan
        short: ShortCall = self.family.short.of(
            self.family, plan, self.source, self.mask_B1HW, self._call
        )
        self.short = short
        if self.reuse:
            self.reuse.take(short, carry)
        if self.inside != before:
            self.leave()

    def rest(self) -> None:
        """Run every token from the next call on, with nothing inside the transformer."""
        self.short = None
        self.leave()

    @property
    def whole(self) -> bool:
        """Whether every token runs at every step, each for itself."""
        plan = self.plan
        every = len(plan.keep_K) == plan.tokens_full and not len(plan.cells_M)
        return every and not plan.weighted and self.reuse is None and self.searching is None

    # In every call of the transformer.

    def arrive(self, call: Call) -> None:
        """Another call, of these pictures alone: which step it is, and by which plan it runs."""
        self._call, self._shorter = call, None
        self.clock.tick()
        if self.clock.branch:
            return
        if self.searching:
            self.searching.follow(self.clock.step)
        elif self.short is not None:
            plan = self.method.replan(self.clock.step, self.plan)
            if plan is not self.plan:
                self.use(plan)

    @property
    def inside(self) -> tuple[bool, bool]:
        """What the plan needs inside the transformer, at one step or another."""
        assert self.short is not None
        return (self.reuse.whole if self.reuse else self.short).inside

    def enter(self) -> None:
        """Put inside the transformer what acts there; reuse last, so that it is asked first."""
        self._name_pictures()
        if self._is_inside or self.short is None:
            return
        stand_ins = [*self.family.stand_ins(self), *([self.reuse.attached()] if self.reuse else ())]
        if stand_ins and any_compiled(self.transformer):
            stand_ins.append(for_this_thread_alone(self.transformer))
        self._is_inside = True
        for stand_in in stand_ins:
            self._inside.enter_context(stand_in)

    def leave(self) -> None:
        """Take out of the transformer what was put inside."""
        self._is_inside = False
        self._inside.close()
        self._cache.close()

    def shorten(self) -> Call:
        """The call under way, shorter, by what of the plan runs in it."""
        if self._shorter is None:
            self._shorter = self._call
            if self.short is not None:
                call = self.reuse.before(self._call) if self.reuse else self._call
                self._shorter = self.short.shorten(call, self.clock.sigma)
        return self._shorter

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """Attention of these pictures alone, with all that stands in for it one after another."""
        short: Any = self.short

        def weigh(query: Tensor, key: Tensor, value: Tensor, **kw: Any) -> Tensor:
            return short.weigh(module, query, key, value, original, **kw)

        weighed = weigh if short.weighted else original
        if self.reuse is None:
            return weighed(query, key, value, **kw)
        kept = module in self.reuse.modules
        attend = self.reuse.attend if kept else self.reuse.attend_alone
        return attend(module, query, key, value, weighed, **kw)

    def restore(self, velocity: Any) -> dict[int, Any]:
        """The transformer's answer, whole again, by the number of the pictures."""
        self._cache.close()
        if self.short is None:
            return {self.number: velocity}
        velocity = self.short.restore(velocity, self._call, self.clock.sigma)
        self.short.check_ran()
        if self.reuse is None or self.reuse.refreshing:
            self.sequence = self.short.whole_length, self.short.ran
        if self.reuse:
            self.reuse.after()
        return {self.number: velocity}

    def _name_pictures(self) -> None:
        """Open a context for a step cache of diffusers: many pipelines do not, and it needs one."""
        if self._cached:
            self._cache.close()
            name = f"pictures {self.number} of {self.count}, branch {self.clock.branch}"
            self._cache.enter_context(self.transformer.cache_context(name))  # pyright: ignore[reportCallIssue]

    # What is said of it once it has ended.

    @property
    def refreshed(self) -> set[int] | None:
        """The steps at which context ran; None for all."""
        if self.reuse is None:
            return None
        dense = self.searching.dense if self.searching else ()
        steps = {*dense, *self.reuse.refreshed}
        return None if self.searching and len(steps) > self.clock.step else steps
