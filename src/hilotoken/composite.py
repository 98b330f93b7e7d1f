"""The user's pixels outside the mask, bit for bit; the edit inside, blended inwards if asked."""

from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F
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
    import cv2  # here alone: ComfyUI's nodes get by without it

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
    """The edit with its colours led to the photo's along the mask's border: [H, W, 3].

    An autoencoder shifts colours a little, and a sampler may miss them, which shows as a seam. See
    `lead`; outside the mask nothing changes. Both are uint8, or both floats in [0, 1].
    """
    photo_1HW3, edited_1HW3 = (torch.from_numpy(np.array(x))[None].float() for x in (photo, edited))
    mask_11HW = torch.from_numpy(mask)[None, None].float()
    led = lead(photo_1HW3.movedim(-1, 1), edited_1HW3.movedim(-1, 1), mask_11HW)[0].movedim(0, -1)
    whole = edited.dtype == np.uint8
    led = led.round().clip(0, 255).byte() if whole else led.clip(0, 1).to(torch.float32)
    return np.where(mask[..., None], led.numpy(), edited)


def lead(photo_B3HW: Tensor, edited_B3HW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """The edits with their colours led to the photos' along the masks' border, differentiably.

    What the colours on both sides of the border differ by, means of a pixel or two, is added to the
    edit at the border, and ever more evenly inwards: a membrane, as in Poisson image editing
    (Perez, Gangnet and Blake 2003). Wider means tell less of what is next to them: they leave more
    of the seam, and change an edit more that has none. A mask without a border leads nowhere.

    photo_B3HW, edited_B3HW: in any one range; mask_B1HW: 0 or 1
    """
    outside_B1HW = 1 - mask_B1HW
    rim_B1HW = mask_B1HW * F.max_pool2d(outside_B1HW, 3, 1, 1)
    jump_B3HW = _mean_near(photo_B3HW, outside_B1HW) - _mean_near(edited_B3HW, mask_B1HW)
    return edited_B3HW + _membrane(jump_B3HW * rim_B1HW, rim_B1HW)


def _mean_near(image_B3HW: Tensor, weight_B1HW: Tensor) -> Tensor:
    return _blur(image_B3HW * weight_B1HW) / _blur(weight_B1HW).clamp_min(1e-6)


def _blur(image_BCHW: Tensor) -> Tensor:
    """Gaussian means of `REACH`."""
    reach = round(4 * REACH)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * REACH**2)).to(image_BCHW)
    taps = (kernel / kernel.sum()).expand(image_BCHW.shape[1], 1, 1, -1)
    across_BCHW = F.conv2d(image_BCHW, taps, padding="same", groups=len(taps))
    return F.conv2d(across_BCHW, taps.mT, padding="same", groups=len(taps))


def _membrane(values_BCHW: Tensor, weight_B1HW: Tensor) -> Tensor:
    """Known values (already times their weight) carried everywhere, by a pyramid."""
    own = values_BCHW / weight_B1HW.clamp_min(1e-6)
    height, width = weight_B1HW.shape[-2:]
    if max(height, width) == 1:
        return own
    half = -(-height // 2), -(-width // 2)
    values, weight = (2 * F.adaptive_avg_pool2d(x, half) for x in (values_BCHW, weight_B1HW))
    coarse = F.interpolate(_membrane(values, weight), size=(height, width), mode="bilinear")
    share = weight_B1HW.clamp_max(1)
    return share * own + (1 - share) * coarse


def composite_images(
    images: object, photo_B3HW: Tensor, mask_B1HW: Tensor, feather: int, match: bool = False
) -> object:
    """Composite a pipeline's output, in the form it came in: a list of pictures, array or tensor.

    `photo_B3HW` is in [0, 1]; fewer photos than images repeat in the pipeline's order. Where the
    mask lies between 0 and 1 the two are blended by it. `match`: first by `match_border`.
    """
    photos = photo_B3HW.permute(0, 2, 3, 1).float().cpu().numpy()
    masks = list(mask_B1HW[:, 0].float().cpu().numpy())
    weights = [m * feather_weight(m > 0, feather) for m in masks]
    if isinstance(images, list):
        arrays = [np.asarray(image) for image in images]
        photos = np.rint(photos * 255).astype(np.uint8)
    elif isinstance(images, Tensor):
        arrays = list(images.permute(0, 2, 3, 1).float().cpu().numpy())
    else:
        arrays = list(np.asarray(images))
    # Fewer photos or masks than images are gone through again.
    if match:
        arrays = [
            match_border(photo, array, mask > 0)
            for photo, array, mask in zip(cycle(photos), arrays, cycle(masks), strict=False)
        ]
    mixed = [composite(*of) for of in zip(cycle(photos), arrays, cycle(weights), strict=False)]
    if isinstance(images, list):
        return [Image.fromarray(one) for one in mixed]
    if isinstance(images, Tensor):
        return torch.from_numpy(np.stack(mixed)).permute(0, 3, 1, 2).to(images)
    return np.stack(mixed)
