"""A second device, made of the CPU's memory: who copies to it or waits for it is seen.

A `Far` tensor says that it is on the meta device, and holds a tensor of the CPU, on which its
operations run. As on an accelerator, tensors of two devices do not mix, and the host reads no value
without asking for it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_any, tree_leaves, tree_map

FAR, HERE = torch.device("meta"), torch.device("cpu")
aten: Any = torch.ops.aten

# Whose result, or its shape, the host must know before it goes on.
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.nonzero_numpy, aten.masked_select, aten.equal,
    aten.is_nonzero, aten.unique_dim, aten._unique2, aten.unique_consecutive, aten.bincount,
    aten.argwhere,
}  # fmt: skip
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Stall(NamedTuple):
    """Why the host waits or copies, and the line in hilotoken or diffusers that makes it."""

    why: str
    place: str


class Far(Tensor):
    """See above. `near` is the tensor that it holds."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        make: Any = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        layout = near.shape, near.stride(), near.storage_offset()
        made = make(cls, *layout, dtype=near.dtype, device=FAR)
        made.near = near
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on what is held; its result is far where a tensor given or the device is."""
    if kwargs.get("device") is None:
        far = _any_far((args, kwargs))
        _check_one_device(func, (args, kwargs))
    else:
        far = torch.device(kwargs["device"]) == FAR
        kwargs = kwargs | {"device": HERE}
    output = func(*_near(args), **_near(kwargs))
    if not far or (func.overloadpacket is aten.copy_ and not isinstance(args[0], Far)):
        return output
    made = tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, output)
    return return_and_correct_aliasing(func, args, kwargs, made)


def _any_far(given: Any) -> bool:
    return tree_any(lambda x: isinstance(x, Far), given)


def _near(given: Any) -> Any:
    return tree_map(lambda x: x.near if isinstance(x, Far) else x, given)


def _check_one_device(func: Any, given: Any) -> None:
    """As PyTorch does: a number alone, and an index, may be on the CPU."""
    near = [x for x in tree_leaves(given) if isinstance(x, Tensor) and not isinstance(x, Far)]
    assert not any(x.is_meta for x in near), f"{func}: a tensor without values slipped by"
    mixes = {aten.copy_, *INDEXED}
    if _any_far(given) and any(x.ndim for x in near) and func.overloadpacket not in mixes:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")


class Watch(TorchDispatchMode):
    """Notes every stall while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.stalls: list[Stall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.note(_why(func, args, kwargs))
        return _run(func, args, kwargs)

    def note(self, why: str) -> None:
        if why:
            self.stalls.append(Stall(why, _place()))


class Literals(TorchFunctionMode):
    """What PyTorch makes of numbers and lists without asking a dispatch mode, made by hand."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Far):
            args = (args[0], _index(args[1]), *args[2:])
        if func not in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            return func(*args, **kwargs)
        self.watch.note("number" if _any_far(args[-1:]) else "")
        own = args[0].device if isinstance(args[0], Tensor) else None
        device = kwargs.pop("device", None) or own
        made = func(*_near(args), **kwargs)
        return made if device is None else made.to(device)


def _index(given: Any) -> Any:
    """An index in which lists are tensors, which they become anyway."""
    if isinstance(given, tuple):
        return tuple(map(_index, given))
    return torch.tensor(given) if isinstance(given, list) else given


def _why(func: Any, args: Any, kwargs: dict[str, Any]) -> str:
    """Why the host would wait for the device, or copy; empty where it does neither."""
    packet = func.overloadpacket
    far = [isinstance(x, Far) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    device = kwargs.get("device")
    if far and device is not None and (torch.device(device) == FAR) != far[0]:
        return "copy"
    if not any(far):
        return ""
    if packet is aten.copy_ and far[0] != far[1]:
        return "copy"
    repeats = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if packet in WAITS or repeats:
        return packet.__name__
    if packet in INDEXED:
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            return "index by flags"
        return "" if all(isinstance(x, Far) for x in indices) else "copy"
    return ""


def _place() -> str:
    frame: Any = sys._getframe(2)
    while frame:
        for package in ("/hilotoken/", "/diffusers/"):
            _, found, file = frame.f_code.co_filename.rpartition(package)
            if found:
                return f"{package[1:]}{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def moved(pipe: Any) -> Any:
    """The pipeline with the weights of its models on the second device."""
    models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    for module in (module for model in models for module in model.modules()):
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(Far(weight.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Far(buffer)
    return pipe


@contextmanager
def watching() -> Iterator[Watch]:
    watch = Watch()
    with torch.no_grad(), watch, Literals(watch):
        yield watch


def stalls(pipe: Any, run: Callable[..., Any], given: dict[str, Any]) -> Counter[Stall]:
    """Those of a run, after its first step and before its last is over."""
    marks, original = [], pipe.scheduler.step
    with watching() as watch:

        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            marks.append(len(watch.stalls))
            return result

        pipe.scheduler.step = step
        try:
            run(**tree_map(lambda x: x.to(FAR) if isinstance(x, Tensor) else x, given))
        finally:
            del pipe.scheduler.step
    assert len(marks) > 1
    return Counter(watch.stalls[marks[0] : marks[-1]])
