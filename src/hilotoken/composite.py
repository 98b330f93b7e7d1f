"""The user's pixels outside the mask, bit for bit; the edit inside, blended inwards if asked."""

from itertools import cycle

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

REACH = 1.0  # pixels: the sigma of the means on both sides of a border


def feather_weight(mask: np.ndarray, feather: int) -> np.ndarray:
    """How much of the edit each pixel takes: float32 [H, W], 0 outside the mask, 1 deep inside.

    The weight rises over `feather` pixels from the mask's border inwards; 0 is a hard edge.
    Raises ValueError for a negative feather.
    """
    if feather < 0:
        raise ValueError(f"feather must be 0 pixels or more, got {feather}")
    inside = mask.astype(np.uint8)
    if not feather or inside.all():  # a mask without a border has nothing to blend into
        return inside.astype(np.float32)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.minimum(distance / (feather + 1), 1, dtype=np.float32)


def composite(photo: np.ndarray, edited: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`photo` where the weight is 0, `edited` where it is 1, a blend between; [H, W, C] each."""
    mixed = photo + weight[..., None] * (edited.astype(np.float32) - photo)
    if photo.dtype == np.uint8:
        mixed = np.rint(mixed)
    mixed = np.where(weight[..., None] < 1, mixed, edited)
    return np.where(weight[..., None] > 0, mixed, photo).astype(photo.dtype)


def match_border(photo: np.ndarray, edited: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The edit with its colours led to the photo's along the mask's border: uint8 [H, W, 3].

    An autoencoder shifts colours a little, and a sampler may miss them, which shows as a seam. What
    the colours on both sides of the border differ by, means of a pixel or two, is added to the edit
    at the border, and ever more evenly inwards: a membrane, as in Poisson image editing (Perez,
    Gangnet and Blake 2003). Wider means tell less of what is next to them: they leave more of the
    seam, and change an edit more that has none. Outside the mask nothing changes.
    """
    inside = mask.astype(np.float32)
    near = cv2.dilate(1 - inside, np.ones((3, 3), np.uint8))
    rim = inside * near
    if not rim.any():  # a mask without a border has nothing to be led to
        return edited
    jump = _mean_near(photo, 1 - inside, REACH) - _mean_near(edited, inside, REACH)
    shift = _membrane(jump * rim[..., None], rim)
    led = np.rint(edited + shift).clip(0, 255).astype(np.uint8)
    return np.where(mask[..., None], led, edited)


def _mean_near(image: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    total = cv2.GaussianBlur(image.astype(np.float32) * weight[..., None], (0, 0), sigma)
    return total / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-6)[..., None]


def _membrane(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Known values (already times their weight) carried everywhere, by a pyramid."""
    share = np.minimum(weight, 1)[..., None]
    own = values / np.maximum(weight, 1e-6)[..., None]
    if max(weight.shape) <= 2:
        return own
    coarse = _membrane(_halve(values), _halve(weight))
    size = (weight.shape[1], weight.shape[0])
    return share * own + (1 - share) * cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)


def _halve(image: np.ndarray) -> np.ndarray:
    size = (-(-image.shape[1] // 2), -(-image.shape[0] // 2))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) * 2


def composite_images(images: object, photo_B3HW: Tensor, mask_B1HW: Tensor, feather: int) -> object:
    """Composite a pipeline's output, in the form it came in: a list of pictures, array or tensor.

    `photo_B3HW` is in [0, 1]; fewer photos than images repeat in the pipeline's order.
    """
    photos = photo_B3HW.permute(0, 2, 3, 1).float().cpu().numpy()
    weights = [feather_weight(m, feather) for m in (mask_B1HW[:, 0] >= 0.5).cpu().numpy()]
    if isinstance(images, list):
        arrays = [np.asarray(image) for image in images]
        photos = np.rint(photos * 255).astype(np.uint8)
    elif isinstance(images, Tensor):
        arrays = list(images.permute(0, 2, 3, 1).float().cpu().numpy())
    else:
        arrays = list(np.asarray(images))
    # Fewer photos or masks than images are gone through again.
    mixed = [composite(*of) for of in zip(cycle(photos), arrays, cycle(weights), strict=False)]
    if isinstance(images, list):
        return [Image.fromarray(one) for one in mixed]
    if isinstance(images, Tensor):
        return torch.from_numpy(np.stack(mixed)).permute(0, 3, 1, 2).to(images)
    return np.stack(mixed)
