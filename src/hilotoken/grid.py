"""Photo and mask on the token grid: what is touched, how it grows, what each token's cell holds.

B batch, C channels, H W pixels, h w token grid, N = h * w tokens in row-major order.
The cell of token (i, j) is the pixels [i*H/h, (i+1)*H/h) x [j*W/w, (j+1)*W/w). Where that border
falls inside a pixel, the pixel belongs to the cells on both sides: no pixel is ever left out.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

REC709 = (0.2126, 0.7152, 0.0722)  # red, green and blue in Rec. ITU-R BT.709 luma


def as_batch(image: Tensor | np.ndarray | Image.Image, channels: int) -> Tensor:
    """The image as [B, channels, H, W]; a picture's values become [0, 1], others stay."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB" if channels == 3 else "L"), np.float32) / 255
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.array(np.atleast_3d(image), order="C"))  # a mask may be [H, W]
        return tensor.movedim(-1, -3)[None] if tensor.ndim == 3 else tensor.movedim(-1, -3)
    while image.ndim < 4:
        image = image[None]
    return image


def check_photo(photo_B3HW: Tensor) -> None:
    """Raise ValueError unless the photo is float [B, 3, H, W] with every value in [0, 1]."""
    _check_image(photo_B3HW, "photo", 3)


def check_mask(mask_B1HW: Tensor) -> None:
    """Raise ValueError unless the mask is float [B, 1, H, W] with every value in [0, 1]."""
    _check_image(mask_B1HW, "mask", 1)


def check_grid(image_BCHW: Tensor, grid: tuple[int, int]) -> None:
    """Raise ValueError unless every token of the grid (h, w) has at least one pixel of its own."""
    (H, W), (h, w) = image_BCHW.shape[-2:], grid
    if not (1 <= h <= H and 1 <= w <= W):
        raise ValueError(
            f"a grid of {h}x{w} tokens does not fit an image of {H}x{W} pixels: "
            "each token needs a pixel; enlarge the image or use a smaller grid of at least 1x1"
        )


def touch(mask_B1HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens whose cell overlaps any masked pixel, however few: bool [B, h, w].

    A pixel is masked where the mask is above 0: a soft mask blends the edit in from there. Raises
    ValueError if the grid does not fit.
    """
    # A mean of zeros and ones is above 0 exactly where one of them is 1.
    return pool((mask_B1HW > 0).float(), grid)[:, 0] > 0


def dilate(touched_Bhw: Tensor, radius: int) -> Tensor:
    """Touched tokens grown by `radius` tokens in all directions: bool [B, h, w].

    Diagonals count as one step (a Chebyshev ball), radius 0 changes nothing, and growth stops at
    the border of the grid. Raises ValueError for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"radius must be 0 or more tokens, got {radius}")
    # The ball is a square, so rows and columns grow one after the other at the cost of two lines.
    side = 2 * radius + 1
    grown_B1hw = touched_Bhw[:, None].float()
    grown_B1hw = F.max_pool2d(grown_B1hw, (side, 1), stride=1, padding=(radius, 0))
    grown_B1hw = F.max_pool2d(grown_B1hw, (1, side), stride=1, padding=(0, radius))
    return grown_B1hw[:, 0] > 0


def nearest_outside(inside_hw: Tensor, count: int) -> Tensor:
    """The tokens nearest to those inside, ring after ring: int64, at most `count` of them.

    Those of one ring in row-major order; fewer where the grid has no more, none of an empty grid.
    """
    found_hw, index = inside_hw, torch.empty(0, dtype=torch.int64)
    while len(index) < count and found_hw.any():
        grown_hw = dilate(found_hw[None], 1)[0]
        ring = (grown_hw & ~found_hw).flatten().nonzero().flatten().cpu()
        if not len(ring):
            break
        found_hw, index = grown_hw, torch.cat([index, ring])
    return index[:count]


def luma(photo_B3HW: Tensor) -> Tensor:
    """Rec. 709 luma of the photo's gamma-encoded values: float32 [B, 1, H, W] in [0, 1]."""
    red_B1HW, green_B1HW, blue_B1HW = photo_B3HW.float().split(1, dim=1)
    r, g, b = REC709
    # Separate products and sums round alike in every pixel; a fused or matrix product need not,
    # and then a flat photo would not stay flat.
    return red_B1HW * r + green_B1HW * g + blue_B1HW * b


def pool(x_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean over each token's cell: [B, C, h, w]. Raises ValueError if the grid does not fit."""
    check_grid(x_BCHW, grid)
    (H, W), (h, w) = x_BCHW.shape[-2:], grid
    if H % h == 0 and W % w == 0:
        return F.avg_pool2d(x_BCHW, (H // h, W // w))
    return F.adaptive_avg_pool2d(x_BCHW, grid)


def _check_image(x_BCHW: Tensor, name: str, channels: int) -> None:
    shape = tuple(x_BCHW.shape)
    if len(shape) != 4 or shape[1] != channels or 0 in shape:
        raise ValueError(
            f"{name} must have shape [B, {channels}, H, W] and not be empty, got {list(shape)}: "
            "add a batch dimension, put channels second, drop alpha"
        )
    if not x_BCHW.is_floating_point():
        raise ValueError(
            f"{name} must be floating point in [0, 1], got {x_BCHW.dtype}: "
            "divide 8-bit values by 255, or call .float() on a bool"
        )
    low, high = (bound.item() for bound in torch.aminmax(x_BCHW))
    if low >= 0 and high <= 1:  # one NaN makes both bounds NaN, and the comparison false
        return
    bad = (~torch.isfinite(x_BCHW)).sum().item()
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values: replace them, in [0, 1]")
    raise ValueError(
        f"{name} must lie in [0, 1], got values from {low:g} to {high:g}: "
        "divide 8-bit values by 255, map [-1, 1] by x / 2 + 0.5, or clamp(0, 1)"
    )
