"""Decode what the mask needs: crops of the latents, with the margin that the decoder looks around.

Outside the mask an edit is the user's photo, so a decoder need not paint it. A decoder of
convolutions alone sees a few latents around each pixel, and a crop with that margin decodes to the
same pixels; a stack of them is run layer by layer, on what is needed there: see `windows`. One that
normalises over the whole picture (GroupNorm) or attends over it does not, and is left alone: a crop
of its latents is another picture.

B batch, C latent channels, h w latents, H W pixels.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
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

from .hooks import shadowed
from .windows import (
    Box,
    Layer,
    area_of,
    layers_of,
    run_windows,
    whole_windows,
    windows_for,
    work_of,
)

WORTH = 0.8  # of the work: crops that take more are not worth the rounds
APART = 8  # latents: masks less than twice as far apart are one to a stack of layers
ROUNDING = 2e-6  # by which kernels round one shape otherwise than another, in pictures of [-1, 1]
ROWS = 5  # of the strip that is probed: errors of whole pictures stand at the same margins
FURTHEST = 16  # latents: a margin that is looked for

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


def _with_picture(output: Any, picture: Tensor) -> Any:
    """An autoencoder's output with another picture in it."""
    if isinstance(output, tuple):
        return (picture, *output[1:])
    output.sample = picture
    return output


def boxes_of(mask_B1HW: Tensor, latents: tuple[int, int], margin: int) -> list[Box]:
    """Boxes of latents that hold all that is masked, with the margin around; far masks apart.

    mask_B1HW: of a batch, all of whose masks count; H and W are multiples of the latents'
    """
    return [_grown(box, margin, latents) for box in tight_boxes(mask_B1HW, latents, margin)]


def tight_boxes(mask_B1HW: Tensor, latents: tuple[int, int], apart: int) -> list[Box]:
    """The same without a margin: masks less than twice as far apart are in one."""
    touched = F.adaptive_max_pool2d((mask_B1HW > 0).float().amax(0, keepdim=True), latents)
    near = touched[0, 0].cpu().numpy().astype(np.uint8)
    # What the margins of two boxes would share is one box.
    grown = cv2.dilate(near, np.ones((2 * apart + 1, 2 * apart + 1), np.uint8))
    count, labels = cv2.connectedComponents(grown)
    found = (cv2.boundingRect(near * (labels == i)) for i in range(1, count))
    return [(slice(y, y + h), slice(x, x + w)) for x, y, w, h in found]


def _grown(box: Box, margin: int, limits: tuple[int, int]) -> Box:
    rows, columns = (
        slice(max(0, side.start - margin), min(limit, side.stop + margin))
        for side, limit in zip(box, limits, strict=True)
    )
    return rows, columns


def scaled(box: Box, scale: int) -> Box:
    """The box of latents in pixels, of which each is so many a side."""
    rows, columns = (slice(side.start * scale, side.stop * scale) for side in box)
    return rows, columns


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

    decoded: share of its work that the decoder did in the last call
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
        if way == "whole":
            return None
        layers = layers_of(getattr(vae, "decoder", None))
        margin = None if layers else decode_margin(vae)
        check_region("decode", way, vae, bool(layers) or margin is not None)
        if layers:
            return WindowedDecode(vae, layers)
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
        self.decoded = self._share(boxes, latents.shape[-2:]) if boxes else 1.0
        if self.decoded > WORTH:
            self.decoded = 1.0
            return original(latents, *args, **kwargs)
        scale = photo_B3HW.shape[-1] // latents.shape[-1]
        repeats = len(latents) // len(photo_B3HW)
        picture = photo_B3HW.to(latents).repeat(repeats, 1, 1, 1)
        output = None
        with self._by_box(lambda z: original(z, *args, **kwargs), latents, boxes) as decode:
            for box in boxes:
                output = decode(box)
                rows, columns = scaled(box, scale)
                picture[..., rows, columns] = picture_of(output)
        return _with_picture(output, picture)

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
        return _with_picture(outputs[0], torch.cat([picture_of(output) for output in outputs]))

    @contextmanager
    def _by_box(
        self, decode: Decode, latents: Tensor, boxes: list[Box]
    ) -> Iterator[Callable[[Box], Any]]:
        """What decodes any of the boxes of the latents, in this context."""
        yield lambda box: decode(latents[..., box[0], box[1]])

    def _share(self, boxes: list[Box], size: Sequence[int]) -> float:
        """Of the work for the whole, of latents of this height and width, that for the boxes."""
        return area_of(boxes) / (size[0] * size[1])

    def _boxes(self, latents: Tensor, mask_B1HW: Tensor) -> list[Box]:
        """Of latents, where a region can be decoded; none where it cannot."""
        if latents.ndim != 4 or in_parts(self.vae):
            return []
        (H, W), (h, w) = mask_B1HW.shape[-2:], latents.shape[-2:]
        if H % h or W % w or H // h != W // w or len(latents) % len(mask_B1HW):
            return []
        return self._around(mask_B1HW, (h, w))

    def _around(self, mask_B1HW: Tensor, size: tuple[int, int]) -> list[Box]:
        return boxes_of(mask_B1HW, size, self.margin)


class WindowedDecode(RegionDecode):
    """The same by a stack of layers, each on its window: what is masked is all that comes out."""

    def __init__(self, vae: Any, layers: list[Layer]) -> None:
        super().__init__(vae, 0)
        self.layers = layers

    def _around(self, mask_B1HW: Tensor, size: tuple[int, int]) -> list[Box]:
        return tight_boxes(mask_B1HW, size, APART)

    def _windows(self, box: Box, size: Sequence[int]) -> list[Box]:
        scale = math.prod(layer.up for layer in self.layers)
        return windows_for(self.layers, size, scaled(box, scale))

    def _share(self, boxes: list[Box], size: Sequence[int]) -> float:
        own = sum(work_of(self.layers, self._windows(box, size)) for box in boxes)
        return own / work_of(self.layers, whole_windows(self.layers, size))

    @contextmanager
    def _by_box(
        self, decode: Decode, latents: Tensor, boxes: list[Box]
    ) -> Iterator[Callable[[Box], Any]]:
        def decode_box(box: Box) -> Any:
            windows = self._windows(box, latents.shape[-2:])

            def run(_: Any, x: Tensor) -> Tensor:
                return run_windows(self.layers, windows, x)

            with shadowed(self.vae.decoder.layers, "forward", run):
                return decode(latents[..., windows[0][0], windows[0][1]])

        yield decode_box
