"""Transformers that attend to text and image at once, with rotary places for both.

FLUX.2, Chroma, LongCat-Image and Fibo take the places as `txt_ids` and `img_ids`, put the text
first, and hand the rotary embedding to every attention module by its name.

L tokens of text and image together, S image tokens of the short sequence.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import EachOwn, Weighted
from ..hooks import Call, Made
from .base import ShortCall
from .family import PLACES, Family


class RotaryShort(ShortCall):
    """Weights without an attention mask, aligned places, masks on keys shortened like the keys."""

    keys: Weighted | None = None  # those of the call under way
    aligned_rotary: Any = None
    coarse_rows_beside_text: Tensor | None = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._keys: dict[int, Weighted] = {}  # by the tokens of text
        self._aligned, self._rotary = Made(), Made()

    def shorten(self, call: Call, sigma: float) -> Call:
        short = super().shorten(call, sigma)
        given = call.get("joint_attention_kwargs") or {}
        if given.get("attention_mask") is not None:
            mask = self.short_keys(given["attention_mask"])
            short["joint_attention_kwargs"] = given | {"attention_mask": mask}
        text = call["encoder_hidden_states"].shape[1]
        if self.weighted:
            if text not in self._keys:
                pad = (0, text) if self.family.image_first else (text, 0)
                self._keys[text] = Weighted(F.pad(self.counts_S, pad, value=1))
            self.keys = self._keys[text]
        if self.aligned:
            self.aligned_rotary = self._aligned_rotary(short)
            self.coarse_rows_beside_text = self.coarse_rows + text * (not self.family.image_first)
        return short

    def short_keys(self, mask: Tensor) -> Tensor:
        """A mask on all keys [..., L] for the keys that run; a coarse one is masked as its cell.

        A mask of queries and keys [..., L, L] loses the queries too.
        """
        text = mask.shape[-1] - self.whole_length
        index = torch.cat([torch.arange(text, device=mask.device), self._index_S + text])
        if mask.ndim > 2 and mask.shape[-2] == mask.shape[-1]:
            mask = mask.index_select(-2, index)
        return mask.index_select(-1, index)

    def weigh(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """Attention in which keys count for as many tokens as they stand for."""
        keys = self.keys
        if keys is None or keys.count_S.shape[0] != key.shape[1]:
            return original(query, key, value, **kw)  # other keys: an image prompt's, kept ones
        return keys(module, query, key, value, original, **kw)

    def align(self, output: Any, redo: Callable[[Any], Any]) -> Any:
        """Coarse queries see every key on their own stride (after arXiv 2511.19778)."""
        again = redo(self.aligned_rotary)
        if isinstance(output, tuple):  # a double block: image and text apart
            return _with_rows(output[0], again[0], self.coarse_rows), *output[1:]
        return _with_rows(output, again, self.coarse_rows_beside_text)

    @cached_property
    def _index_S(self) -> Tensor:
        """A token of the whole sequence for each of the short one: itself, or one of its cell."""
        (_, w), stride = self.plan.grid, max(self.plan.stride, 1)
        across = -(-w // stride)
        row, column = self.plan.cells_M // across, self.plan.cells_M % across
        grid_S = torch.cat([self.plan.keep_K, stride * (row * w + column)])
        whole = [torch.arange(s.length, device=grid_S.device) for s in self.spans]
        pairs = zip(self.spans, whole, strict=True)
        return torch.cat([s.start + (grid_S if s.short else every) for s, every in pairs])

    def rotary(self, short: Call) -> Any:
        """The rotary embedding of a short call, as the model makes it."""

        def make() -> Any:
            return self.family.model.pos_embed.forward(_places_LA(short))

        return self._rotary.of(tuple(short[name] for name in PLACES), make)

    def _aligned_rotary(self, short: Call) -> Any:
        """The rotary embedding with all places over the stride of the coarse tokens."""

        def make() -> Any:
            ids_LA = _places_LA(short).float()
            scale_A = torch.ones_like(ids_LA[0])
            scale_A[1:3] = self.plan.stride
            return self.family.model.pos_embed.forward(ids_LA / scale_A)

        return self._aligned.of(tuple(short[name] for name in PLACES), make)


class Rotary(Family):
    """Tokens in rows, rotary places."""

    short: ClassVar[Any] = RotaryShort
    shares: ClassVar[bool] = True
    fills: ClassVar[bool] = True

    def each_place(self, shorts: Sequence[Any], calls: Sequence[Call]) -> Any:
        pairs = zip(shorts, calls, strict=True)
        return EachOwn(short.rotary(call) for short, call in pairs)

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        return self.attending(run)

    def without_text(self, call: Call) -> Call:
        if "txt_ids" not in call or "text_encoder_layers" in call:  # Fibo adds text in every block
            return super().without_text(call)
        given = call.get("joint_attention_kwargs") or {}
        if any(c.get("attention_mask") is not None for c in (call, given)):
            raise ValueError(
                "Refresh(text=True) and an attention mask do not go together: leave out text"
            )
        text, places = call["encoder_hidden_states"], call["txt_ids"]
        return call | {"encoder_hidden_states": text[:, :0], "txt_ids": places[..., :0, :]}


def _places_LA(short: Call) -> Tensor:
    """Where the tokens of a short call sit, text and image together."""
    return torch.cat([short[name] if short[name].ndim == 2 else short[name][0] for name in PLACES])


def _with_rows(rows_BSD: Tensor, other_BSD: Tensor, index: Tensor | None) -> Tensor:
    assert index is not None
    return rows_BSD.index_copy(1, index, other_BSD.index_select(1, index))
