"""Kandinsky 5 Image-to-Image: the photo beside x_t in the channels, which come last.

Text is attended to in blocks of its own, so that in self-attention all tokens are the image's.

B batch, N tokens of the grid, S tokens of the short sequence, M coarse tokens, C channels, F
rotary frequencies.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..capture import Seen
from ..hooks import Call, shadowed
from ..source import Source
from .pictures import Strips, StripShort


class KandinskyShort(StripShort):
    family: "Kandinsky5"
    places_SF22: Tensor | None = None

    def strips(self, parts: list[Tensor]) -> Call:
        return {"hidden_states": self.family.last(self.family.strip(parts[0]))}

    def picture(self, whole_BNC: Tensor) -> Tensor:
        return self.family.last(super().picture(whole_BNC))

    def places(self, original: Callable[..., Any], shape: Any, *given: Any) -> Tensor:
        """The model's own places for the tokens that run: [B, 1, 1, S, 1, F, 2, 2]."""
        if self.places_SF22 is None:
            whole_NF22 = original((1, 1, *self.plan.grid), *given).flatten(0, 4)
            self.places_SF22 = whole_NF22.index_select(0, self.plan.keep_K)
            if self.coarse:
                between_MF22 = self.family.turns(self.coarse_places).to(whole_NF22)
                self.places_SF22 = torch.cat([self.places_SF22, between_MF22])
        _ = self._aligned_SF22 if self.aligned else None  # before compiled code asks for it
        self.ran = len(self.places_SF22)
        return self.places_SF22[:, None].expand(shape[0], 1, 1, -1, -1, -1, -1, -1)

    def aligned_places(self, text: int) -> Tensor:
        return self._aligned_SF22[None, :, None]

    @cached_property
    def _aligned_SF22(self) -> Tensor:
        return self.family.turns(self.places_of(0) / self.plan.stride)


class Kandinsky5(Strips):
    """Image-to-Image: x_t, the photo's latents and ones in the channels [B, 1, 2h, 2w, 2C + 1]."""

    short: ClassVar[Any] = KandinskyShort
    shared: ClassVar[tuple[str, ...]] = ("visual_rope_pos", "text_rope_pos", "scale_factor")

    def pictures(self, call: Call) -> Tensor:
        return self.first(call["hidden_states"])

    def first(self, latents: Tensor) -> Tensor:
        """[B, C, 2h, 2w] of [B, 1, 2h, 2w, C]."""
        return latents[:, 0].movedim(-1, 1)

    def last(self, latents: Tensor) -> Tensor:
        """[B, 1, 2h, 2w, C] of [B, C, 2h, 2w]."""
        return latents.movedim(1, -1)[:, None].contiguous()

    def fold(self, latents: Tensor) -> Tensor:
        return super().fold(self.first(latents) if latents.ndim == 5 else latents)

    def encode(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        vae = self.pipe.vae
        return vae.encode(photo_B3HW).latent_dist.sample(generator) * vae.config.scaling_factor

    def make_source(self, seen: Seen, mask_image: Any, call: Call) -> tuple[Source, Tensor] | None:
        """Of the latents that the pipeline has sampled."""
        channels = self.model.config.in_visual_dim
        shown = self.pictures(call)[:, channels : 2 * channels]
        return super().make_source(replace(seen, latents=shown), mask_image, call)

    def attentions(self) -> list[Any]:
        return [block.self_attention for block in self.model.visual_transformer_blocks]

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        def places(original: Callable[..., Any], *given: Any) -> Tensor:
            return run.short.places(original, *given)

        embeddings = self.model.visual_rope_embeddings
        return (*super().stand_ins(run), shadowed(embeddings, "forward", places))

    def turns(self, place_S2: Tensor) -> Tensor:
        """Turns at any rows and columns, as the model makes its own at whole ones: [S, F, 2, 2]."""
        embeddings, parts = self.model.visual_rope_embeddings, []
        for place_S, size in zip(F.pad(place_S2, (1, 0)).T, embeddings.axes_dims, strict=True):
            rate = math.log(embeddings.max_period) / (size // 2)
            falling = torch.exp(-rate * torch.arange(size // 2, device=place_S.device))
            parts.append(torch.outer(place_S, falling))
        angle_SF = torch.cat(parts, 1)
        cosine, sine = angle_SF.cos(), angle_SF.sin()
        return torch.stack([cosine, -sine, sine, cosine], -1).unflatten(-1, (2, 2))
