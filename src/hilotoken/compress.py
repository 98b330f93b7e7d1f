"""`compress(pipe, method)`: the pipeline, run on the tokens that matter.

For the length of one call: capture the source, plan, attach hooks to the object in
`pipe.transformer`, run the pipeline, detach, composite, record. Outside a call the user's pipeline
is as it always was, so there is nothing to disable and two wrappers never meet.
"""

import inspect
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .adapters import Adapter, adapter_for
from .capture import Seen, Source, captured
from .composite import composite_images
from .methods import BlockMethod, Control, Dense, HiLo, Method, check_inside
from .methods.blocks import Placement, placed
from .methods.dense import whole_plan
from .methods.layout import layout_of
from .plan import TokenPlan, as_batch
from .reuse import Reuse
from .timing import Stopwatch

# What pipelines call the photo and its mask.
PHOTOS = ("image", "control_image")
MASKS = ("mask_image", "mask", "control_mask")


@dataclass(frozen=True, eq=False)
class Run:
    """The record of one call: its plan, and seconds by part.

    steps:    steps of the scheduler; guidance by a second prompt calls the DiT twice in each
    sequence: image tokens of a call, references included: all of them, and those that ran
    inside:   of a method that acts inside blocks: the mean share of the sequence's tokens that
              queries, keys and the feed-forward ran on
    refreshed: the steps at which context ran, where a method reuses it; None for all
    kept_bytes: memory that its keys and values took
    """

    plan: TokenPlan
    method: "Method | BlockMethod | Control"
    steps: int
    sequence: tuple[int, int]
    plan_seconds: float
    dit_seconds: float
    vae_seconds: float
    total_seconds: float
    inside: dict[str, float] = field(default_factory=dict)
    refreshed: tuple[int, ...] | None = None
    kept_bytes: int = 0

    @property
    def tokens_full(self) -> int:
        return self.plan.tokens_full

    @property
    def tokens_run(self) -> int:
        return self.plan.tokens_run

    @property
    def keep_ratio(self) -> float:
        return self.plan.keep_ratio

    @property
    def mean_tokens_run(self) -> float:
        """Tokens of the target's grid that ran, over the steps: fewer where context is reused."""
        if self.refreshed is None:
            return self.tokens_run
        share = len(self.refreshed) / max(1, self.steps)
        return share * self.tokens_run + (1 - share) * self.counts["edit"]

    @property
    def counts(self) -> dict[str, int]:
        return self.plan.counts

    @property
    def rest_seconds(self) -> float:
        """Neither DiT nor VAE: text encoders, scheduler, planning, compositing."""
        return self.total_seconds - self.dit_seconds - self.vae_seconds


def compress(
    pipe: DiffusionPipeline,
    method: Method | BlockMethod | Control | None = None,
    *,
    inside: BlockMethod | None = None,
    feather: int = 0,
) -> "Compressed":
    """A callable that stands in for the pipeline and runs it compressed.

    It takes the pipeline's own arguments and returns its own output, with the photo's own pixels
    outside the mask; other attributes are the pipeline's. Where the pipeline has no `mask_image`
    (instruction editing), the callable takes one. A pipeline that makes pictures from text alone
    is run by a method that acts inside blocks; there is no photo to plan by or put back.

    Args:
        pipe: a diffusers pipeline that edits under a mask, or makes pictures from text
        method: `HiLo()` unless given
        inside: what works inside the blocks on the tokens that `method` leaves
        feather: pixels over which the edit is blended in, inside the mask

    Raises:
        TypeError: the pipeline is not one that can be compressed; the message lists those that can.
        ValueError: feather is negative, or the methods do not go together.
    """
    if isinstance(pipe, Compressed):
        raise TypeError("this pipeline is compressed already: compress the pipeline it wraps")
    if feather < 0:
        raise ValueError(f"feather must be 0 pixels or more, got {feather}")
    method = method or HiLo()
    check_inside(method, inside)
    if not (isinstance(method, BlockMethod) and _makes_from_text(pipe)):
        try:
            adapter_for(pipe)
        except TypeError as error:
            if not _makes_from_text(pipe):
                raise
            raise TypeError(
                f"{error}. It takes no photo and no mask to plan by: methods that act inside "
                "blocks, such as ToMe(), run on it"
            ) from None
    if inside or isinstance(method, BlockMethod):
        layout_of(pipe.transformer)
    return Compressed(pipe, method, inside, feather)


class Compressed:
    """See `compress`. `last_run` holds the record of the last call that ended well."""

    _OWN = frozenset({"pipe", "method", "inside", "feather", "last_run"})
    pipe: Any  # pipelines have no call in common that a type could state

    def __init__(
        self,
        pipe: DiffusionPipeline,
        method: Method | BlockMethod | Control,
        inside: BlockMethod | None,
        feather: int,
    ) -> None:
        self.pipe, self.method, self.inside, self.feather = pipe, method, inside, feather
        self.last_run: Run | None = None

    def __getattr__(self, name: str) -> Any:
        if name in Compressed._OWN:  # not set yet: while copied or unpickled
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Compressed._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)

    def to(self, *args: Any, **kwargs: Any) -> "Compressed":
        """Move the pipeline; what comes back is still compressed."""
        self.pipe.to(*args, **kwargs)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own arguments and output."""
        if isinstance(self.method, Control):
            return self.method.run(self, args, kwargs)
        if isinstance(self.method, BlockMethod) and _makes_from_text(self.pipe):
            return self._generate(self.method, args, kwargs)
        return self._edit(args, kwargs)

    def _generate(self, method: BlockMethod, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """From text alone: nothing is captured, nothing put back."""
        watch, started = Stopwatch(), time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(watch.watch("vae", *_vae_parts(self.pipe)))
            stack.enter_context(watch.watch("dit", self.pipe.transformer))
            placement = stack.enter_context(
                placed(self.pipe.transformer, method, self.pipe.scheduler)
            )
            output = self.pipe(*args, **kwargs)
        assert placement.tokens is not None  # else the pipeline would have failed
        self.last_run = Run(
            whole_plan(placement.tokens.grid),
            method,
            placement.moment.step + 1,
            (placement.length, placement.length),
            0.0,
            watch.seconds.get("dit", 0.0),
            watch.seconds.get("vae", 0.0),
            time.perf_counter() - started,
            placement.kept,
        )
        return output

    def _edit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Under a mask, by what the pipeline makes of photo and mask."""
        own_mask = None
        if not _takes_mask(self.pipe):
            own_mask = kwargs.pop("mask_image", None)
        given = {"mask_image": own_mask} | _bind(self.pipe, args, kwargs)
        image, mask_image = _first(given, PHOTOS), _first(given, MASKS)
        if mask_image is None:
            raise ValueError(
                "mask_image was not given: there is nothing to compress by; give one, white where "
                "the photo is to be edited, or call the pipeline itself"
            )
        _check_pixels("image", image, lowest=-1)  # which pipelines take as [-1, 1]
        _check_pixels("mask_image", mask_image, lowest=0)
        state = _State(mask_image)
        started = time.perf_counter()
        sequence, inside = self.method, self.inside
        if isinstance(sequence, BlockMethod):
            sequence, inside = Dense(), sequence
        with attached(self.pipe, sequence, state, inside):
            output = self.pipe(*args, **kwargs)
        assert state.source is not None  # else the first step refused
        assert state.plan is not None
        overlaid = given.get("padding_mask_crop") is not None  # by the pipeline itself
        if given.get("output_type", "pil") != "latent" and not overlaid:
            output = self._composite(output, image, state.source)
        seconds = state.watch.seconds
        self.last_run = Run(
            state.plan,
            self.method,
            len(state.steps),
            state.sequence,
            seconds.get("plan", 0.0),
            seconds.get("dit", 0.0),
            seconds.get("vae", 0.0),
            time.perf_counter() - started,
            state.placement.kept if state.placement else {},
            tuple(state.reuse.refreshed) if state.reuse else None,
            state.reuse.bytes if state.reuse else 0,
        )
        return output

    def _composite(self, output: Any, image: Any, source: Source) -> Any:
        images = output[0]
        photo_B3HW = _exact_photo(image, source.photo_B3HW)
        mixed = composite_images(images, photo_B3HW, source.mask_B1HW, self.feather)
        if isinstance(output, tuple):
            return (mixed, *output[1:])
        output.images = mixed
        return output


@dataclass
class _State:
    """What a call knows so far."""

    mask_image: Any = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    source: Source | None = None
    plan: TokenPlan | None = None
    adapter: Adapter | None = None
    placement: Placement | None = None
    reuse: Reuse | None = None
    steps: set[int] = field(default_factory=set)
    sequence: tuple[int, int] = (0, 0)


@contextmanager
def attached(
    pipe: Any, method: Any, state: _State, inside: BlockMethod | None = None
) -> Iterator[None]:
    """Capture, plan and hook for the length of this context; nothing is left behind."""
    transformer, owner = pipe.transformer, threading.get_ident()

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        if state.plan is None and threading.get_ident() == owner:
            _begin(pipe, method, state, seen, _bind_call(module, args, kwargs))
            for handle in state.adapter.inner_hooks(transformer) if state.adapter else ():
                stack.callback(handle.remove)
            if state.adapter and getattr(method, "refresh", None) is not None:
                state.reuse = Reuse(state.adapter, method, pipe, transformer)
                stack.callback(state.reuse.attach().remove)

    with ExitStack() as stack:
        seen = stack.enter_context(captured(pipe))
        if getattr(transformer, "is_cache_enabled", False):
            transformer._reset_stateful_cache()  # a run broken off may have left another length's
        stack.enter_context(state.watch.watch("vae", *_vae_parts(pipe)))
        for handle in _frame(pipe, transformer, state, owner):
            stack.callback(handle.remove)
        stack.enter_context(state.watch.watch("dit", transformer))
        untraced: Any = torch.compiler.disable
        first = transformer.register_forward_pre_hook(
            untraced(begin), with_kwargs=True, prepend=True
        )
        stack.callback(first.remove)
        if inside:
            plan = lambda: state.plan if state.adapter else None  # noqa: E731
            state.placement = stack.enter_context(placed(transformer, inside, pipe.scheduler, plan))
        yield


def _vae_parts(pipe: Any) -> list[nn.Module]:
    return [part for name in ("encoder", "decoder") if (part := getattr(pipe.vae, name, None))]


def _begin(pipe: Any, method: Method, state: _State, seen: Seen, call: dict[str, Any]) -> None:
    """At the first call of the transformer all is known: the source, its grid, so the plan."""
    family = adapter_for(pipe)
    source = family.make_source(pipe, seen, state.mask_image, call)
    if source is None:
        raise ValueError(
            "no image and mask_image were given: there is nothing to compress by; give both, or "
            "call the pipeline itself"
        )
    with state.watch.time("plan"):
        photo_B3HW = (source.photo_B3HW / 2 + 0.5).clamp(0, 1)
        plan = method.plan(photo_B3HW, source.mask_B1HW, source.grid)
    state.source, state.plan = source, plan
    tokens = family.tokens(call).shape[1]
    state.sequence = tokens, tokens
    if not isinstance(method, Dense):
        state.adapter = family(pipe, plan, source, call)
        state.sequence = tokens, len(state.adapter.counts_S)


def _frame(pipe: Any, transformer: nn.Module, state: _State, owner: int) -> list[Any]:
    """Hooks around every call of the transformer: shorten what goes in, restore what comes out.

    Another thread may be running a pipeline that shares the transformer: its calls pass untouched.
    """
    call: dict[str, Any] = {}

    # While a hook is put in or taken out, PyTorch may leave `kwargs` out in another thread's call.
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        if threading.get_ident() != owner:
            return None
        state.steps.add(_step(pipe.scheduler))
        if state.adapter is None:
            return None
        call.clear()
        call.update(_bind_call(module, args, kwargs))
        if state.reuse:
            call.update(state.reuse.before(call, _step(pipe.scheduler)))
        return (), state.adapter.shorten(call, _sigma(pipe.scheduler))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        if state.adapter is None or threading.get_ident() != owner:
            return None
        velocity = state.adapter.restore(output[0], call, _sigma(pipe.scheduler))
        if state.reuse:
            state.reuse.after()
        call.clear()
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

    untraced: Any = torch.compiler.disable  # for a transformer compiled in place
    # Innermost of all hooks: the user's own see whole sequences, going in and coming out.
    return [
        transformer.register_forward_pre_hook(untraced(before), with_kwargs=True),
        transformer.register_forward_hook(untraced(after), with_kwargs=True, prepend=True),
    ]


def _step(scheduler: Any) -> int:
    index = scheduler.step_index
    return (scheduler.begin_index or 0) if index is None else index  # None: before the first step


def _sigma(scheduler: Any) -> float:
    """The noise level of the step under way; the timestep would be too coarse in bfloat16."""
    return float(scheduler.sigmas[_step(scheduler)])


def _bind_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return kwargs
    model = getattr(module, "_orig_mod", module)
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def _makes_from_text(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline takes neither photo nor mask."""
    return hasattr(pipe, "transformer") and not {"image", *MASKS} & _parameters(pipe)


def _first(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), None)


def _takes_mask(pipe: DiffusionPipeline) -> bool:
    return "mask_image" in _parameters(pipe)


def _parameters(pipe: DiffusionPipeline) -> set[str]:
    """Of the call, those that a subclass takes by **kwargs and hands on included."""
    calls = [vars(cls)["__call__"] for cls in type(pipe).__mro__ if "__call__" in vars(cls)]
    return {name for call in calls for name in inspect.signature(call).parameters}


def _bind(pipe: DiffusionPipeline, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    given = inspect.signature(pipe.__call__).bind(*args, **kwargs).arguments
    return given | kwargs  # those under **kwargs too, by their own names


def _check_pixels(name: str, image: Any, lowest: float) -> None:
    """Refuse arrays and tensors that the pipeline would take and turn into noise."""
    if isinstance(image, list | tuple):
        for one in image:
            _check_pixels(name, one, lowest)
        return
    if not isinstance(image, np.ndarray | Tensor) or 0 in image.shape:
        return
    low, high = image.min().item(), image.max().item()
    if not (low >= lowest and high <= 1):  # NaN fails both
        raise ValueError(f"{name} holds values from {low} to {high}: give finite ones in [0, 1]")


def _exact_photo(image: Any, resized_B3HW: Tensor) -> Tensor:
    """The photo in [0, 1]: the user's own values where the pipeline did not resize them."""
    given = [as_batch(one, 3) for one in (image if isinstance(image, list | tuple) else [image])]
    resized_B3HW = (resized_B3HW.float().cpu() / 2 + 0.5).clamp(0, 1)
    if sum(len(one) for one in given) != len(resized_B3HW):  # references follow the photo
        given = given[:1]
    if min(one.min() for one in given) < 0:  # the pipeline takes such values to lie in [-1, 1]
        return resized_B3HW
    pairs = zip(given, resized_B3HW.split([len(one) for one in given]), strict=True)
    return torch.cat([a.float().cpu() if a.shape == b.shape else b for a, b in pairs])
