"""Transformers that take pictures and make tokens of them inside: what such families share.

What goes in and what comes out stays whole. Inside, where the model has made tokens and places of
the picture, those that run are gathered, so that both are the model's own; and they are put back
before it makes a picture of them.

B batch, N tokens of the grid, M coarse tokens, S tokens of the short sequence, C channels a token.
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Weighted, rerouted
from ..hooks import Call, compiling
from ..plan import gather, scatter
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
        whole_BNC = super().restore(ran_BKC, call, sigma)
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
            counts_S = self.counts_S
            keys = Weighted(F.pad(counts_S, (0, key.shape[1] - counts_S.shape[0]), value=1.0))
            if not compiling():
                self._keys[key.shape[1]] = keys
        return keys(module, query, key, value, original, **kw)


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

    def weights(
        self, run: Any, modules: list[nn.Module] | None = None
    ) -> list[AbstractContextManager[None]]:
        """By which keys count for as many tokens as they stand for, where they do."""
        if not run.short.weighted:
            return []

        def weigh(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
        ) -> Tensor:
            return run.short.weigh(module, query, key, value, original, **kw)

        return [rerouted(self.pipe.transformer, weigh, modules)]
