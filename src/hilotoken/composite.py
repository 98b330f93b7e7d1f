"""The user's pixels outside the mask, bit for bit; the edit inside, blended inwards if asked."""

from itertools import cycle

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
