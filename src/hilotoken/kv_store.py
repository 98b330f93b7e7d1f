"""The KV cache of a run: keys and values of the context, of which blocks, and in how many bits.

B batch, X tokens kept, H heads, D channels a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import block_numbers

EIGHT_BITS = torch.float8_e4m3fn


def in_blocks(model: nn.Module, modules: Sequence[Any], blocks: Any) -> list[Any]:
    """Those of the attention modules that lie in `blocks`, which are numbered as they run.

    Raises ValueError for blocks that the model does not have.
    """
    parents = {id(m): name.rpartition(".")[0] for name, m in model.named_modules()}
    order = list(dict.fromkeys(parents[id(m)] for m in modules))
    chosen = block_numbers("refresh.blocks", blocks, len(order))
    return [m for m in modules if order.index(parents[id(m)]) in chosen]


def kept_bytes(branches: int, tokens: int, channels: int, modules: int, size: int) -> int:
    """Memory that keys and values take.

    Args:
        branches: samples in all branches of guidance
        tokens: of the context, and of text where that is kept too
        channels: of all heads
        modules: attention modules that keep them
        size: bytes a number
    """
    return 2 * branches * tokens * channels * modules * size


def stored(x_BXHD: Tensor, store: str | None) -> tuple[Tensor, ...]:
    """The tensor as `Refresh.store` says; eight bits have a scale for each head."""
    if store is None:
        return (x_BXHD,)
    if store == "bfloat16":
        return (x_BXHD.bfloat16(),)
    if not x_BXHD.numel():  # the mask covers the grid, and nothing has no largest
        return (x_BXHD,)
    largest = x_BXHD.abs().amax((1, 3), keepdim=True).clamp_min(1e-12)
    scale = largest.float() / torch.finfo(EIGHT_BITS).max
    return (x_BXHD / scale).to(EIGHT_BITS), scale


def restored(parts: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """What `stored` took, in the precision of `like`."""
    x_BXHD = parts[0].to(like.dtype)
    return x_BXHD if len(parts) == 1 else (x_BXHD * parts[1]).to(like.dtype)


def taken(kept: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    """These rows of what `stored` made of keys, and then of values; scales are of all rows."""
    half = len(kept) // 2
    return tuple(x if i % half else x.index_select(1, rows) for i, x in enumerate(kept))
