"""Decode what the mask needs: crops of the latents, with the margin that the decoder looks around.

Outside the mask an edit is the user's photo, so a decoder need not paint it. A decoder of
convolutions alone sees a few latents around each pixel, and a crop with that margin decodes to the
same pixels. One that normalises over the whole picture (GroupNorm) or attends over it does not, and
is left alone: a crop of its latents is another picture.

B batch, C latent channels, h w latents, H W pixels.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTH = 0.8  # of the latents: crops that cover more are not worth the rounds
ROUNDING = 2e-6  # by which kernels round one shape otherwise than another, in pictures of [-1, 1]
ROWS = 5  # of the strip that is probed: errors of whole pictures stand at the same margins
FURTHEST = 16  # latents: a margin that is looked for

Box = tuple[slice, slice]  # rows and columns, in latents
Decode = Callable[[Tensor], Any]  # latents to an autoencoder's output

_MARGINS: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()


def decode_margin(vae: Any) -> int | None:
    """Latents around a crop from which on it decodes as the whole does; None if it never does.

    Probed on the decoder itself. A NaN spreads as far as the decoder looks, so one that is all over
    the picture tells of statistics or attention over the whole. How much of that reach matters is
    then measured: the least margin at which a crop of a strip of noise differs by rounding alone.
    """
    decoder = getattr(vae, "decoder", None)
    if decoder is None or "latent_channels" not in vae.config or in_parts(vae):
        return None  # in parts each is another picture, and what is found of it would be remembered
    if decoder not in _MARGINS:
        _MARGINS[decoder] = _probe(vae)
    return _MARGINS[decoder]


@torch.no_grad()
def _probe(vae: Any) -> int | None:
    weight = next(vae.decoder.parameters(), None)
    if weight is None:
        return None
    rounding = ROUNDING * max(1.0, torch.finfo(weight.dtype).eps / torch.finfo(torch.float32).eps)
    strip = strip_of_noise(vae.config.latent_channels).to(weight)
    try:
        return least_margin(partial(_decoded, vae), strip, rounding)
    except (TypeError, ValueError, RuntimeError):  # latents of another kind, or weights elsewhere
        return None


def strip_of_noise(channels: int) -> Tensor:
    """What a decoder is probed on, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, ROWS, 2 * FURTHEST + 1, generator=generator)


def least_margin(decode: Callable[[Tensor], Tensor], strip: Tensor, apart: float) -> int | None:
    """Latents around a crop of a strip from which on it decodes to the same but for `apart`.

    None if the decoder looks at all of it.
    """
    first = strip.clone()
    first[..., 0] = torch.nan
    spread, whole, width = decode(first), decode(strip), strip.shape[-1]
    if spread[..., -1].isnan().any() or whole.shape[-1] % width:
        return None
    scale = whole.shape[-1] // width
    middle = whole[..., FURTHEST * scale : (FURTHEST + 1) * scale]

    def near(margin: int) -> bool:
        part = decode(strip[..., FURTHEST - margin : FURTHEST + margin + 1])
        found = part[..., margin * scale : (margin + 1) * scale]
        return bool((found - middle).abs().max() <= apart * middle.abs().max().clamp_min(1))

    margins = range(4, FURTHEST + 1, 2)
    return margins[bisect_left(margins, True, hi=len(margins) - 1, key=near)]


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    return type(vae).decode(vae, latents, return_dict=False)[0]


def picture_of(output: Any) -> Tensor:
    """[B, 3, H, W] of an autoencoder's output."""
    return output[0] if isinstance(output, tuple) else output.sample


def boxes_of(mask_B1HW: Tensor, latents: tuple[int, int], margin: int) -> list[Box]:
    """Boxes of latents that hold all that is masked, with the margin around; far masks apart.

    mask_B1HW: of a batch, all of whose masks count; H and W are multiples of the latents'
    """
    touched = F.adaptive_max_pool2d((mask_B1HW > 0).float().amax(0, keepdim=True), latents)
    near = touched[0, 0].cpu().numpy().astype(np.uint8)
    # What the margins of two boxes would share is one box.
    grown = cv2.dilate(near, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    _, _, found, _ = cv2.connectedComponentsWithStats(grown)
    return [(slice(y, y + h), slice(x, x + w)) for x, y, w, h, _ in found[1:].tolist()]


def area_of(boxes: list[Box]) -> int:
    """Latents in the boxes."""
    return sum((r.stop - r.start) * (c.stop - c.start) for r, c in boxes)


def in_parts(vae: Any) -> bool:
    """Whether the autoencoder works in parts already, by tiling or slicing: then not by ours."""
    return bool(getattr(vae, "use_tiling", False) or getattr(vae, "use_slicing", False))


def check_region(name: str, way: str, vae: Any, exact: bool) -> None:
    """Raise ValueError for the way "region" where it would do nothing, or come to something else.

    Args:
        name: of the option, "decode" or "encode"
        exact: whether a crop comes to the same as the whole
    """
    if way == "region" and in_parts(vae):
        raise ValueError(
            f"{name}='region' does nothing while tiling or slicing is on: call "
            f"vae.disable_tiling() and vae.disable_slicing(), or give {name}='auto' or 'whole'"
        )
    if way == "region" and not exact:
        raise ValueError(
            f"{name}='region': {type(vae).__name__} looks at the whole picture, by its norms or "
            f"its attention, and a crop of it {name}s to something else: use 'auto' or 'whole'"
            + (", or 'approximate'" if name == "decode" else "")
        )


class RegionDecode:
    """Stands in for `vae.decode` in a run: crops for the mask, the photo's own pixels elsewhere.

    decoded: share of the latents that the last call decoded
    error:   of a decode that is no exact one, see `Run.decode_error`
    """

    def __init__(self, vae: Any, margin: int) -> None:
        self.vae, self.margin = vae, margin
        self.decoded = 1.0
        self.error: float | None = None

    @classmethod
    def of(cls, vae: Any, way: str) -> "RegionDecode | None":
        """Of a run; None where the whole is decoded.

        Args:
            way: "auto", "region" or "whole"

        Raises:
            ValueError: see `check_region`.
        """
        margin = None if way == "whole" else decode_margin(vae)
        check_region("decode", way, vae, margin is not None)
        return None if margin is None else cls(vae, margin)

    def __call__(
        self,
        original: Callable[..., Any],
        latents: Tensor,
        *args: Any,
        photo_B3HW: Tensor,
        mask_B1HW: Tensor,
        **kwargs: Any,
    ) -> Any:
        """The picture, or what the decoder makes of the whole where a crop would not do.

        photo_B3HW: in [-1, 1], and its mask, both of the size that the latents decode to
        """
        boxes = self._boxes(latents, mask_B1HW)
        if not boxes:
            self.decoded = 1.0
            return original(latents, *args, **kwargs)
        self.decoded = area_of(boxes) / (latents.shape[-2] * latents.shape[-1])
        scale = photo_B3HW.shape[-1] // latents.shape[-1]
        repeats = len(latents) // len(photo_B3HW)
        picture = photo_B3HW.to(latents).repeat(repeats, 1, 1, 1)
        output = None
        with self._by_box(lambda z: original(z, *args, **kwargs), latents) as decode:
            for box in boxes:
                output = decode(box)
                rows, columns = (slice(side.start * scale, side.stop * scale) for side in box)
                picture[..., rows, columns] = picture_of(output)
        if isinstance(output, tuple):
            return (picture, *output[1:])
        output.sample = picture  # type: ignore[union-attr]
        return output

    def each(
        self,
        original: Callable[..., Any],
        latents: Tensor,
        *args: Any,
        photo_B3HW: Tensor,
        mask_B1HW: Tensor,
        **kwargs: Any,
    ) -> Any:
        """The pictures of a batch, of each what its own mask needs where they differ."""
        if all(torch.equal(mask, mask_B1HW[0]) for mask in mask_B1HW[1:]):
            given = {"photo_B3HW": photo_B3HW, "mask_B1HW": mask_B1HW}
            return self(original, latents, *args, **given, **kwargs)
        outputs, shares = [], []
        for i, one in enumerate(latents.split(1)):
            photo, mask = (x[i % len(x)][None] for x in (photo_B3HW, mask_B1HW))
            given = {"photo_B3HW": photo, "mask_B1HW": mask}
            outputs.append(self(original, one, *args, **given, **kwargs))
            shares.append(self.decoded)
        self.decoded = fmean(shares)
        picture = torch.cat([picture_of(output) for output in outputs])
        if isinstance(outputs[0], tuple):
            return (picture, *outputs[0][1:])
        outputs[0].sample = picture
        return outputs[0]

    @contextmanager
    def _by_box(self, decode: Decode, latents: Tensor) -> Iterator[Callable[[Box], Any]]:
        """What decodes a box of the latents, in this context."""
        yield lambda box: decode(latents[..., box[0], box[1]])

    def _boxes(self, latents: Tensor, mask_B1HW: Tensor) -> list[Box]:
        if latents.ndim != 4 or in_parts(self.vae):
            return []
        (H, W), (h, w) = mask_B1HW.shape[-2:], latents.shape[-2:]
        if H % h or W % w or H // h != W // w or len(latents) % len(mask_B1HW):
            return []
        boxes = boxes_of(mask_B1HW, (h, w), self.margin)
        return boxes if area_of(boxes) <= WORTH * h * w else []
