"""FLOPs counted as they are done: two for each multiply-add of matrix products and attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(call: Callable[[], Any], module: nn.Module) -> int:
    """FLOPs of all forward passes of `module`, which no other module contains, during `call()`.

    What its hooks do is counted with it, as the clock counts it. Compiled blocks run
    eagerly meanwhile: a counter does not see into compiled code.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_UNLISTED)
    with torch.compiler.set_stance("force_eager"), counter:
        call()
    return sum(counter.get_flop_counts()[type(module).__name__].values())


def _attention(
    query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """From the shapes of query, key and value."""
    return sdpa_flop_count(query, key, value)


# Attention on a CPU is missing from torch's own list, and would count as nothing.
_UNLISTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
