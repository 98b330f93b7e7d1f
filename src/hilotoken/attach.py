"""One compressed call: what is put around a pipeline's transformer for the length of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import family_of
from .adapters.base import ShortCall
from .blocks.attach import Placement, placed
from .capture import Seen, captured
from .decode import RegionDecode
from .encode import Encoding, Prompts
from .hooks import (
    Call,
    StepClock,
    any_compiled,
    bind_call,
    for_this_thread_alone,
    hooked,
    shadowed,
    unwrap,
)
from .lending import Loan, Opened
from .method import Method
from .methods.find import Find
from .plan import TokenPlan
from .record import Run
from .reuse import Reuse
from .search import Searching
from .source import Source
from .timing import Stopwatch


class Running:
    """A call under way: all that it knows is reached from here, and nothing is left elsewhere.

    short:     the short call that runs next; None where every token runs
    plan:      the plan in force; assign another by `use`
    sequence:  image tokens of a call, references included: all of them, and those that ran
    searching: of a run without a mask, how it looks for what changes
    """

    def __init__(
        self,
        pipe: Any,
        method: Method,
        mask_image: Any,
        decode: str = "whole",
        encode: str = "whole",
        opened: Opened | None = None,
        find: Find | None = None,
    ) -> None:
        self.pipe, self.method, self.mask_image = pipe, method, mask_image
        self.transformer: nn.Module = pipe.transformer
        self.family = family_of(pipe)
        self.watch = Stopwatch(pipe._execution_device)
        self.clock = StepClock(pipe.scheduler)
        self.source: Source | None = None
        self.mask_B1HW: Tensor | None = None
        self.plan: TokenPlan | None = None
        self.short: ShortCall | None = None
        self.reuse: Reuse | None = None
        self.placement: Placement | None = None
        self.sequence = (0, 0)
        self.opened = opened
        self.loan: Loan | None = None
        if not (method.shortens or method.inner):  # the untouched pipeline, unless told otherwise
            decode, encode = (way.replace("auto", "whole") for way in (decode, encode))
        self.searching = Searching(self, find) if find else None
        self._decode = RegionDecode.of(pipe.vae, decode)
        self._encode = Encoding.of(pipe.vae, encode, opened.memory if opened else None)
        self._prompts = Prompts(pipe, opened.memory) if opened else None
        self._call: Call = {}  # the one under way, whole
        self._inside = ExitStack()  # what is put inside the transformer for `short`
        self._cache = ExitStack()  # what names the branch of guidance to a step cache of diffusers
        self._cached = bool(getattr(self.transformer, "is_cache_enabled", False))

    def use(self, plan: TokenPlan, carry: bool = False) -> None:
        """Run by this plan from the next call on, whatever ran before.

        Args:
            carry: what was kept of the context stays, see `Reuse.take`

        Raises:
            ValueError: the run has not begun, or a plan for another grid.
        """
        if self.source is None or self.mask_B1HW is None or not self._call:
            raise ValueError("a plan can be put in the place of another once the first call began")
        if plan.grid != self.source.grid:
            raise ValueError(f"the plan is for a grid of {plan.grid}, the run's {self.source.grid}")
        before = self.short.inside if self.short else None
        if self._cached and self.short:  # what was kept is of another length
            self.transformer._reset_stateful_cache()  # pyright: ignore[reportCallIssue]
        self.plan = plan
        short: ShortCall = self.family.short.of(
            self.family, plan, self.source, self.mask_B1HW, self._call
        )
        self.short = short
        if self.reuse:
            self.reuse.take(short, carry)
        if short.inside != before:
            self._put_inside()

    def rest(self) -> None:
        """Run every token from the next call on, with nothing inside the transformer."""
        self.short = None
        self._inside.close()

    def _put_inside(self) -> None:
        """Put on anew what acts inside the transformer; reuse last, so that it is asked first."""
        self._inside.close()
        stand_ins = [*self.family.stand_ins(self), *([self.reuse.attached()] if self.reuse else ())]
        if stand_ins and any_compiled(self.transformer):
            stand_ins.append(for_this_thread_alone(self.transformer))
        for stand_in in stand_ins:
            self._inside.enter_context(stand_in)

    def record(self, method: Any, started: float) -> Run:
        """What `last_run` says of it, once it has ended, of when the host's clock began."""
        assert self.plan is not None  # else the first step refused
        seconds = self.watch.seconds  # waits for the device, so that the total is whole
        return Run(
            self.plan,
            method,
            self.clock.step + 1,
            self.sequence,
            seconds.get("plan", 0.0),
            seconds.get("dit", 0.0),
            seconds.get("vae", 0.0),
            time.perf_counter() - started,
            self.placement.kept if self.placement else {},
            self._refreshed(),
            self.reuse.bytes if self.reuse else 0,
            self.reuse.alone.plan.tokens_run if self.reuse else 0,
            decoded=self._decode.decoded if self._decode else 1.0,
            encoded=self._encode.share if self._encode else 1.0,
            reused=self._reused(),
            mask=self.mask_B1HW,
            searched=self.searching is not None,
            reasons=self.searching.reasons if self.searching else (),
        )

    def _refreshed(self) -> tuple[int, ...] | None:
        """The steps at which context ran; None for all."""
        if self.reuse is None:
            return None
        dense = self.searching.dense if self.searching else ()
        steps = sorted({*dense, *self.reuse.refreshed})
        return None if self.searching and len(steps) > self.clock.step else tuple(steps)

    def _reused(self) -> dict[str, float]:
        """Of what a session keeps, the shares that this run took from it."""
        if self._prompts is None or self._encode is None:
            return {}
        loan, prompts = self.loan, self._prompts
        return {
            "latents": 1 - self._encode.share,
            "prompts": prompts.found / max(1, prompts.asked),
            "context": loan.lent / max(1, loan.asked) if loan else 0.0,
        }

    @contextmanager
    def around_encoders(self) -> Iterator[None]:
        """What is decoded and encoded in a region, or taken from a session."""
        with ExitStack() as stack:
            for thing, name, stand_in in (
                (self.pipe.vae, "decode", self._decoding()),
                (self.pipe.vae, "encode", self._encode),
                (self.pipe, "encode_prompt", self._prompts),
            ):
                if stand_in and hasattr(thing, name):
                    stack.enter_context(shadowed(thing, name, stand_in))
            yield

    def _decoding(self) -> Callable[..., Any] | None:
        """Decodes the region that the mask needs, where a crop decodes as the whole does."""
        decode = self._decode
        if decode is None:
            return None

        def stand_in(original: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.source is None or self.mask_B1HW is None:  # not yet of the edit
                return original(latents, *args, **kwargs)
            sides = [n * self.family.latents_a_side for n in self.source.grid]
            if list(latents.shape[-2:]) != sides:  # a preview that somebody makes on the way
                return original(latents, *args, **kwargs)
            given = {"photo_B3HW": self.source.photo_B3HW, "mask_B1HW": self.mask_B1HW}
            return decode(original, latents, *args, **given, **kwargs)

        return stand_in

    # Around every call of the transformer.

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call, seen: Seen) -> None:
        """At the first call of the transformer all is known: the source, its grid, so the plan."""
        if self.plan is not None:
            return
        self._call = call = bind_call(module, args, kwargs)
        if self.searching and seen.photo_B3HW is not None:  # all of it may change, until found
            everywhere = torch.ones_like(seen.photo_B3HW[:, :1], dtype=torch.float32)
            seen = replace(seen, mask_B1HW=everywhere)
        made = self.family.make_source(seen, self.mask_image, call)
        if made is None:
            raise ValueError(
                "no image and mask_image were given: there is nothing to compress by; give both, "
                "or call the pipeline itself"
            )
        self.source, self.mask_B1HW = made
        if self.searching:
            assert seen.photo_B3HW is not None
            self.searching.begin(seen.photo_B3HW.shape[-2:])
        plan = self.planned()
        tokens = self.family.tokens(call).shape[1]
        self.sequence = tokens, tokens
        if not self.method.shortens:
            self.plan = plan
            return
        self.use(plan)
        assert self.short is not None
        if self.method.refresh is not None:
            self.loan = self._borrow()
            self.reuse = Reuse(self, self.method.refresh, self.short, self.loan)
            self._put_inside()
        if self.searching:
            self.rest()

    def planned(self) -> TokenPlan:
        """The method's plan, by the mask; while a region is looked for, of no edit yet."""
        assert self.source is not None
        assert self.mask_B1HW is not None
        mask_B1HW = self.mask_B1HW
        if self.searching and not self.searching.found:
            mask_B1HW = torch.zeros_like(mask_B1HW)
        with self.watch.time("plan"):
            photo_B3HW = (self.source.photo_B3HW / 2 + 0.5).clamp(0, 1)
            return self.method.plan(photo_B3HW, mask_B1HW, self.source.grid)

    def _borrow(self) -> Loan | None:
        """What a session lends of the context."""
        lending, refresh = self.opened and self.opened.lending, self.method.refresh
        if not lending or refresh.blocks != "all" or any_compiled(self.transformer):
            return None
        assert self.short is not None
        key = repr(refresh), self.clock.index, *self.pipe.scheduler.sigmas.tolist()
        return Loan(lending, self.short, self._call, self.clock.sigma, key)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> Any:
        """The call, shorter."""
        self._call = call = bind_call(module, args, kwargs)
        self.clock.tick()
        if self.clock.branch == 0:
            self._replan()
        self._name_branch()
        if self.short is None:
            return None
        if self.reuse:
            call = self.reuse.before(call)
        return (), self.short.shorten(call, self.clock.sigma)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call, output: Any) -> Any:
        """The answer, whole again."""
        self._cache.close()
        if self.short is None:
            return None
        velocity = self.short.restore(output[0], self._call, self.clock.sigma)
        self.short.check_ran()
        if self.reuse is None or self.reuse.refreshing:
            self.sequence = self.short.whole_length, self.short.ran
        if self.reuse:
            self.reuse.after()
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

    def _name_branch(self) -> None:
        """Open a context for a step cache of diffusers: many pipelines do not, and it needs one."""
        if self._cached:
            self._cache.close()
            name = f"branch {self.clock.branch}"
            self._cache.enter_context(self.transformer.cache_context(name))  # pyright: ignore[reportCallIssue]

    def _replan(self) -> None:
        assert self.plan is not None
        if self.searching:
            self.searching.follow(self.clock.step)
        elif self.short is None:
            return
        elif (plan := self.method.replan(self.clock.step, self.plan)) is not self.plan:
            self.use(plan)


@contextmanager
def attached(
    pipe: Any,
    method: Method,
    mask_image: Any,
    decode: str = "whole",
    encode: str = "whole",
    opened: Opened | None = None,
    find: Find | None = None,
) -> Iterator[Running]:
    """Capture, plan and hook for the length of this context; nothing is left behind.

    decode, encode: see `compress`
    opened: what a session brings, and is left in it where the run ends well
    find: how the region is found, where there is no mask
    """
    check_devices(pipe)
    transformer = pipe.transformer
    run = Running(pipe, method, mask_image, decode, encode, opened, find)
    with ExitStack() as stack:
        seen = stack.enter_context(captured(pipe, run.family.photo_last))
        if getattr(transformer, "is_cache_enabled", False):
            transformer._reset_stateful_cache()  # a run broken off may have left another length's
        stack.enter_context(run.watch.watch("vae", *vae_parts(pipe)))
        stack.enter_context(run.around_encoders())
        if run.searching:
            stack.enter_context(shadowed(pipe.scheduler, "step", run.searching.stepped))
        # Innermost of all hooks: the user's own see whole sequences, going in and coming out.
        stack.enter_context(hooked(transformer, run.before, run.after))
        stack.enter_context(run.watch.watch("dit", transformer))
        stack.callback(run._inside.close)
        stack.callback(run._cache.close)

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
            run.begin(module, args, kwargs, seen)

        stack.enter_context(hooked(transformer, begin, first=True))
        if method.inner:
            plan = lambda: run.plan if run.short else None  # noqa: E731
            run.placement = stack.enter_context(
                placed(transformer, method.inner, pipe.scheduler, plan)
            )
        yield run
    if run.loan:
        run.loan.settle()


def check_devices(pipe: Any) -> None:
    """Raise ValueError for a pipeline that is spread over several devices.

    The tables of a plan are on one, and which tokens run is chosen from all of the sequence.
    """
    model = unwrap(pipe.transformer)
    if getattr(model, "_parallel_config", None) is not None:
        raise ValueError(
            f"{type(model).__name__} has context parallelism on (enable_parallelism), which splits "
            "the sequence over devices: it is not supported; run one process a device instead"
        )
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    if len(places - {"cpu", "disk"}) > 1:
        raise ValueError(
            f"{type(model).__name__} is spread over {', '.join(sorted(places))} by its device_map: "
            "it is not supported; load it on one device, with offloading if it does not fit"
        )
    parts = getattr(pipe, "hf_device_map", None) or {}
    if "transformer" in parts and str(parts["transformer"]) != str(parts.get("vae")):
        raise ValueError(
            f"device_map puts the transformer on {parts['transformer']} and the autoencoder on "
            f"{parts.get('vae')}: it is not supported; put both on one device"
        )


def vae_parts(pipe: Any) -> list[nn.Module]:
    return [part for name in ("encoder", "decoder") if (part := getattr(pipe.vae, name, None))]
