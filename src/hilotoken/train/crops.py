"""What of a picture is compared: squares around what is masked, and in them the mask alone.

B pictures, C channels, H x W pixels or latents.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LATENT = 8  # pixels a side of a latent


def crop_side(mask_11HW: Tensor, least: int, most: int) -> int:
    """How many latents a side hold what is masked, and a fourth more; within the bounds."""
    touched = F.max_pool2d(mask_11HW, LATENT)[0, 0]
    sides = [int(np.ptp(places)) + 1 for places in touched.nonzero().numpy().T]
    return min(max(least, max(sides) * 5 // 4), most)


def corners(
    mask_11HW: Tensor, count: int, side: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Top and left, in latents, of `count` squares around masked latents drawn at random."""
    touched = F.max_pool2d(mask_11HW, LATENT)[0, 0]
    inside = touched.nonzero().numpy()
    middles = inside[rng.integers(len(inside), size=count)]
    most = np.array(touched.shape) - side
    return [(int(y), int(x)) for y, x in (middles - side // 2).clip(0, most)]


def cut(images: Tensor, places: Sequence[tuple[int, int]], side: int) -> Tensor:
    """A square of every image, [B, C, side, side]; `places` are their corners, top and left."""
    pairs = zip(images, places, strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in pairs])


def off_grid(images: Sequence[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """All but up to a latent's width of each, cut off at random on both sides.

    LPIPS looks at every fourth pixel: on the latents' own grid it would overlook a pattern of that
    period, and the decoder would soon paint one.
    """
    y, x = rng.integers(LATENT, size=2)
    height, width = (side - LATENT for side in images[0].shape[-2:])
    return [image[..., y : y + height, x : x + width] for image in images]


def weighted_mean(map_B1HW: Tensor, weight_B1HW: Tensor) -> Tensor:
    """The mean [B] of each map under a weight of any size; 0 where nothing weighs."""
    height, width = map_B1HW.shape[-2:]
    share = F.adaptive_avg_pool2d(weight_B1HW, (height, width))
    return (map_B1HW * share).sum((1, 2, 3)) / share.sum((1, 2, 3)).clamp_min(1e-6)
