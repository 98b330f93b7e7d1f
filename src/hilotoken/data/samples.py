"""One photograph with its mask, however a data set keeps the mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from .manifest import open_picture


@dataclass(frozen=True)
class Runs:
    """A mask as runs of ones: start, length, start, length ..., over pixels row by row.

    first:  the number of the first pixel, 0 or 1
    border: whether the outermost pixels belong to the mask whatever the runs say
    """

    runs: Sequence[int]
    first: int = 0
    border: bool = False
    size: tuple[int, int] = (512, 512)  # height, width

    def read(self) -> np.ndarray:
        """The mask, bool [H, W]."""
        mask = np.zeros(self.size[0] * self.size[1], bool)
        for start, length in zip(self.runs[::2], self.runs[1::2], strict=True):
            mask[max(0, start - self.first) : max(0, start - self.first) + length] = True
        mask = mask.reshape(self.size)
        if self.border:
            mask[[0, -1]] = True
            mask[:, [0, -1]] = True
        return mask


@dataclass(frozen=True)
class Outline:
    """A mask as COCO has it: polygons, or runs of zeros and ones by turns, column by column.

    Runs are counts in a list, or packed into text, which pycocotools unpacks.
    """

    shape: Any
    size: tuple[int, int]

    def read(self) -> np.ndarray:
        """The mask, bool [H, W].

        Raises:
            ImportError: packed counts without the extra `bench`.
        """
        if isinstance(self.shape, Mapping):
            counts = self.shape["counts"]
            if isinstance(counts, str | bytes):
                return _unpacked(counts, self.size)
            values = np.arange(len(counts)) % 2 == 1
            return np.repeat(values, counts).reshape(self.size[::-1]).T
        mask = np.zeros(self.size, np.uint8)
        corners = [np.rint(np.reshape(p, (-1, 2))).astype(np.int32) for p in self.shape]
        cv2.fillPoly(mask, corners, 1)
        return mask > 0


def _unpacked(counts: str | bytes, size: tuple[int, int]) -> np.ndarray:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError(
            "packed masks of COCO are read by pycocotools: pip install 'hilotoken[bench]'"
        ) from error
    return mask.decode({"size": list(size), "counts": counts}) > 0  # type: ignore[typeddict-item]


@dataclass(frozen=True)
class Sample:
    """One edit.

    name:  of its own within the data set
    photo: what is edited
    mask:  a picture, or the mask itself where the data set keeps it in a list
    truth: what the edit should give; None where the photo itself, hidden under the mask, is that
    any_value: whether any value above 0 in the mask's picture is meant, not only white
    """

    name: str
    photo: Path
    mask: Path | Runs | Outline
    truth: Path | None = None
    any_value: bool = False

    def read_mask(self) -> np.ndarray:
        """The mask in the photo's pixels, True where it is edited: bool [H, W].

        Raises:
            ValueError: it is empty, or of another shape than the photo.
        """
        width, height = open_picture(self.photo).size
        mask = self.values()
        if abs(mask.shape[1] / mask.shape[0] - width / height) > 0.02 * width / height:
            raise ValueError(
                f"the mask of {self.name} is {mask.shape[1]}x{mask.shape[0]} but its photo "
                f"{width}x{height}: they do not belong together"
            )
        if mask.shape != (height, width):
            grown = cv2.resize(
                mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
            )
            mask = grown > 0
        if not mask.any():
            raise ValueError(f"the mask of {self.name} is empty: leave that photo out")
        return mask

    def square(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Photo, truth [size, size, 3] uint8 and mask [size, size] bool: a square of the whole
        short side, as near to the middle of the mask as the photo allows.

        Raises:
            ValueError: the mask is empty, or of another shape than the photo.
        """
        mask = Image.fromarray(self.read_mask().view(np.uint8) * 255)
        left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
        side = min(mask.size)
        ends = (mask.width - side, mask.height - side)
        middle = ((left + right - side) // 2, (top + bottom - side) // 2)
        x, y = (min(max(0, m), end) for m, end in zip(middle, ends, strict=True))
        cut = [
            np.asarray(
                picture.resize(mask.size)
                .crop((x, y, x + side, y + side))
                .resize((size, size), Image.Resampling.LANCZOS)
            )
            for picture in (
                open_picture(self.photo, "RGB"),
                open_picture(self.truth or self.photo, "RGB"),
                mask,
            )
        ]
        if not (cut[2] > 127).any():
            raise ValueError(
                f"the mask of {self.name} is lost at {size} pixels: take a larger size"
            )
        return cut[0], cut[1], cut[2] > 127

    def values(self) -> np.ndarray:
        """The mask in its own pixels, bool [H, W]."""
        if not isinstance(self.mask, Path):
            return self.mask.read()
        picture = open_picture(self.mask)
        # A palette's numbers name objects; what colour each is drawn in says nothing.
        values = np.asarray(picture if picture.mode in ("P", "1", "L") else picture.convert("L"))
        return values > 0 if self.any_value or values.dtype == bool else values > 127
