"""FLUX.2: places of four axes, latents folded and normalised, references in the sequence."""

from typing import ClassVar

from torch import Tensor

from .rotary import Rotary


class Flux2(Rotary):
    """dev and Klein (the photo is a reference), Klein Inpaint (blended too)."""

    text_rests: ClassVar[bool] = True

    def pack(self, latents: Tensor) -> Tensor:
        """The pipeline's latents are folded 2x2 already: [B, C, h, w]."""
        return self.pipe._pack_latents(latents)
