"""The KV cache of a run: keys and values of the context, of which blocks, and in how many bits.

B batch, X tokens kept, H heads, D channels a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import block_numbers

EIGHT_BITS = torch.float8_e4m3fn
Kept = tuple[Tensor, ...]  # keys and values of an attention module, as `stored` keeps them


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


def into(before: Kept | None, now: Kept) -> Kept:
    """What is kept now, in the memory of what was kept before, where that is of the same shapes."""
    if before is None or [x.shape for x in before] != [x.shape for x in now]:
        return now
    for there, x in zip(before, now, strict=True):
        there.copy_(x)
    return before


def check_fits(needed: int, model: Any, device: torch.device) -> None:
    """Before keys and values are kept, rather than in the middle of it.

    Args:
        needed: bytes that they will take
        model: the transformer, of which offloading may have yet to load something

    Raises:
        MemoryError: fewer are free on a GPU.
    """
    free = _free_memory(device)
    if free is None:
        return
    needed += _yet_to_load(model, device)
    if needed > free:
        raise MemoryError(
            f"the context's keys and values, and what is yet to be loaded of the model, take "
            f"{needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free: use "
            "Refresh(store='float8'), fewer blocks, a smaller context, or a method of none, "
            "as HiLo() is"
        )


def _free_memory(device: torch.device) -> int | None:
    """Bytes free on a GPU, with those that PyTorch holds and does not use; None elsewhere."""
    if device.type != "cuda":
        return None
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _yet_to_load(model: Any, device: torch.device) -> int:
    """Bytes by which the device fills up as `enable_model_cpu_offload` loads a model for its call.

    The model before it goes at the same time. Other ways of offloading load part by part.
    """
    hook: Any = getattr(model, "_hf_hook", None)
    if not hasattr(hook, "prev_module_hook"):
        return 0
    before = getattr(hook.prev_module_hook, "model", None)
    goes = sum(w.nbytes for w in before.parameters() if w.device == device) if before else 0
    return max(0, sum(w.nbytes for w in model.parameters() if w.device != device) - goes)
