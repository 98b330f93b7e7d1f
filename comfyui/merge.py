"""The photo outside the mask, bit for bit, and the edit inside.

B batch, H W pixels of the photo, h w of the edit.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from hilotoken.composite import composite as mixed
from hilotoken.composite import lead

CUT = 16  # pixels a side that an autoencoder may cut off a photo, half on each side


def composite(
    photo: Tensor, edited: Tensor, mask: Tensor, feather: int, match_colours: bool
) -> Tensor:
    """Composite an edit onto its photo, [B, H, W, 3].

    An edit a few pixels smaller lies in the middle, where ComfyUI's VAE Encode cut it from; the rim
    that was cut off is the photo's. Fewer photos or masks than edits are gone through again.

    Args:
        photo: [1 or B, H, W, 3] in [0, 1]; edited: [B, h, w, 3]; mask: [1 or B, H, W]
        feather: pixels over which the edit fades in, from the mask's border inwards
        match_colours: lead the edit's colours to the photo's along the mask's border

    Raises:
        ValueError: sizes that do not fit.
    """
    photo, edited = photo[..., :3], edited[..., :3].to(photo)
    mask = mask.reshape(-1, *mask.shape[-2:]).to(photo)
    top, left = _offsets(photo, edited, mask)
    h, w = edited.shape[1:3]
    window = (slice(None), slice(top, top + h), slice(left, left + w))
    count = len(edited)
    whole, inside = _repeat(photo, count).clone(), (_repeat(mask, count)[window] >= 0.5)
    part = whole[window]
    if match_colours:
        led = lead(part.movedim(-1, 1), edited.movedim(-1, 1), inside[:, None].to(part))
        edited = led.movedim(1, -1).clamp(0, 1)
    triples = zip(part, edited, inside, strict=True)
    whole[window] = torch.stack(
        [
            torch.from_numpy(mixed(*(x.cpu().numpy() for x in (old, new)), _weight(area, feather)))
            for old, new, area in triples
        ]
    ).to(whole)
    return whole


def _offsets(photo: Tensor, edited: Tensor, mask: Tensor) -> tuple[int, int]:
    """Rows and columns of the photo before the edit's first."""
    (H, W), (h, w) = photo.shape[1:3], edited.shape[1:3]
    if tuple(mask.shape[1:]) != (H, W):
        raise ValueError(
            f"the mask is {mask.shape[2]}x{mask.shape[1]} and the photo {W}x{H}: connect the mask "
            "of this photo"
        )
    if not (0 <= H - h < CUT and 0 <= W - w < CUT):
        raise ValueError(
            f"the edit is {w}x{h} and the photo {W}x{H}: connect the photo that was encoded, "
            "after whatever resizes it"
        )
    return (H - h) // 2, (W - w) // 2


def _repeat(x: Tensor, count: int) -> Tensor:
    return x[torch.arange(count) % len(x)]


def _weight(inside_hw: Tensor, feather: int) -> np.ndarray:
    """As `hilotoken.composite.feather_weight`, by what ComfyUI has installed: no OpenCV."""
    inside = inside_hw.cpu().numpy()
    if not feather or inside.all():
        return inside.astype(np.float32)
    distance = distance_transform_edt(inside)
    return np.minimum(distance / (feather + 1), 1).astype(np.float32)
