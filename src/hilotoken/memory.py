"""What is kept from call to call, by its content: bounded in bytes, the least recently used goes.

A key is made of the bytes of all that a result follows from, so that nothing stale is ever found.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

Key = tuple[Hashable, ...]  # the kind of thing first
SAMPLES = 64  # numbers of a weight, by which a change of it is told


class Memory:
    """Things by key, of `limit` bytes at most; None for as many as come."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._kept: OrderedDict[Key, tuple[Any, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory that the tensors in it take."""
        return sum(size for _, size in self._kept.values())

    def get(self, key: Key) -> Any:
        """What is kept under the key, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Key, value: Any) -> None:
        """Keep it, and let go what was not used for longest; what is too large is not kept."""
        size = bytes_of(value)
        if self.limit is not None and size > self.limit:
            return
        self._kept[key] = value, size
        self._kept.move_to_end(key)
        while self.limit is not None and self.bytes > self.limit:
            self._kept.popitem(last=False)

    def of_kind(self, kind: Hashable) -> list[tuple[Key, Any]]:
        """All that is kept of a kind, the last used first."""
        return [(key, value) for key, (value, _) in reversed(self._kept.items()) if key[0] == kind]

    def clear(self) -> None:
        self._kept.clear()


def bytes_of(value: Any) -> int:
    """Memory of all tensors in it, each counted once."""
    found = {t.data_ptr(): t.numel() * t.element_size() for t in _tensors(value)}
    return sum(found.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        parts = vars(value).values()
    for part in parts:
        yield from _tensors(part)


def fingerprint(value: Any) -> bytes | None:
    """Stands for the content of a value: equal where that is. None for what it cannot read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for part in _parts(value):
            digest.update(part)
    except TypeError:
        return None
    return digest.digest()


def _parts(value: Any) -> Iterator[bytes | memoryview]:
    """The bytes of a value, each behind what says where it begins and ends."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)} {value.device}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"array {value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Image.Image):
        yield f"picture {value.mode} {value.size} {value.getpalette()}".encode()
        yield value.tobytes()
    elif isinstance(value, str | bytes | int | float | None | torch.dtype | torch.device):
        yield f"{type(value).__name__} {value!r};".encode()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value, key=repr):
            yield from _parts(key)
            yield from _parts(value[key])
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}".encode()
        for part in value:
            yield from _parts(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__.encode()
        yield from _parts([getattr(value, one.name) for one in fields(value)])
    else:
        raise TypeError(f"unreadable: {type(value).__name__}")


def weights_of(*modules: Any) -> Key:
    """Changes when weights are loaded or changed, and with the adapters of a LoRA and their scales.

    What is changed through `.data`, as a LoRA is fused, counts as no change to autograd: some
    numbers of each weight are looked at too.
    """
    models = [m for m in modules if isinstance(m, nn.Module)]
    parameters = [p for m in models for p in m.parameters()]
    marks = [(id(p), p.dtype, None if p.is_inference() else p._version) for p in parameters]
    tuners = [adapter_of(layer) for m in models for layer in adapted(m)]
    return (*marks, *tuners, _sampled(parameters))


def adapted(model: nn.Module) -> list[Any]:
    """PEFT's layers, which hold adapters such as those of a LoRA."""
    return [
        part
        for part in model.modules()
        if hasattr(part, "scaling") and hasattr(part, "active_adapters")
    ]


def adapter_of(layer: Any) -> tuple[Any, ...]:
    """Changes with the adapters of the layer that are on, and with their scales."""
    return repr(layer.scaling), repr(layer.active_adapters), layer.disable_adapters


def _sampled(parameters: list[nn.Parameter]) -> bytes:
    """Some numbers of each, evenly over it; none of those that are quantised, or not there."""
    plain = [p.detach() for p in parameters if type(p) is nn.Parameter and not p.is_meta]
    samples = [p.reshape(-1)[:: max(1, p.numel() // SAMPLES)].float() for p in plain]
    devices = dict.fromkeys(x.device for x in samples)
    parts = [torch.cat([x for x in samples if x.device == device]) for device in devices]
    return b"".join(x.cpu().numpy().tobytes() for x in parts)
