"""Train the autoencoder: photographs to latents of an eighth of the side, and back.

The loss is L1 plus LPIPS. In half the steps the latents are halved in size before they are
decoded, and the photo with them: a latent space that shrinks as pictures do is smoother, easier to
diffuse in (arXiv 2502.14831, scale equivariance), and gives the coarse tokens their meaning.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.manifest import random_crop, to_model
from .loop import train_loop

LATENT_CHANNELS = 8
WIDTH = 48  # AutoencoderTiny wants one width throughout
DECODER = (6, 4, 1, 1)  # blocks, the smallest size first


@dataclass(frozen=True)
class AutoencoderOptions:
    """How long, on how much, how fast."""

    samples: int = 160_000
    batch: int = 16
    crop: int = 96
    rate: float = 1e-3
    perceptual: float = 1.0
    checkpoint_seconds: float = 120.0


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder of the embedded model's shape, 1.3 M parameters.

    Channels last: faster, and a run that resumes must have the layout it began with, since rounding
    follows it.
    """
    model = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        latent_channels=LATENT_CHANNELS,
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=DECODER,
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train_autoencoder(
    photos: list[np.ndarray],
    run: Path,
    options: AutoencoderOptions,
    device: torch.device,
    perceptual: nn.Module | None,
) -> AutoencoderTiny:
    """Train, or resume, to `options.samples` crops; returns the averaged weights.

    `photos` are [H, W, 3] uint8; `perceptual` maps two [B, 3, H, W] batches in [-1, 1] to [B].
    """
    torch.manual_seed(0)
    model = new_autoencoder().to(device)  # type: ignore[arg-type]

    def gradients(done: int) -> tuple[int, dict[str, float]]:
        rng = np.random.default_rng((1, done))
        crops = [
            random_crop(photos[rng.integers(len(photos))], options.crop, rng)
            for _ in range(options.batch)
        ]
        batch = to_model(np.stack(crops)).to(device, memory_format=torch.channels_last)
        loss, parts = _loss(model, batch, perceptual, options.perceptual, rng.random() < 0.5)
        loss.backward()
        return options.batch, parts

    return train_loop(
        model,
        [torch.optim.AdamW(model.parameters(), weight_decay=1e-3)],
        gradients,
        run,
        "autoencoder",
        samples=options.samples,
        rate=options.rate,
        cooldown=0.35,
        decay=0.999,
        checkpoint_seconds=options.checkpoint_seconds,
    )


def _loss(
    model: AutoencoderTiny, photo: Tensor, perceptual: nn.Module | None, weight: float, halve: bool
) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast(photo.device.type, torch.bfloat16):
        latents = model.encode(photo, return_dict=False)[0]
        if halve:
            latents, photo = F.avg_pool2d(latents, 2), F.avg_pool2d(photo, 2)
        decoded = model.decode(latents, return_dict=False)[0]
    decoded = decoded.float()
    l1 = (decoded - photo).abs().mean()
    loss, parts = l1, {"l1_half" if halve else "l1": l1.item()}
    if perceptual is not None and not halve:
        with torch.autocast(photo.device.type, torch.bfloat16):
            distance = perceptual(decoded, photo).float().mean()
        loss, parts["lpips"] = loss + weight * distance, distance.item()
    return loss, parts
