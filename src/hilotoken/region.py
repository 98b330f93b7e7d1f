"""Where a model works: boxes of the photo around its mask, and the size at which each is worked on.

A model works at its own resolution and the photo keeps its own. A box holds a part of the mask with
context enough to judge by; parts that lie far apart have boxes of their own, so that none is worked
on smaller than it must be.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .photo import Photo

SMALLEST = 128  # a smaller working picture gives the model nothing to go by
CONTEXT = 0.5  # of a mask's longer side, all around it
ENLARGED = 4  # times at most: beyond, a photo is a blur that no model was trained on
WORTH = 2  # times at least: for less, resampling costs what it gains, and tokens besides
MANY = 64  # pieces of a mask: more are a pattern, and stay together

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Region:
    """A box of the photo, in its pixels, the size at which the model works on it, and its token."""

    left: int
    top: int
    right: int
    bottom: int
    width: int
    height: int
    token: int = 16

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)

    @property
    def grid(self) -> tuple[int, int]:
        """The token grid of the working picture."""
        return self.height // self.token, self.width // self.token

    def take(self, picture: Image.Image) -> Image.Image:
        """The region of a picture of the photo's size, at working size."""
        box = (self.left, self.top, self.right, self.bottom)
        return picture.crop(box).resize((self.width, self.height), Image.Resampling.LANCZOS)

    def take_photo(self, photo: Photo) -> Image.Image:
        """The region of the photo at working size."""
        return self.take(photo.rgb())

    def take_mask(self, mask: np.ndarray) -> np.ndarray:
        """The region of the mask at working size: a pixel is masked if any part of it is."""
        part = torch.from_numpy(mask[self.rows, self.columns].astype(np.float32))
        return F.adaptive_max_pool2d(part[None], (self.height, self.width))[0].numpy() > 0


def choose_regions(
    mask: np.ndarray, size: int, context: float = CONTEXT, token: int = 16
) -> list[Region]:
    """Regions that hold the whole mask between them and do not overlap, the most masked one first.

    Parts of the mask share a region where theirs would overlap, or where one that holds both need
    not be made smaller to work on: one run is then as good as two.

    Args:
        mask, size, context, token: see `choose_region`

    Raises:
        ValueError: see `choose_region`.
    """
    whole = choose_region(mask, size, context, token)
    pieces = _pieces(mask, max(1, size // (4 * ENLARGED)))
    if not 1 < len(pieces) <= MANY:
        return [whole]
    apart: list[Box] = []
    for piece in pieces:
        for other in _joined_with(piece, apart, mask.shape, size, context):
            apart.remove(other)
            piece = _union(piece, other)
        apart.append(piece)
    return sorted(
        (_region(box, mask.shape, size, context, token) for box in apart),
        key=lambda region: -np.count_nonzero(mask[region.rows, region.columns]),
    )


def _joined_with(
    piece: Box, others: list[Box], shape: tuple[int, ...], size: int, context: float
) -> list[Box]:
    """Those of the others, apart until now, that share a region with the piece, directly or not."""
    joined: list[Box] = []
    while True:
        mine = _extent(piece, shape, size, context)
        for other in others:
            both = _union(piece, other)
            left, top, right, bottom = _extent(both, shape, size, context)
            if other not in joined and (
                _overlap(mine, _extent(other, shape, size, context))
                or max(right - left, bottom - top) <= size
            ):
                joined.append(other)
                piece = both
                break
        else:
            return joined


def _pieces(mask: np.ndarray, near: int) -> list[Box]:
    """Boxes of the mask's pieces; what is less than `near` pixels apart is one."""
    height, width = mask.shape
    cells = -(-height // near), -(-width // near)
    padded = np.zeros((cells[0] * near, cells[1] * near), bool)
    padded[:height, :width] = mask
    touched: Any = padded.reshape(cells[0], near, cells[1], near).any((1, 3)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(touched, connectivity=8)
    boxes = []
    for label in range(1, min(count, MANY + 2)):
        left, top, wide, high = (int(x) for x in stats[label][:4])
        rows = slice(top * near, (top + high) * near)
        columns = slice(left * near, (left + wide) * near)
        own = (labels[top : top + high, left : left + wide] == label).repeat(near, 0)
        own = own.repeat(near, 1) & padded[rows, columns]
        x, y, w, h = cv2.boundingRect(own.astype(np.uint8))
        boxes.append((columns.start + x, rows.start + y, columns.start + x + w, rows.start + y + h))
    return boxes


def choose_region(mask: np.ndarray, size: int, context: float = CONTEXT, token: int = 16) -> Region:
    """One region around the whole mask with `context` of the mask's longer side all around it.

    Args:
        mask: bool [H, W] of the photo, with something in it
        size: pixels of the working picture's longer side, to which the region is made smaller or,
            by 2 to 4 times, larger; between, it is as large as that, where the photo is
        context: share of the mask's longer side
        token: pixels a side of a token, of which the working sides are multiples

    Raises:
        ValueError: an empty mask, a size under 128 pixels, or a negative context.
    """
    if size < SMALLEST:
        raise ValueError(f"size must be {SMALLEST} pixels or more, got {size}")
    if not 0 <= context < np.inf:
        raise ValueError(f"context must be 0 or more of the mask's longer side, got {context}")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("the mask has nothing in it: paint white where the photo should change")
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return _region(box, mask.shape, size, context, token)


def _region(box: Box, shape: tuple[int, ...], size: int, context: float, token: int) -> Region:
    left, top, right, bottom = _extent(box, shape, size, context)
    scale = _scale(max(right - left, bottom - top), size)
    width, height = (
        max(token, round(scale * side / token) * token) for side in (right - left, bottom - top)
    )
    return Region(left, top, right, bottom, width, height, token)


def _scale(longer: int, size: int) -> float:
    """How many times a region of this longer side is enlarged to be worked on."""
    least = SMALLEST / longer  # which tiny photos alone need
    if size / WORTH < longer < size:
        return max(1.0, least)
    return min(size / longer, max(ENLARGED, least))


def _extent(box: Box, shape: tuple[int, ...], size: int, context: float) -> Box:
    """The box with context all around it, inside the photo."""
    left, top, right, bottom = box
    height, width = shape
    wanted = int(np.ceil(min(max(right - left, bottom - top) * (1 + 2 * context), max(shape))))
    side = max(wanted, size if wanted > size / WORTH else -(-size // ENLARGED))
    left, right = _span(left, right, min(side, width), width)
    top, bottom = _span(top, bottom, min(side, height), height)
    return left, top, right, bottom


def _span(first: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """`length` pixels around [first, end), inside [0, limit)."""
    start = min(max(0, (first + end - length) // 2), limit - length)
    return start, start + length


def _union(one: Box, other: Box) -> Box:
    return (*map(min, one[:2], other[:2]), *map(max, one[2:], other[2:]))  # pyright: ignore[reportReturnType]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
