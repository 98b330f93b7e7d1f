"""FLOPs counted as they are done: two for each multiply-add of matrix products and attention."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(call: Callable[[], Any], module: nn.Module) -> float:
    """FLOPs of a forward pass of `module` during `call()`, the mean of them all."""
    return fmean(flops_by_pass(call, module))


def flops_by_pass(call: Callable[[], Any], module: nn.Module) -> list[int]:
    """FLOPs of every forward pass of `module` during `call()`.

    What shortens and restores its sequence is counted with it, as the clock counts it. Compiled
    blocks run eagerly meanwhile: a counter does not see into compiled code.
    """
    running: list[FlopCounterMode] = []
    counted: list[int] = []

    def begin(*_: Any) -> None:
        running.append(FlopCounterMode(display=False, custom_mapping=_UNLISTED))
        running[-1].__enter__()

    def end(*_: Any) -> None:
        counter = running.pop()
        counter.__exit__(None, None, None)
        counted.append(counter.get_total_flops())

    handles = [
        module.register_forward_pre_hook(begin),
        module.register_forward_hook(end, always_call=True),  # on errors too
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            call()
    finally:
        for handle in handles:
            handle.remove()
    return counted


def _attention(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """From the shapes of query, key and value."""
    return sdpa_flop_count(query, key, value)


# Attention on a CPU is missing from torch's own list, and would count as nothing.
_UNLISTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
