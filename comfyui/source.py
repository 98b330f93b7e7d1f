"""Photo and mask to plan by: what the node was given, else what the sampler knows.

B batch, C channels, H W pixels or latents.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pixels(
    image: Tensor | None,
    mask: Tensor | None,
    guider: Any,
    latent: Tensor,
    noise_mask: Tensor | None,
    p: int,
) -> tuple[Tensor, Tensor]:
    """The photo [B, 3, H, W] in [0, 1] and what is edited of it, [B, 1, H, W] of 0 and 1.

    Args:
        image, mask: IMAGE and MASK of the node, if connected
        guider: ComfyUI's, with the conditionings of the run
        latent, noise_mask: the source and the mask as the sampler has them
        p: latents a side of a token

    Raises:
        ValueError: no mask, one without any white, or pictures of another shape than the latent's.
    """
    photo = _preview(guider.inner_model.latent_format, latent)
    if image is not None:
        photo = image[..., :3].movedim(-1, 1).float().cpu().clamp(0, 1)
        _check_shape("image", photo, latent, p)
    edited = _mask(mask, guider, latent, noise_mask, p)
    edited = (edited > 0).float().cpu()  # a soft mask edits wherever it is not black
    if not edited.any():
        raise ValueError(
            "HiLo: the mask is empty, all black: paint one (right-click the image, Open in "
            "MaskEditor), or connect one that is white where the picture is to change"
        )
    size = photo.shape[-2:]
    if edited.shape[-1] > size[-1] or edited.shape[-2] > size[-2]:
        return photo, F.adaptive_max_pool2d(edited, size)  # a thin line is not lost
    return photo, F.interpolate(edited, size, mode="nearest-exact")


def _mask(
    mask: Tensor | None, guider: Any, latent: Tensor, noise_mask: Tensor | None, p: int
) -> Tensor:
    if mask is not None:
        given = mask.reshape(-1, 1, *mask.shape[-2:])
        if given.any():  # an empty one, of whatever size, is said to be that
            _check_shape("mask", given, latent, p)
        return given
    if noise_mask is not None:
        return noise_mask.flatten(1, -3).amax(1, keepdim=True)
    for cond in guider.conds.get("positive") or ():
        if cond.get("concat_mask") is not None:
            return cond["concat_mask"].reshape(-1, 1, *cond["concat_mask"].shape[-2:])
    raise ValueError(
        "HiLo needs a mask: connect one to the node, or put Set Latent Noise Mask or Inpaint Model "
        "Conditioning before the sampler"
    )


def _check_shape(name: str, picture: Tensor, latent: Tensor, p: int) -> None:
    """A picture of any size will do, if it is the same picture, cut by less than a token a side."""
    (H, W), (h, w) = picture.shape[-2:], latent.shape[-2:]
    if abs(H * w / W - h) >= 2 * p and abs(W * h / H - w) >= 2 * p:
        raise ValueError(
            f"HiLo: the {name} connected is {W}x{H}, and the sampler's latent of {w}x{h} is of "
            "another shape: connect the picture and the mask that were encoded"
        )


def _preview(latent_format: Any, latent: Tensor) -> Tensor:
    """A rough picture of a latent by ComfyUI's own factors for previews: [B, 3, H, W] in [0, 1]."""
    x = latent.flatten(1, -3).float().cpu()
    if reshape := getattr(latent_format, "latent_rgb_factors_reshape", None):
        x = reshape(x)
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None or len(factors) != x.shape[1]:  # unknown: the mean of all channels
        rgb = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    else:
        rgb = torch.einsum("bchw,cr->brhw", x, torch.tensor(factors))
    low, high = rgb.amin((1, 2, 3), True), rgb.amax((1, 2, 3), True)
    return (rgb - low) / (high - low).clamp_min(1e-6)
