"""How a fill is judged: distances within a region, what jumps at its border, and how sharp it is.

B = 1 picture, H W pixels. Pictures are uint8 [H, W, 3], regions bool [H, W].
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.manifest import to_model
from .lpips import LPIPS

RING = 16  # pixels around the mask
_ROUNDING = 1 / 6  # gradient energy that rounding to 8 bits alone brings: twice 1/12


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture with the features that LPIPS takes of it: five layers of [1, C, h, w]."""

    pixels: np.ndarray
    layers: list[Tensor]


@dataclass(frozen=True)
class Distances:
    """Of two pictures within a region: psnr in dB, the mean ssim (1 where equal), lpips."""

    psnr: float
    ssim: float
    lpips: float


@torch.no_grad()
def see(perceptual: LPIPS, pixels: np.ndarray) -> Seen:
    """The picture with its features, for `distances` and `pooled`."""
    return Seen(pixels, perceptual.features(to_model(np.stack([pixels]))))


@torch.no_grad()
def distances(perceptual: LPIPS, one: Seen, other: Seen, region: np.ndarray) -> Distances:
    """PSNR of the region's pixels; SSIM and LPIPS as means of their maps over the region.

    Windows of SSIM and receptive fields of LPIPS reach beyond the region: for figures of the region
    alone, the pictures must be equal outside it.
    """
    ssim = float(ssim_map(one.pixels, other.pixels)[region].mean())
    lpips = 0.0
    for head, a, b in zip(perceptual.heads, one.layers, other.layers, strict=True):
        layer_B1hw = head((a - b) ** 2)
        share_B1hw = _share(region, layer_B1hw)
        lpips += float((layer_B1hw * share_B1hw).sum() / share_B1hw.sum())
    return Distances(psnr(one.pixels, other.pixels, region), ssim, lpips)


def psnr(one: np.ndarray, other: np.ndarray, region: np.ndarray) -> float:
    """In dB, of the region's pixels; infinite where they are equal, or the region is empty."""
    error = (one[region].astype(np.float64) - other[region]) ** 2
    return float(10 * np.log10(255**2 / error.mean())) if error.any() else np.inf


def ssim_map(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Structural similarity at every pixel, [H, W], the mean over the channels.

    Wang et al. 2004: Gaussian windows of 11 pixels, sigma 1.5, with reflected borders.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    both = _blurred(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (light * (2 * both + c2) / (var_a + var_b + c2)).mean(-1)


def _blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)


def ring(mask: np.ndarray, width: int = RING) -> np.ndarray:
    """The pixels outside the mask that lie within `width` pixels of it."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return ~mask & (distance <= width)


def sharpness(filled: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """log2 of the gradient energy in the mask over the truth's: -1 is half of it, 0 as much.

    It compares no place with another, so that a plausible fill is not punished for being another;
    blur lowers it. Noise and artefacts raise it: more is not better.
    """
    ours, theirs = (max(gradient_energy(x, mask), _ROUNDING) for x in (filled, truth))
    return float(np.log2(ours / theirs))


def gradient_energy(image: np.ndarray, region: np.ndarray) -> float:
    """Mean squared step of luma between neighbouring pixels of the region, in levels of 255.

    Steps down and steps to the right are averaged apart and added; 0 for a region without any.
    """
    luma = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)
    energy = 0.0
    for axis in (0, 1):
        within = np.logical_and(*_neighbours(region, axis))
        if within.any():
            energy += float((np.diff(luma, axis=axis)[within] ** 2).mean())
    return energy


def _neighbours(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    count = values.shape[axis]
    return values.take(range(count - 1), axis), values.take(range(1, count), axis)


@torch.no_grad()
def pooled(picture: Seen, region: np.ndarray) -> np.ndarray:
    """The features' means over a region, all layers after each other: float32 [1152].

    At every position the features of a layer have unit length, so that of the whole is at most 1.
    """
    means = []
    for layer_BChw in picture.layers:
        share_B1hw = _share(region, layer_BChw)
        means.append((layer_BChw * share_B1hw).sum((0, 2, 3)) / share_B1hw.sum())
    return torch.cat(means).numpy() / np.sqrt(np.float32(len(means)))


def _share(region: np.ndarray, layer: Tensor) -> Tensor:
    """How much of each position of a layer belongs to the region, [1, 1, h, w]."""
    weight_B1HW = torch.from_numpy(region)[None, None].float()
    return F.adaptive_avg_pool2d(weight_B1HW, (layer.shape[-2], layer.shape[-1]))


def seam(filled: np.ndarray, photo: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """What jumps across the mask's border when the mask's pixels of `filled` are put into `photo`.

    Returns two means over the border, in levels of 255: the step from a pixel to its neighbour on
    the other side, and the difference between the mean colours near it of the two sides (Gaussian,
    3 px). Both are 0 for a mask without a border.
    """
    image = np.where(mask[..., None], filled, photo).astype(np.float32)
    steps = [
        np.abs(np.diff(image, axis=axis)).mean(-1)[np.diff(mask, axis=axis)] for axis in (0, 1)
    ]
    rim = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    if not rim.any():
        return 0.0, 0.0
    sides = []
    for side in (mask, ~mask):
        weight = side.astype(np.float32)
        total = cv2.GaussianBlur(image * weight[..., None], (0, 0), 3.0)
        sides.append(total / np.maximum(cv2.GaussianBlur(weight, (0, 0), 3.0), 1e-6)[..., None])
    colour = np.abs(sides[0] - sides[1])[rim].mean()
    return float(np.concatenate(steps).mean()), float(colour)
