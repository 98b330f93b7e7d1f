"""One compressed call: what is put around a pipeline's transformer for the length of it.

B batch, H W pixels.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import family_of
from .approximate import ApproximateDecode
from .blocks.attach import Placement, placed
from .capture import Seen, captured
from .decode import RegionDecode
from .encode import Encoding, Prompts
from .hooks import Call, any_compiled, bind_call, hooked, inner_call, shadowed, unwrap
from .lane import Lane
from .lending import Opened
from .method import Method
from .methods.find import Find
from .plan import TokenPlan
from .record import Run
from .source import Source
from .timing import Stopwatch
from .together import Shared, Together


class Running:
    """A call under way: all that it knows is reached from here, and nothing is left elsewhere.

    source, mask_B1HW: the photos and masks of the batch
    lanes: the batch by the plans that its pictures run by, one where photo and mask are the same
           for all of them; none before the first call of the transformer
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
        self.pipe, self.method, self.mask_image, self.find = pipe, method, mask_image, find
        self.transformer: nn.Module = pipe.transformer
        self.family = family_of(pipe)
        self.captures = bool(method.refresh and method.refresh.capture)
        self.watch = Stopwatch(pipe._execution_device)
        self.source: Source | None = None
        self.lanes: list[Lane] = []
        self.placement: Placement | None = None
        self.opened = opened
        if not (method.shortens or method.inner):  # the untouched pipeline, unless told otherwise
            decode, encode = (way.replace("auto", "whole") for way in (decode, encode))
        way = ApproximateDecode if decode == "approximate" else RegionDecode
        self._decode = way.of(pipe.vae, decode)
        self._mask_B1HW: Tensor | None = None
        self._encode = Encoding.of(pipe.vae, encode, opened.memory if opened else None)
        self._prompts = Prompts(pipe, opened.memory) if opened else None
        # Under way; none where all run at once, and whole.
        self._turn: Lane | Together | None = None
        self._answers: dict[int, Any] = {}  # of the lanes before
        self._shared: Shared | None = None  # where lanes may share a call
        self._cached = bool(getattr(self.transformer, "is_cache_enabled", False))

    @property
    def first(self) -> Lane:
        """The only lane, or that of the first picture.

        Raises ValueError before the first call of the transformer.
        """
        if not self.lanes:
            raise ValueError("there is no plan before the first call of the transformer began")
        return self.lanes[0]

    @property
    def mask_B1HW(self) -> Tensor | None:
        """Where the pictures are the run's: given, or as far as it is found."""
        if self.find and self.lanes:
            return torch.cat([lane.mask_B1HW for lane in self.lanes])
        return self._mask_B1HW

    def plan(self) -> TokenPlan | None:
        """The one that the tokens under way run by; None where every token runs."""
        lane = self._turn if isinstance(self._turn, Lane) else None
        return lane.plan if lane and lane.short else None

    def record(self, method: Any, started: float) -> Run:
        """What `last_run` says of it, once it has ended, of when the host's clock began."""
        lanes, first = self.lanes, self.first  # else the first step refused
        seconds = self.watch.seconds  # waits for the device, so that the total is whole
        refreshed = [lane.refreshed for lane in lanes if lane.refreshed is not None]
        kept = [lane.reuse for lane in lanes if lane.reuse]
        reasons = [why for lane in lanes if lane.searching for why in lane.searching.reasons]
        return Run(
            first.plan,
            method,
            first.clock.step + 1,
            first.sequence,
            seconds.get("plan", 0.0),
            seconds.get("dit", 0.0),
            seconds.get("vae", 0.0),
            time.perf_counter() - started,
            self.placement.kept if self.placement else {},
            tuple(sorted(set().union(*refreshed))) if len(refreshed) == len(lanes) else None,
            sum(reuse.bytes for reuse in kept),
            round(sum(reuse.alone.plan.tokens_run for reuse in kept) / len(lanes)),
            decoded=self._decode.decoded if self._decode else 1.0,
            decode_error=self._decode.error if self._decode else None,
            encoded=self._encode.share if self._encode else 1.0,
            reused=self._reused(),
            mask=self.mask_B1HW,
            searched=self.find is not None,
            reasons=tuple(dict.fromkeys(reasons)),
            plans=tuple(lane.plan for lane in lanes),
        )

    def _reused(self) -> dict[str, float]:
        """Of what a session keeps, the shares that this run took from it."""
        if self._prompts is None or self._encode is None:
            return {}
        loans, prompts = [lane.loan for lane in self.lanes if lane.loan], self._prompts
        return {
            "latents": 1 - self._encode.share,
            "prompts": prompts.found / max(1, prompts.asked),
            "context": sum(x.lent for x in loans) / max(1, sum(x.asked for x in loans)),
        }

    def settle(self) -> None:
        """The run ended well: what it kept is for others now."""
        for lane in self.lanes:
            if lane.loan:
                lane.loan.settle()

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
            return decode.each(original, latents, *args, **given, **kwargs)

        return stand_in

    # Around every call of the transformer.

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call, seen: Seen) -> None:
        """At the first call of the transformer all is known: the source, its grid, so the plan."""
        if self.lanes:
            return
        call = bind_call(module, args, kwargs)
        if self.find and seen.photo_B3HW is not None:  # all of it may change, until it is found
            everywhere = torch.ones_like(seen.photo_B3HW[:, :1], dtype=torch.float32)
            seen = replace(seen, mask_B1HW=everywhere)
        made = self.family.make_source(seen, self.mask_image, call)
        if made is None:
            raise ValueError(
                "no image and mask_image were given: there is nothing to compress by; give both, "
                "or call the pipeline itself"
            )
        self.source, self._mask_B1HW = made
        assert seen.photo_B3HW is not None  # else there was no source
        count, size = self._count(call), seen.photo_B3HW.shape[-2:]

        def lane(source: Source, mask_B1HW: Tensor, number: int = 0, count: int = 1) -> Lane:
            return Lane(
                self.family, self.method, source, mask_B1HW, self.family.part(call, number, count),
                self.watch, number, count, self.opened, self.find, size,
            )  # fmt: skip

        self.lanes = [lane(*self._pair(n, count), n, count) for n in range(count)]
        if count > 1 and not self._cached and all(lane.whole for lane in self.lanes):
            self.lanes = [lane(*made)]  # to the bit what the pipeline itself makes of the batch
        apart = self._cached or self.captures or self.placement or any_compiled(self.transformer)
        if len(self.lanes) > 1 and self.family.shares and not apart:
            self._shared = Shared(self.lanes)

    def _count(self, call: Call) -> int:
        """How many of the batch's pictures run by themselves; further ones are of the same again.

        All run together where photo and mask are one; but what is decided by how a picture comes to
        be, as where to look or when to refresh, is decided for each.
        """
        assert self.source is not None
        assert self._mask_B1HW is not None
        if not (self.method.shortens or self.find):
            return 1
        things = self.source.photo_B3HW, self._mask_B1HW
        pairs = max(map(len, things))
        if self.find or self.method.adaptive or self._cached:
            return self.family.pictures_of(call, pairs)
        return 1 if all(torch.equal(x[1:], x[:-1]) for x in things) else pairs

    def _pair(self, number: int, count: int) -> tuple[Source, Tensor]:
        """The photo and the mask of some pictures of the batch."""
        source, mask_B1HW = self.source, self._mask_B1HW
        assert source is not None
        assert mask_B1HW is not None
        if not (self.method.shortens or self.find):
            return source, mask_B1HW
        photo_13HW, mask_11HW = (x[number % len(x)][None] for x in (source.photo_B3HW, mask_B1HW))
        latents_BNC = source.latents_BNC
        if len(latents_BNC) % count:  # fewer, which repeat
            latents_BNC = latents_BNC.repeat(count // len(latents_BNC), 1, 1)
        own = replace(source, photo_B3HW=photo_13HW, latents_BNC=latents_BNC[number::count])
        return own, mask_11HW

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> Any:
        """The call, shorter; of several lanes that of the last, once the others have run."""
        call = bind_call(module, args, kwargs)
        for lane in self.lanes:
            lane.arrive(self.family.part(call, lane.number, lane.count))
        self._answers = {}
        if not (self._cached or any(lane.short for lane in self.lanes)):
            self._turn = None
            return None
        *others, last = self._shared.turns() if self._shared else self.lanes
        for turn in others:
            short = self._take(turn)
            if self.placement:
                self.placement.enter(module, (), short)
            self._answers |= turn.restore(_answer(inner_call(module)(**short)))
        return (), self._take(last)

    def _take(self, turn: Lane | Together) -> Call:
        """A turn's own call, with what it needs inside the transformer and nothing of another."""
        if self._turn is not turn and self._turn:
            self._turn.leave()
        self._turn = turn
        call = turn.shorten()
        turn.enter()
        return call

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Call, output: Any) -> Any:
        """The answer, whole again, of all pictures."""
        if self._turn is None:
            return None
        answers = self._answers | self._turn.restore(_answer(output))
        self._answers = {}
        velocity = self.family.joined([answers[lane.number] for lane in self.lanes])
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

    def stepped(
        self, original: Any, velocity: Tensor, timestep: Any, sample: Tensor, *args: Any, **kw: Any
    ) -> Any:
        """Around the scheduler's step, where guidance is over: look at where the run is going."""
        for lane in self.lanes:
            if lane.searching:
                lane.searching.look(*(x[lane.number :: lane.count] for x in (velocity, sample)))
        return original(velocity, timestep, sample, *args, **kw)

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """The transformer's pass, inside of all hooks on it; some of it a lane has recorded."""
        reuse = self._turn.reuse if isinstance(self._turn, Lane) else None
        return (reuse.forward if reuse else _straight)(original, *args, **kwargs)

    def leave(self) -> None:
        """Nothing is left inside the transformer, nor what was recorded of it."""
        for turn in (*self.lanes, *(self._shared.known.values() if self._shared else ())):
            turn.leave()
        for lane in self.lanes:
            if lane.reuse:
                lane.reuse.replays.clear()


def _straight(original: Any, *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


def _answer(output: Any) -> Any:
    """What a transformer answers, as a tuple or by a name."""
    return output[0] if isinstance(output, tuple) else output.sample


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
        if find:
            stack.enter_context(shadowed(pipe.scheduler, "step", run.stepped))
        # Innermost of all hooks: the user's own see whole sequences, going in and coming out.
        stack.enter_context(hooked(transformer, run.before, run.after))
        stack.enter_context(run.watch.watch("dit", transformer))
        if run.captures:
            stack.enter_context(shadowed(unwrap(transformer), "forward", run.forward))
        stack.callback(run.leave)

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
            run.begin(module, args, kwargs, seen)

        stack.enter_context(hooked(transformer, begin, first=True))
        if method.inner:
            run.placement = stack.enter_context(
                placed(transformer, method.inner, pipe.scheduler, run.plan)
            )
        yield run
    run.settle()


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
