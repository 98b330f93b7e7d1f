"""Edit a photo of any size: a region around the mask, at the model's working size, pasted back.

A model works at its own resolution and the photo keeps its own: the edit is made on a region with
context enough to judge by, and only masked pixels are put back.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxFillPipeline
from PIL import Image

from .composite import feather_weight, match_border
from .compress import compress
from .methods import AnyMethod
from .photo import Photo
from .record import Run

TOKEN = 16  # pixels a side of a token of every FLUX-shaped pipeline
SMALLEST = 128  # a smaller working picture gives the model nothing to go by


@dataclass(frozen=True)
class Region:
    """A box of the photo, in its pixels, and the size at which the model works on it."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)

    @property
    def grid(self) -> tuple[int, int]:
        """The token grid of the working picture."""
        return self.height // TOKEN, self.width // TOKEN

    def take_photo(self, photo: Photo) -> Image.Image:
        """The region of the photo at working size."""
        box = (self.left, self.top, self.right, self.bottom)
        size = (self.width, self.height)
        return photo.rgb().crop(box).resize(size, Image.Resampling.LANCZOS)

    def take_mask(self, mask: np.ndarray) -> np.ndarray:
        """The region of the mask at working size: a pixel is masked if any part of it is."""
        part = torch.from_numpy(mask[self.rows, self.columns].astype(np.float32))
        return F.adaptive_max_pool2d(part[None], (self.height, self.width))[0].numpy() > 0


def choose_region(mask: np.ndarray, size: int, context: float = 0.5) -> Region:
    """A region around the mask with `context` of the mask's longer side all around it.

    Args:
        mask: bool [H, W] of the photo, with something in it
        size: pixels of the working picture's longer side; the region is no smaller, where the photo
            is not, and is never enlarged, but for tiny photos
        context: share of the mask's longer side

    Raises:
        ValueError: an empty mask, or a size under 128 pixels.
    """
    if size < SMALLEST:
        raise ValueError(f"size must be {SMALLEST} pixels or more, got {size}")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("the mask has nothing in it: paint white where the photo should change")
    height, width = mask.shape
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = max(size, int(np.ceil(longer * (1 + 2 * context))))
    top, bottom = _span(rows[0], rows[-1] + 1, min(side, height), height)
    left, right = _span(columns[0], columns[-1] + 1, min(side, width), width)
    scale = min(1.0, size / max(bottom - top, right - left))
    scale = max(scale, SMALLEST / max(bottom - top, right - left))
    return Region(
        left, top, right, bottom, _round(scale * (right - left)), _round(scale * (bottom - top))
    )


def _span(first: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """`length` pixels around [first, end), inside [0, limit)."""
    start = min(max(0, (int(first) + int(end) - length) // 2), limit - length)
    return start, start + length


def _round(pixels: float) -> int:
    return max(TOKEN, round(pixels / TOKEN) * TOKEN)


@dataclass(frozen=True, eq=False)
class Edit:
    """An edited photo, and what led to it: region, working pictures, and the record of the run."""

    photo: Photo
    region: Region
    before: Image.Image
    mask: np.ndarray
    after: Image.Image
    run: Run


def edit_photo(
    pipe: FluxFillPipeline,
    photo: Photo,
    mask: np.ndarray,
    method: AnyMethod | None = None,
    *,
    size: int | None = None,
    prompt: str = "",
    label: str = "",
    steps: int = 8,
    seed: int = 0,
    feather: int = 0,
    match: bool = True,
) -> Edit:
    """Edit the masked part of a photo; every other sample of it stays as it was, bit for bit.

    Args:
        pipe: a Fill pipeline that `compress` takes
        mask: bool [H, W], True where the photo is to change
        method: `HiLo()` unless given
        size: pixels of the working picture's longer side; unless given, the pipeline's own
        label: the kind of thing to fill with, one of `pipe.labels`
        feather: pixels of the photo over which the edit is blended in, inside the mask
        match: lead the edit's colours to the photo's along the mask's border, see `match_border`

    Raises:
        ValueError: an empty mask, a mask of another size, an option out of range, an unknown label.
        TypeError: a pipeline that cannot be compressed.
    """
    if mask.shape != photo.pixels.shape[:2]:
        raise ValueError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} "
            f"but the photo {photo.size[0]}x{photo.size[1]}: resize the mask"
        )
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    if feather < 0:  # said now, not after the run
        raise ValueError(f"feather must be 0 pixels or more, got {feather}")
    words = _words(pipe, prompt, label)
    if size is None:
        size = int(pipe.default_sample_size * pipe.vae_scale_factor)
    region = choose_region(mask, size)
    before, small = region.take_photo(photo), region.take_mask(mask)
    fast = compress(pipe, method)
    output: Any = fast(
        **words,
        image=before,
        mask_image=Image.fromarray(small.astype(np.uint8) * 255),
        height=region.height,
        width=region.width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
    )
    after = output.images[0]
    if match:
        after = Image.fromarray(match_border(np.asarray(before), np.asarray(after), small))
    assert fast.last_run is not None
    edited = _paste(photo, mask, region, after, feather)
    return Edit(edited, region, before, small, after, fast.last_run)


def _words(pipe: Any, prompt: str, label: str) -> dict[str, Any]:
    """What tells the pipeline what to fill in."""
    if not label:
        return {"prompt": prompt}
    if prompt:
        raise ValueError(f"give a prompt or a label, not both: {prompt!r}, {label!r}")
    if not hasattr(pipe, "labels"):
        raise ValueError(f"{type(pipe).__name__} knows no labels: give a prompt, not {label!r}")
    return pipe.prompt(label=label)


def _paste(
    photo: Photo, mask: np.ndarray, region: Region, after: Image.Image, feather: int
) -> Photo:
    size = (region.right - region.left, region.bottom - region.top)
    full = np.zeros((*mask.shape, 3), np.uint8)
    full[region.rows, region.columns] = np.asarray(after.resize(size, Image.Resampling.LANCZOS))
    weight = np.zeros(mask.shape, np.float32)
    weight[region.rows, region.columns] = feather_weight(mask[region.rows, region.columns], feather)
    return photo.with_edit(full, weight)
