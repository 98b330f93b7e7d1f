"""Fibo Edit: a token is one latent of 16 pixels a side; the mask is greyed into the photo."""

from typing import Any

import torch
from torch import Tensor

from .rotary import Rotary


class Fibo(Rotary):
    """The source is the photo as the model is shown it: greyed where the pipeline was given `mask`.

    Guidance doubles the batch.
    """

    @classmethod
    def pack(cls, pipe: Any, latents: Tensor) -> Tensor:
        B, C, height, width = latents.shape
        if cls._folded(pipe):
            return pipe._pack_latents(latents, B, C, height, width)
        return pipe._pack_latents_no_patch(latents, B, C, height, width)

    @classmethod
    def encode(cls, pipe: Any, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """As `prepare_reference_latents` does after it made the pixels."""
        latents = pipe.vae.encode(photo_B3HW.unsqueeze(2)).latent_dist.mean[:, :, 0]
        mean, std = (
            latents.new_tensor(getattr(pipe.vae.config, name)).view(1, -1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return (latents - mean) / std

    @classmethod
    def token_pixels(cls, pipe: Any) -> int:
        return pipe.vae_scale_factor * cls.latents_a_side(pipe)

    @classmethod
    def latents_a_side(cls, pipe: Any) -> int:
        """2 if the model takes latents folded 2x2 (`do_patching`), as its channels tell."""
        return 1 if pipe.transformer.config.in_channels == pipe.vae.config.z_dim else 2

    @classmethod
    def _folded(cls, pipe: Any) -> bool:
        return cls.latents_a_side(pipe) == 2
