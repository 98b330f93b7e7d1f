"""Transformers that take pictures and make tokens of them inside: what such families share.

What goes in and what comes out stays whole. Inside, where the model has made tokens and places of
the picture, those that run are gathered, so that both are the model's own; and they are put back
before it makes a picture of them.

B batch, N tokens of the grid, M coarse tokens, S tokens of the short sequence, C channels a token.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Weighted
from ..hooks import Call, compiling
from ..plan import gather, scatter, token_positions
from .base import ShortCall
from .family import Family


class PicturesShort(ShortCall):
    """Nothing of the call is shortened; the stand-ins inside gather and put back."""

    family: "Pictures"
    extra_BMD: Tensor | None = None  # the coarse tokens of the call under way

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._keys: dict[int, Weighted] = {}  # by their number

    def shorten(self, call: Call, sigma: float) -> Call:
        """The call as it is."""
        tokens_BND = self.family.tokens(call)
        self.check_length(tokens_BND.shape[1])
        self.extra_BMD, self.ran = None, self.whole_length
        if self.coarse:
            x_BNC = tokens_BND[..., : self.source.latents_BNC.shape[-1]]
            self.extra_BMD = self.coarse.tokens(x_BNC, sigma).to(tokens_BND.dtype)
        return call

    def restore(self, velocity_BSC: Tensor, call: Call, sigma: float) -> Tensor:
        """A picture, in which those tokens are put that did not run."""
        ran_BKC = gather(self.family.fold(velocity_BSC), self.plan)
        return self.picture(super().restore(ran_BKC, call, sigma))

    def picture(self, whole_BNC: Tensor) -> Tensor:
        """All tokens of the grid as a picture [B, C/4, 2h, 2w]."""
        # In the layout that it came in: sums over it are taken in the order of memory.
        return F.pixel_shuffle(whole_BNC.mT.unflatten(-1, self.plan.grid), 2).contiguous()

    def put_back(self, short_BSC: Tensor) -> Tensor:
        """The native tokens in their places, [B, N, C]; nothing at the others."""
        empty_BNC = short_BSC.new_zeros(len(short_BSC), self.plan.tokens_full, short_BSC.shape[-1])
        return scatter(short_BSC, self.plan, empty_BNC)

    def weigh(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """Attention in which keys of image tokens count for those they stand for; text for 1."""
        if not self.weighted:
            return original(query, key, value, **kw)
        keys = None if compiling() else self._keys.get(key.shape[1])
        if keys is None:
            text = key.shape[1] - self.counts_S.shape[0]
            pad = (0, text) if self.family.image_first else (text, 0)
            keys = Weighted(F.pad(self.counts_S, pad, value=1.0))
            if not compiling():
                self._keys[key.shape[1]] = keys
        return keys(module, query, key, value, original, **kw)


class StripShort(PicturesShort):
    """Pictures become strips of the tokens that run, one token high, each with its own place.

    For models that make places in a module of their own, of the size of what they are given, and
    hand them to the attention by name.
    """

    def shorten(self, call: Call, sigma: float) -> Call:
        tokens_BTC = self.family.tokens(call)
        self.check_length(tokens_BTC.shape[1])
        self.ran = 0  # until the places were made
        _ = self.coarse_rows if self.aligned else None  # made before compiled code asks for it
        return call | self.strips([self._short(tokens_BTC, span, sigma) for span in self.spans])

    def strips(self, parts: list[Tensor]) -> Call:
        """The arguments that hold pictures, of the tokens [B, S, C] of each span that run."""
        raise NotImplementedError

    def restore(self, velocity_BSC: Tensor, call: Call, sigma: float) -> Tensor:
        rows_BSC = self.family.fold(velocity_BSC)
        return self.picture(ShortCall.restore(self, rows_BSC, call, sigma))

    def align(self, output: Tensor, redo: Any) -> Tensor:
        """Coarse queries see every key on their own stride."""
        text = output.shape[1] - self.counts_S.shape[0]
        rows_M = self.coarse_rows + text * (not self.family.image_first)
        again = redo(self.aligned_places(text))
        return output.index_copy(1, rows_M, again.index_select(1, rows_M))

    def aligned_places(self, text: int) -> Tensor:
        """Rotary places with rows and columns over the stride, those of `text` others as ever."""
        raise NotImplementedError

    def places_of(self, number: int) -> Tensor:
        """Row and column of a span's tokens that run: [S, 2]."""
        span, device = self.spans[number], self.plan.keep_K.device
        if span.short:
            return token_positions(self.plan).to(device)
        sides = (torch.arange(n, device=device) for n in span.grid)
        return torch.cartesian_prod(*sides).view(-1, 2).float()


class Pictures(Family):
    """Latents [B, C/4, 2h, 2w]; a token is a patch of 2x2. Image tokens come before the text's."""

    short: ClassVar[Any] = PicturesShort
    image_first: ClassVar[bool] = True

    def pictures(self, call: Call) -> Tensor:
        """The latents of a call, with whatever else is in their channels."""
        return call["hidden_states"]

    def fold(self, latents: Tensor) -> Tensor:
        """Latents [B, C/4, 2h, 2w] as tokens [B, N, C], each channel's 2x2 together."""
        return F.pixel_unshuffle(latents, 2).flatten(2).mT

    def grids(self, call: Call) -> list[tuple[int, int]]:
        height, width = self.pictures(call).shape[-2:]
        return [(height // 2, width // 2)]

    def pack(self, latents: Tensor) -> Tensor:
        return self.fold(latents)

    def encode(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        encoded, config = self.pipe.vae.encode(photo_B3HW), self.pipe.vae.config
        sampled = getattr(encoded, "latent_dist", None)
        latents = sampled.sample(generator) if sampled else encoded.latents
        return (latents - config.shift_factor) * config.scaling_factor

    def tokens(self, call: Call) -> Tensor:
        return self.fold(self.pictures(call))


class Strips(Pictures):
    """What `StripShort` needs inside."""

    short: ClassVar[Any] = StripShort

    def strip(self, rows_BSC: Tensor) -> Tensor:
        """Tokens as a picture one token high: [B, C/4, 2, 2S]."""
        return F.pixel_shuffle(rows_BSC.mT[:, :, None], 2).contiguous()

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        return self.attending(run, self.attentions())
