"""The one way to attach to a model or a pipeline that is not ours, and to undo it.

Everything here is a context manager, acts on calls from the thread that entered it alone, and
leaves the thing as it found it: another thread may be running a pipeline that shares the model.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[str, Any]  # the arguments of a transformer's call, by name
Before = Callable[[nn.Module, tuple[Any, ...], Call], Any]
After = Callable[[nn.Module, tuple[Any, ...], Call, Any], Any]

_LOCK = threading.Lock()
_ABSENT = object()


def unwrap(model: Any) -> Any:
    """The module inside `torch.compile(model)`, or the module itself."""
    return getattr(model, "_orig_mod", model)


def compiled_whole(model: Any) -> bool:
    """Whether the module's own call is compiled, by `torch.compile(model)` or `model.compile()`."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def any_compiled(model: nn.Module) -> bool:
    """Whether the module or a part of it, such as its repeated blocks, is compiled."""
    return any(compiled_whole(part) for part in (model, *unwrap(model).modules()))


def compiling() -> bool:
    """Whether this code is being traced by torch.compile, where a thread cannot be asked for."""
    return torch.compiler.is_compiling()


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run as it is where compiled code calls it."""
    # Importing the compiler takes a second: where nobody has, nothing is compiled.
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def bind_call(module: nn.Module, args: Sequence[Any], kwargs: Call | None) -> Call:
    """The arguments of a module's call by the names that its `forward` gives them."""
    if not args:
        return kwargs or {}
    names = list(inspect.signature(type(unwrap(module)).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | (kwargs or {})


@contextmanager
def shadowed(thing: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Calls of the method `name` of this one object go to `stand_in(original, *args, **kwargs)`.

    Shadows nest, the one entered last is asked first. Works on `forward` too, also where compiled
    code passes over hooks that were put on after its first call: it asks for this attribute.
    """
    owner = threading.get_ident()
    with _LOCK:
        shadow = vars(thing).get(name)
        if not isinstance(shadow, _Shadow):
            shadow = _Shadow(thing, name)
            setattr(thing, name, shadow)
        shadow.stand_ins[owner] = (*shadow.stand_ins.get(owner, ()), stand_in)
    try:
        yield
    finally:
        with _LOCK:
            left = list(shadow.stand_ins.pop(owner))
            del left[len(left) - 1 - left[::-1].index(stand_in)]
            if left:
                shadow.stand_ins[owner] = tuple(left)
            elif not shadow.stand_ins:
                shadow.undo(thing, name)


class _Shadow:
    """A method of an object for which some threads have stand-ins."""

    def __init__(self, thing: Any, name: str) -> None:
        self.before = vars(thing).get(name, _ABSENT)
        self.original = getattr(thing, name)
        self.stand_ins: dict[int, tuple[Callable[..., Any], ...]] = {}
        self.ask = untraced(self._ask)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.ask(*args, **kwargs)

    def _ask(self, *args: Any, **kwargs: Any) -> Any:
        call = self.original
        for stand_in in self.stand_ins.get(threading.get_ident(), ()):
            call = partial(stand_in, call)
        return call(*args, **kwargs)

    def undo(self, thing: Any, name: str) -> None:
        if vars(thing).get(name) is not self:
            return  # an offloading hook has put back the method meanwhile
        if self.before is _ABSENT:
            delattr(thing, name)
        else:
            setattr(thing, name, self.before)


def hooked(
    module: nn.Module, before: Before | None = None, after: After | None = None, first: bool = False
) -> AbstractContextManager[None]:
    """Around every call of the module: `before(module, args, kwargs)`, which may return other
    arguments, and `after(module, args, kwargs, output)`, which may return another output.

    Args:
        first: outside of all hooks that are there, so before them and after them, and after an
            exception too (with no output); else inside
    """
    if getattr(module, "_compiled_call_impl", None) is not None:  # its hooks are compiled too
        return shadowed(module, "_compiled_call_impl", _around(module, before, after, first))
    return _ordinary_hooks(module, before, after, first)


def _around(
    module: nn.Module, before: Before | None, after: After | None, always: bool
) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        changed = before(module, args, kwargs) if before else None
        if changed is not None:
            args, kwargs = changed
        try:
            output = original(*args, **kwargs)
        except BaseException:
            if after and always:
                after(module, args, kwargs, None)
            raise
        changed = after(module, args, kwargs, output) if after else None
        return output if changed is None else changed

    return around


@contextmanager
def _ordinary_hooks(
    module: nn.Module, before: Before | None, after: After | None, first: bool
) -> Iterator[None]:
    owner, handles = threading.get_ident(), []

    # While a hook is put in or taken out, PyTorch may leave `kwargs` out in another thread's call.
    def enter(module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        return before(module, args, kwargs) if before and threading.get_ident() == owner else None

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        if after is None or threading.get_ident() != owner:
            return None
        return after(module, args, kwargs, output)

    if before:
        handles.append(
            module.register_forward_pre_hook(untraced(enter), with_kwargs=True, prepend=first)
        )
    if after:
        handles.append(
            module.register_forward_hook(
                untraced(leave), with_kwargs=True, prepend=not first, always_call=first
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inner_call(module: nn.Module) -> Callable[..., Any]:
    """The module's call inside of all that `hooked` puts around it.

    For a hook that makes another call of the module it is on.
    """
    shadow = vars(module).get("_compiled_call_impl")
    return shadow.original if isinstance(shadow, _Shadow) else module.forward


@contextmanager
def for_this_thread_alone(module: nn.Module) -> Iterator[None]:
    """In this context, a call of the module from another thread raises RuntimeError.

    For compiled modules, whose code cannot tell whose call it runs.
    """
    owner = threading.get_ident()

    def refuse(module: nn.Module, args: Any) -> None:
        if threading.get_ident() != owner:
            raise RuntimeError(
                f"this {type(unwrap(module)).__name__} is compiled, and another thread runs it "
                "compressed: compiled code cannot tell threads apart; wait for it, or leave it "
                "uncompiled"
            )

    handle = module.register_forward_pre_hook(untraced(refuse), prepend=True)
    try:
        yield
    finally:
        handle.remove()


class Made:
    """A value made of some tensors, and made anew only where one of them is another."""

    def __init__(self) -> None:
        self._known: list[tuple[tuple[Any, ...], list[int | None], Any]] = []

    def of(self, things: tuple[Tensor, ...], make: Callable[[], Any]) -> Any:
        """The value for these, of the last four: guidance may have as many branches."""
        marks = [None if x.is_inference() else x._version for x in things]  # changes in place
        for known, before, value in self._known:
            if before == marks and all(map(is_, known, things)):
                return value
        made = make()
        self._known = [*self._known[-3:], (things, marks, made)]
        return made


class StepClock:
    """Which step of a run a call of the transformer belongs to, and which branch of guidance.

    step:   from 0, the first of this run
    branch: 0, or 1 in the second call of a step, as guidance by a second prompt makes it
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.step, self.branch = -1, 0
        self._found, self._stepped = getattr(scheduler, "step_index", None), False
        self._time: float | None = None
        self._mark: tuple[Any, ...] | None = None
        self._read: dict[str, tuple[Any, list[float]]] = {}

    def tick(self, time: Callable[[], float] | None = None) -> None:
        """Another call. A call at the same index of the scheduler is another branch.

        Timesteps would not tell: bfloat16 gives neighbouring ones one value, second-order
        schedulers repeat them. But who drives a transformer by hand may step no scheduler: until
        its index has moved, calls at another time are other steps too.

        Args:
            time: reads the noise level off the call, 1 at pure noise and 0 without, for which the
                host waits
        """
        index = getattr(self.scheduler, "step_index", None)
        self._stepped = self._stepped or index not in (None, self._found)
        self._time = None
        if time is not None and not self._stepped:
            self._time = time()
            if hasattr(self.scheduler, "step_index"):  # it will tell, from the next step on
                self._listed("timesteps")
        mark = index, self._time
        if mark == self._mark:
            self.branch += 1
        else:
            self.step, self.branch, self._mark = self.step + 1, 0, mark

    @property
    def index(self) -> int:
        """Of the step among the scheduler's own, of which image-to-image leaves the first out."""
        index = self.scheduler.step_index
        return (self.scheduler.begin_index or 0) if index is None else index

    @property
    def sigma(self) -> float:
        """The noise level of the step; the timestep would be too coarse in bfloat16."""
        return self._listed("sigmas")[self.index]

    @property
    def sigmas(self) -> list[float]:
        """The noise level of every step of the run."""
        return self._listed("sigmas")[self.index - self.step : -1]

    @property
    def time(self) -> float:
        """The timestep of the step as a noise level, 1 at pure noise and 0 without."""
        if self._time is not None:
            return self._time
        return self._listed("timesteps")[self.index] / self.scheduler.config.num_train_timesteps

    def _listed(self, name: str) -> list[float]:
        """A table of the scheduler, read once a run: the host waits for a device that it is on."""
        table = getattr(self.scheduler, name)
        if self._read.get(name, (None,))[0] is not table:
            self._read[name] = table, table.tolist()
        return self._read[name][1]
