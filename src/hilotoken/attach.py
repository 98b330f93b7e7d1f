"""Hooks around a pipeline's transformer, for the length of one call."""

import inspect
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .adapters import Adapter, adapter_for
from .blocks.attach import Placement, placed
from .capture import Seen, Source, captured
from .methods import BlockMethod, Dense, Method
from .plan import TokenPlan
from .reuse import Reuse
from .timing import Stopwatch


@dataclass
class State:
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
    pipe: Any, method: Any, state: State, inside: BlockMethod | None = None
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
        stack.enter_context(state.watch.watch("vae", *vae_parts(pipe)))
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


def vae_parts(pipe: Any) -> list[nn.Module]:
    return [part for name in ("encoder", "decoder") if (part := getattr(pipe.vae, name, None))]


def _begin(pipe: Any, method: Method, state: State, seen: Seen, call: dict[str, Any]) -> None:
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


def _frame(pipe: Any, transformer: nn.Module, state: State, owner: int) -> list[Any]:
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
