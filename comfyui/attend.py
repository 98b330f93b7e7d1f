"""What is done inside ComfyUI's attention, by its own way in: `optimized_attention_override`.

Keys that count for many (`weights`, ToMe's proportional attention), and a KV cache of the context,
filled at a refresh and read between (`refresh`).

B batch, H heads, L keys (text, then image, then padding), T of them of image and padding, X of
those context, D channels a head.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hilotoken.kv_store import restored, stored

OVERRIDE = "optimized_attention_override"
STATE, OTHER = "hilotoken_attention", "hilotoken_other_override"


@dataclass
class Cache:
    """Keys and values of the context, a pair for each attention call, in their order.

    context_X: which tokens of image and padding are context; counts_X: how many each stands for
    """

    context_X: Tensor
    counts_X: Tensor
    store: str | None
    pairs: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = field(default_factory=list)


@dataclass
class Attention:
    """One call of the transformer, as its attention sees it.

    whole:    L of a call on text and image, where that is the only kind to be changed; or None
    counts_T: how many tokens each of the image, and of the padding behind it, stands for; 0: none,
              and it is not seen
    alone:    attention calls on text alone, which come first
    cache:    what is kept of the context; `refresh` says whether it is filled, or read
    """

    whole: int | None
    counts_T: Tensor
    alone: int = 0
    cache: Cache | None = None
    refresh: bool = True
    calls: int = 0
    read: int = 0

    def attend(
        self, inner: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Any
    ) -> Tensor:
        self.calls += 1
        if not self._is_of_image(k.shape[2]):
            return inner(q, k, v, mask)
        counts = self.counts_T
        if self.cache is not None and self.refresh:
            self._keep(self.cache, k, v)
        elif self.cache is not None:
            k, v, mask = self._with_kept(self.cache, k, v, mask)
            counts = torch.cat([counts, self.cache.counts_X])
        if bool((counts != 1).any()):
            mask = _counted(counts, q, k, mask)
        return inner(q, k, v, mask)

    def _is_of_image(self, keys: int) -> bool:
        """Whether these keys end with the image's; they may be a text's, or an image prompt's."""
        if self.calls <= self.alone or keys < len(self.counts_T):
            return False
        return self.whole in (None, keys)

    def _keep(self, cache: Cache, k: Tensor, v: Tensor) -> None:
        rows = cache.context_X + k.shape[2] - len(self.counts_T)
        key, value = (x.index_select(2, rows).transpose(1, 2) for x in (k, v))
        cache.pairs.append((stored(key, cache.store), stored(value, cache.store)))

    def _with_kept(self, cache: Cache, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
        key, value = (restored(x, k).transpose(1, 2) for x in cache.pairs[self.read])
        self.read += 1
        if mask is not None:  # one on text, as Qwen-Image has: none on the image
            kept = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
            mask = torch.cat([mask, kept(*mask.shape[:-1], key.shape[2])], -1)
        return torch.cat([k, key], 2), torch.cat([v, value], 2), mask


def _counted(counts_T: Tensor, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """A mask that adds log(count) to the logits of the last keys."""
    bias_L = F.pad(counts_T.float().log(), (k.shape[2] - len(counts_T), 0)).to(q)
    bias = bias_L.expand(1, 1, q.shape[2], -1)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return mask + bias


def overridden(options: dict[str, Any], attention: Attention) -> dict[str, Any]:
    """The options of a call, in which this attention stands before all others."""
    return options | {STATE: attention, OTHER: options.get(OVERRIDE), OVERRIDE: _override}


@torch.compiler.disable  # one function for all calls, so that compiled code has one to call
def _override(
    original: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
):
    """Attention with q, k, v laid out as [B, H, L, D], whatever the model hands over."""
    options = kwargs["transformer_options"]
    attend, other = original, options[OTHER]

    def inner(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        call = kwargs | {"mask": mask, "skip_reshape": True}
        if other is not None:
            return other(attend, q, k, v, heads, *args[1:], **call)
        return attend(q, k, v, heads, *args[1:], **call)

    mask = args[0] if args else kwargs.pop("mask", None)
    if mask is not None and mask.ndim < 4:  # of keys, or of queries and keys; of a batch, or not
        mask = mask.unsqueeze(-3) if mask.ndim == 3 else mask[None, None]
    if not kwargs.pop("skip_reshape", False):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return options[STATE].attend(inner, q, k, v, mask)
