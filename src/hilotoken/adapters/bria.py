"""Fibo Edit: a token is one latent of 16 pixels a side; the mask is greyed into the photo."""

import torch
from torch import Tensor

from .rotary import Rotary


class Fibo(Rotary):
    """The source is the photo as the model is shown it: greyed where the pipeline was given `mask`.

    Guidance doubles the batch.
    """

    @property
    def latents_a_side(self) -> int:
        """2 if the model takes latents folded 2x2 (`do_patching`), as its channels tell."""
        return 1 if self.model.config.in_channels == self.pipe.vae.config.z_dim else 2

    def pack(self, latents: Tensor) -> Tensor:
        B, C, height, width = latents.shape
        folded = self.latents_a_side == 2
        pack = self.pipe._pack_latents if folded else self.pipe._pack_latents_no_patch
        return pack(latents, B, C, height, width)

    def encode(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """As `prepare_reference_latents` does after it made the pixels."""
        vae = self.pipe.vae
        latents = vae.encode(photo_B3HW.unsqueeze(2)).latent_dist.mean[:, :, 0]
        mean, std = (
            latents.new_tensor(getattr(vae.config, name)).view(1, -1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return (latents - mean) / std
