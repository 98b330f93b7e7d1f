"""Read a mask from a file: what it says is to be edited, whatever convention it follows."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from .read import load_photo
from .value import UPRIGHT, Photo, PhotoError

MASK_FROM = ("auto", "white", "alpha")
MUCH = 0.6  # share of the photo above which the mask may be the wrong way round
GREYS = 0.05  # share of a mask that is neither black nor white, from which it may be a picture
SHAPE = 0.01  # by what share the sides of a mask of the photo's shape may be off


@dataclass(frozen=True, eq=False)
class Mask:
    """What is to be edited, and what the user should know of how it was read."""

    pixels: np.ndarray  # H W bool in the photo's upright frame: True means edit
    notes: tuple[str, ...]  # sentences, each without a full stop


def load_mask(
    path: str | os.PathLike[str],
    photo: Photo,
    *,
    mask_from: str = "auto",
    invert: bool = False,
    grow: int = 0,
) -> np.ndarray:
    """`read_mask` as H W bool; its notes become Python warnings."""
    mask = read_mask(path, photo, mask_from=mask_from, invert=invert, grow=grow)
    for note in mask.notes:
        warnings.warn(note, stacklevel=2)
    return mask.pixels


def read_mask(
    path: str | os.PathLike[str],
    photo: Photo,
    *,
    mask_from: str = "auto",
    invert: bool = False,
    grow: int = 0,
) -> Mask:
    """Read which pixels of a photo are to be edited.

    A mask of the photo's shape but another size is resized; one in the stored frame of a rotated
    photo is turned with it.

    Args:
        mask_from: "white", what is at least half white (transparent is black); "alpha", what is at
            least half transparent; "auto", by alpha if that leaves a hole in a picture, else white
        invert: edit the rest instead
        grow: pixels of the photo by which the mask is widened, round about

    Raises:
        PhotoError: the file cannot be read, has another shape, or leaves nothing to edit.
        ValueError: an option out of range.
    """
    if mask_from not in MASK_FROM:
        raise ValueError(f"mask_from must be one of {', '.join(MASK_FROM)}, got {mask_from!r}")
    if isinstance(grow, bool) or not isinstance(grow, int | np.integer) or grow < 0:
        raise ValueError(f"grow must be a whole number of pixels, 0 or more, got {grow!r}")
    found = load_photo(path)
    by_alpha = mask_from == "alpha" or (mask_from == "auto" and _has_hole(found))
    drawn = _level(found, by_alpha)
    level, notes = _fitted(drawn, photo, path)
    mask = (level < 128) if invert else (level >= 128)
    if not mask.any():
        raise PhotoError(f"{path}: {_why_empty(found, by_alpha, invert)}")
    if by_alpha and mask_from == "auto":
        notes.append(
            f"{path} is a picture with a hole: where it is transparent, the photo is edited; "
            "--mask-from white goes by its bright parts instead"
        )
    greys = float(((drawn > 32) & (drawn < 224)).mean())
    if greys > GREYS and not by_alpha:
        notes.append(
            f"{greys:.0%} of {path} is grey: what is at least half white is edited; "
            "if it is no mask but a picture, paint one, or cut a hole and give --mask-from alpha"
        )
    if mask.mean() > MUCH:
        way_out = "leave out --invert" if invert else "give --invert"
        notes.append(f"{mask.mean():.0%} of the photo is edited: to edit the rest, {way_out}")
    return Mask(_grown(mask, int(grow)), tuple(notes))


def _level(found: Photo, by_alpha: bool) -> np.ndarray:
    """H W uint8: how white a mask is where it is opaque, or how transparent."""
    alpha = found.alpha()
    if by_alpha:
        return np.zeros(found.pixels.shape[:2], np.uint8) if alpha is None else 255 - alpha
    luma = np.asarray(found.rgb().convert("L"))
    return luma if alpha is None else (luma.astype(np.uint16) * alpha // 255).astype(np.uint8)


def _has_hole(found: Photo) -> bool:
    """Whether a picture of many greys is transparent in places: a photo with a hole cut in it."""
    alpha = found.alpha()
    if alpha is None or alpha.min() >= 128:
        return False
    seen = np.asarray(found.rgb().convert("L"))[alpha >= 128]
    counts = np.bincount(seen, minlength=256)
    greys = counts[33:224]
    return bool(greys.sum() > GREYS * counts.sum() and np.count_nonzero(counts) > 16)


def _fitted(
    level: np.ndarray, photo: Photo, path: str | os.PathLike[str]
) -> tuple[np.ndarray, list[str]]:
    """A mask in the photo's frame, and what was done to it. Raises PhotoError for other shapes."""
    wanted, size = photo.size, level.shape[::-1]
    # Orientations 5 to 8 swap the sides.
    turned = photo.orientation >= 5 and size != wanted
    turned = turned and (size == wanted[::-1] or not _alike(size, wanted))
    if turned:
        level = UPRIGHT[photo.orientation](level)
    if not _alike(level.shape[::-1], wanted):
        raise PhotoError(
            f"mask {path} is {size[0]}x{size[1]} but the photo is {wanted[0]}x{wanted[1]}: "
            f"resize the mask to {wanted[0]}x{wanted[1]}"
        )
    notes = [f"{path} is turned as the photo is by its EXIF"] if turned else []
    if level.shape[::-1] != wanted:
        level = np.asarray(Image.fromarray(level).resize(wanted, Image.Resampling.BILINEAR))
        notes.append(f"{path} is {size[0]}x{size[1]}: resized to {wanted[0]}x{wanted[1]}")
    return np.ascontiguousarray(level), notes


def _alike(size: tuple[int, ...], wanted: tuple[int, int]) -> bool:
    """Whether two sizes are of one shape."""
    return abs(size[0] * wanted[1] / (size[1] * wanted[0]) - 1) <= SHAPE


def _why_empty(found: Photo, by_alpha: bool, invert: bool) -> str:
    if invert:
        return "the mask has nothing but what --invert leaves out"
    if by_alpha:
        return "the mask has no transparent pixel: erase where the photo should change"
    alpha = found.alpha()
    other = ", or give --mask-from alpha" if alpha is not None and alpha.min() < 128 else ""
    return f"the mask has no white pixel: paint white where the photo should change{other}"


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask with all that lies within so many pixels of it."""
    if not pixels:
        return mask
    outside = (~mask).view(np.uint8)
    return cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= pixels
