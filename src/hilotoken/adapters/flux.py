"""FLUX.1: packed tokens, rotary `img_ids`; Fill has more than x_t in its channels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rotary import Rotary


class Flux(Rotary):
    """Inpaint and Image-to-Image, Kontext (a reference follows), Control (more channels)."""

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        """The residuals of a ControlNet, a row for each token, are shortened with them."""
        short = super().shorten(call, sigma)
        for name in ("controlnet_block_samples", "controlnet_single_block_samples"):
            if residuals := call.get(name):
                short[name] = [self.rows(rows_BND) for rows_BND in residuals]
        return short


class FluxFill(Flux):
    """x_t, masked latents and mask side by side in the channels."""

    def condition(self, masked_BmC: Tensor, mask_B1HW: Tensor) -> Tensor:
        mask = F.pixel_unshuffle(mask_B1HW, self.pipe.vae_scale_factor).to(masked_BmC)
        mask_BmD = self.pack(self.pipe, mask.repeat(len(masked_BmC) // len(mask), 1, 1, 1))
        return torch.cat([masked_BmC, mask_BmD], -1).index_select(1, self.plan.cells_M)
