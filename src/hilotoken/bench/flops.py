"""FLOPs counted as they are done: two for each multiply-add of matrix products and attention."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..methods import SDTM, AnyMethod, FewerSteps
from ..methods.within import Within


def count_flops(call: Callable[[], Any], module: nn.Module) -> float:
    """FLOPs of a forward pass of `module` during `call()`, the mean of them all."""
    return fmean(flops_by_pass(call, module))


def flops_by_pass(call: Callable[[], Any], module: nn.Module) -> list[int]:
    """FLOPs of every forward pass of `module` during `call()`.

    What shortens and restores its sequence is counted with it, as the clock counts it. Compiled
    blocks run eagerly meanwhile: a counter does not see into compiled code.
    """
    counter, totals = FlopCounterMode(display=False, custom_mapping=_UNLISTED), []
    handles = [
        hook(lambda *_: totals.append(counter.get_total_flops()))
        for hook in (module.register_forward_pre_hook, module.register_forward_hook)
    ]
    try:
        with torch.compiler.set_stance("force_eager"), counter:
            call()
    finally:
        for handle in handles:
            handle.remove()
    return [after - before for before, after in zip(totals[::2], totals[1::2], strict=True)]


def steps_alike(method: AnyMethod) -> bool:
    """Whether every step of an edit costs the same, so that one needs counting."""
    if isinstance(method, Within):
        return steps_alike(method.outer) and steps_alike(method.inside)
    seldom = getattr(method, "refresh", None) is not None or getattr(method, "reuse", 1) > 1
    return not seldom and not isinstance(method, SDTM | FewerSteps)


def _attention(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """From the shapes of query, key and value."""
    return sdpa_flop_count(query, key, value)


# Attention on a CPU is missing from torch's own list, and would count as nothing.
_UNLISTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
