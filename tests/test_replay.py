"""A reuse step, captured once, may be replayed, as a CUDA graph repeats kernels as they were.

From one refresh to the next, each does the same operations inside the transformer, on the same
shapes, with the same numbers, at the same addresses; but for the call's own tensors, which who
replays copies into the captured ones. A refresh keeps other keys, so what is captured ends with it.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import BY_NAME, arguments
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hilotoken import HiLo, Refresh, compress

OTHERS = torch.ones(3, 3).clone().unbind()
STORES = {"float8": HiLo(coarse=0, refresh=Refresh(2, store="float8", bucket=8))}


class Trace(TorchDispatchMode):
    """What is done while it is on: every operation, and where what it reads comes from.

    given: tensors of the call, known by their order; others are made on the way, by the order of
           their making, or were there before, by their address
    """

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.places = {_storage(x): f"given {i}" for i, x in reversed(list(enumerate(given)))}
        self.alive: list[Any] = [given]  # or another tensor would come to lie at the same address
        self.done: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.done.append((str(func), *tree_leaves(tree_map(self._seen, (args, kwargs)))))
        output = func(*args, **kwargs)
        for x in tree_leaves(output):
            if isinstance(x, Tensor):
                self.places.setdefault(_storage(x), f"made by {len(self.done)}")
        self.alive.append(output)
        return output

    def _seen(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return str(x)
        place = self.places.get(_storage(x), f"at {x.data_ptr():x}")
        if x.is_cpu and not x.ndim and "at" in place:
            place = f"number {x.item()}"
        return f"{place}, {x.dtype}, {tuple(x.shape)}, {x.stride()}"


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def spans(pipe: Any, method: Any, given: dict[str, Any]) -> list[list[Any]]:
    """What the transformer does inside, under all that is put around its call, at the reuse steps
    from refresh to refresh; but for the run's first, at which tables are made."""
    model, forward, found = pipe.transformer, pipe.transformer.forward, []

    def traced(*args: Any, **kwargs: Any) -> Any:
        with Trace([x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]) as trace:
            output = forward(*args, **kwargs)
        found.append(trace.done)
        return output

    model.forward = traced
    try:
        run = compress(pipe, method)
        run(**given)
    finally:
        del model.forward
    begins = [*run.last_run.refreshed, len(found)]
    spans = [found[begin + 1 : end] for begin, end in pairwise(begins)]
    first = next(span for span in spans if span)
    del first[0]
    return spans


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("FluxFillPipeline", "faithful"),
        ("FluxFillPipeline", "fast"),
        ("FluxFillPipeline", "float8"),
        ("FluxInpaintPipeline", "balanced"),  # weights
        ("QwenImageEditInpaintPipeline", "faithful"),
        ("StableDiffusion3InpaintPipeline", "faithful"),
        ("ZImageInpaintPipeline", "faithful"),
    ],
)
def test_every_reuse_step_is_the_same_work_at_the_same_addresses(name, method):
    family = BY_NAME[name]
    pipe = family.make(torch.float32)
    given = arguments(family, num_inference_steps=9)
    found = spans(pipe, STORES.get(method, method), given)
    assert max(map(len, found)) > 1
    for span in found:
        assert all(len(step) > 20 for step in span)
        assert all(step == span[0] for step in span)


@pytest.mark.parametrize(
    "act",
    [
        lambda x, step: x * step,
        lambda x, step: x[:step],
        lambda x, step: x + OTHERS[step],
        lambda x, step: x.sin() if step == 1 else x.cos(),
    ],
)
def test_work_that_depends_on_the_host_is_seen(act: Callable[..., Any]):
    x, found = torch.randn(3), []
    for step in (1, 2):
        with Trace([]) as trace:
            act(x, step)
        found.append(trace.done)
    assert found[0] != found[1]
