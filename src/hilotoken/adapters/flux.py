"""FLUX.1: packed tokens, rotary `img_ids`; Fill has more than x_t in its channels."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks import Call
from .rotary import Rotary, RotaryShort


class FluxShort(RotaryShort):
    def shorten(self, call: Call, sigma: float) -> Call:
        """The residuals of a ControlNet, a row for each token, are shortened with them."""
        short = super().shorten(call, sigma)
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if residuals := call.get(name):
                short[name] = [self.rows(rows_BND) for rows_BND in residuals]
        return short


class Flux(Rotary):
    """Inpaint and Image-to-Image, Kontext (a reference follows), Control (more channels)."""

    text_rests: ClassVar[bool] = True

    short: ClassVar[Any] = FluxShort


class FluxFillShort(FluxShort):
    def condition(self, masked_BmC: Tensor, mask_B1HW: Tensor) -> Tensor:
        pipe = self.family.pipe
        mask = F.pixel_unshuffle(mask_B1HW, pipe.vae_scale_factor).to(masked_BmC)
        mask_BmD = self.family.pack(mask.repeat(len(masked_BmC) // len(mask), 1, 1, 1))
        return torch.cat([masked_BmC, mask_BmD], -1).index_select(1, self.plan.cells_M)


class FluxFill(Flux):
    """x_t, masked latents and mask side by side in the channels."""

    short: ClassVar[Any] = FluxFillShort
