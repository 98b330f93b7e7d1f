"""The noise that the embedded model's pictures begin as."""

import torch
from torch import Tensor

QUIET = 1 / 8  # cycles a latent, of 8 pixels: the noise has little below


def quiet(noise_BCHW: Tensor) -> Tensor:
    """White noise without its lowest frequencies: what the embedded model's pictures begin as.

    Texture is left to chance, and the colours of large shapes are not: the photograph around the
    mask tells them better. Of the amplitude of a wave as long as 32 latents (256 pixels) 6 % is
    left, of 8 latents 63 %, of 4 latents 98 %. Shape and type are those of what is given.
    """
    y, x = (torch.fft.fftfreq(side, device=noise_BCHW.device) for side in noise_BCHW.shape[-2:])
    kept_HW = 1 - torch.exp(-(y[:, None].square() + x.square()) / QUIET**2)
    return torch.fft.ifft2(torch.fft.fft2(noise_BCHW.float()) * kept_HW).real.to(noise_BCHW)
