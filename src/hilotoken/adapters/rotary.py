"""Transformers that attend to text and image at once, with rotary places for both.

FLUX.2, Chroma, LongCat-Image and Fibo take the places as `txt_ids` and `img_ids`, put the text
first, and hand the rotary embedding to every attention module by its name.

L tokens of text and image together, S image tokens of the short sequence.
"""

import threading
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import rerouted, weighted
from .base import Adapter


class Rotary(Adapter):
    """Weights without an attention mask, aligned places, masks on keys shortened like the keys."""

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        short = super().shorten(call, sigma)
        given = call.get("joint_attention_kwargs") or {}
        if given.get("attention_mask") is not None:
            mask = self.short_keys(given["attention_mask"])
            short["joint_attention_kwargs"] = given | {"attention_mask": mask}
        text, self._counts_L = call["encoder_hidden_states"].shape[1], None
        if self.plan.weighted:
            self._counts_L = F.pad(self.counts_S, (text, 0), value=1)
        if self._aligned:
            self._rotary = self._aligned_rotary(short)
            self._coarse_rows = self.coarse_S.nonzero().flatten()
            self._coarse_rows_after_text = self._coarse_rows + text
        return short

    def weighed(self, call: dict[str, Any]) -> dict[str, Any]:
        return {}  # at the attention call instead, see `inner_hooks`

    def inner_hooks(self, transformer: nn.Module) -> list[Any]:
        model: Any = getattr(transformer, "_orig_mod", transformer)
        self._owner, self._counts_L = threading.get_ident(), None
        hooks: list[Any] = []
        if self.plan.weighted:
            hooks.append(_Entered(rerouted(transformer, self._weigh)))
        if self._aligned:
            blocks = [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())]
            again: Any = self._attend_again
            hooks += [b.attn.register_forward_hook(again, with_kwargs=True) for b in blocks]
        return hooks

    def without_text(self, call: dict[str, Any]) -> dict[str, Any]:
        if "txt_ids" not in call or "text_encoder_layers" in call:  # Fibo adds text in every block
            return super().without_text(call)
        given = call.get("joint_attention_kwargs") or {}
        if any(c.get("attention_mask") is not None for c in (call, given)):
            raise ValueError(
                "refresh_text=True and an attention mask do not go together: leave it out"
            )
        text, places = call["encoder_hidden_states"], call["txt_ids"]
        return call | {"encoder_hidden_states": text[:, :0], "txt_ids": places[..., :0, :]}

    def short_keys(self, mask: Tensor) -> Tensor:
        """A mask on all keys [..., L] for the keys that run; a coarse one is masked as its cell.

        A mask of queries and keys [..., L, L] loses the queries too.
        """
        text = mask.shape[-1] - self.spans[-1].stop
        index = torch.cat([torch.arange(text, device=mask.device), self._index_S + text])
        if mask.ndim > 2 and mask.shape[-2] == mask.shape[-1]:
            mask = mask.index_select(-2, index)
        return mask.index_select(-1, index)

    @property
    def _aligned(self) -> bool:
        return self.plan.positions == "aligned" and self.coarse is not None

    @property
    def _index_S(self) -> Tensor:
        """A token of the whole sequence for each of the short one: itself, or one of its cell."""
        (_, w), stride = self.plan.grid, max(self.plan.stride, 1)
        across = -(-w // stride)
        row, column = self.plan.cells_M // across, self.plan.cells_M % across
        grid_S = torch.cat([self.plan.keep_K, stride * (row * w + column)])
        whole = [torch.arange(s.stop - s.start, device=grid_S.device) for s in self.spans]
        pairs = zip(self.spans, whole, strict=True)
        return torch.cat([s.start + (grid_S if s.short else every) for s, every in pairs])

    def _another(self) -> bool:
        """Whether another thread calls, that shares the transformer; compiled code cannot ask."""
        return not torch.compiler.is_compiling() and threading.get_ident() != self._owner

    def _weigh(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        counts_L = self._counts_L
        if self._another() or counts_L is None or counts_L.shape[0] != key.shape[1]:
            return original(query, key, value, **kw)  # other keys: an image prompt's, kept ones
        return weighted(counts_L)(module, query, key, value, original, **kw)

    def _aligned_rotary(self, short: dict[str, Any]) -> Any:
        """The rotary embedding with all places over the stride of the coarse tokens."""
        model = getattr(self.pipe.transformer, "_orig_mod", self.pipe.transformer)
        ids = [short[name] if short[name].ndim == 2 else short[name][0] for name in _PLACES]
        ids_LA = torch.cat([part.float() for part in ids])
        scale_A = torch.ones_like(ids_LA[0])
        scale_A[1:3] = self.plan.stride
        return model.pos_embed.forward(ids_LA / scale_A)

    def _attend_again(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None
    ) -> Any:
        """Coarse queries see every key on their own stride (after arXiv 2511.19778).

        In another thread, while the hook is put in or taken out, PyTorch may leave out `kwargs`.
        """
        if self._another():
            return None
        again = module.forward(*args, **kwargs | {"image_rotary_emb": self._rotary})
        if isinstance(output, tuple):  # a double block: image and text apart
            return _with_rows(output[0], again[0], self._coarse_rows), *output[1:]
        return _with_rows(output, again, self._coarse_rows_after_text)


_PLACES = ("txt_ids", "img_ids")


class _Entered:
    """A context that was entered, left by `remove`, as hooks are."""

    def __init__(self, context: AbstractContextManager[None]) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(context)
        self.remove = self._stack.close


def _with_rows(rows_BSD: Tensor, other_BSD: Tensor, index: Tensor) -> Tensor:
    return rows_BSD.index_copy(1, index, other_BSD.index_select(1, index))
