"""Read photos by their content, with every sample as it is stored."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from . import png, tiff
from .metadata import orientation, text_without_pictures, upright, without_pictures
from .value import COLOURS, UPRIGHT, Photo, PhotoError, check_size, one_line, padded_palette

# Besides PNG, TIFF and HEIC: formats whose samples Pillow hands over unchanged.
READABLE = ("JPEG", "WEBP", "BMP", "GIF", "AVIF")
# Brands in the first box of a file of their family.
HEIC, AVIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"), (b"avif", b"avis")


def load_photo(path: str | os.PathLike[str]) -> Photo:
    """Read a photo by its content: every sample and all that tells about it.

    Pictures of the same photo inside it, such as EXIF's thumbnail, are left out: an edit would not
    reach them. Raises PhotoError for what cannot be kept bit for bit.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise PhotoError("is no regular file: save what comes out of it, and name that")
        with open(path, "rb") as file:
            photo = _read(file)
    except PhotoError as error:
        raise PhotoError(f"{path} {error}") from None
    except MemoryError:
        raise PhotoError(f"{path} does not fit into memory: crop or shrink it first") from None
    except Exception as error:  # decoders raise anything on damage: struct.error, IndexError, ...
        if isinstance(error, OSError) and error.strerror:  # the system's: no such file, ...
            raise PhotoError(f"{path}: {error.strerror}: name an image file") from None
        raise PhotoError(
            f"{path} is damaged or cut short: export it again ({one_line(error)})"
        ) from error
    turn = orientation(photo.exif)
    return replace(
        photo,
        pixels=np.ascontiguousarray(UPRIGHT[turn](photo.pixels)),
        orientation=turn,
        exif=without_pictures(photo.exif) if photo.exif else None,
        xmp=text_without_pictures(photo.xmp) if photo.xmp else None,
    )


def _read(file: BinaryIO) -> Photo:
    """The photo of a file in its stored frame."""
    head = file.read(64)
    file.seek(0)
    if head.startswith(png.SIGNATURE):
        return png.read(file)
    if head.startswith(tiff.SIGNATURES):
        return tiff.read(file)
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(8, 64, 4)}
        if brands & set(HEIC) and not brands & set(AVIF):
            return _read_heic(file)
    return _read_other(file)


def _read_other(file: BinaryIO) -> Photo:
    """The photo of a file that Pillow reads."""
    Image.init()  # open() with a list of formats does not load their plugins
    try:
        with warnings.catch_warnings():
            # The limit here lies above the size that Pillow warns at.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=READABLE)
    except Image.DecompressionBombError:
        raise PhotoError("has more than 100 megapixels: crop or shrink it first") from None
    except UnidentifiedImageError:
        known = ", ".join(("PNG", "JPEG", "TIFF", *READABLE[1:], "HEIC"))
        raise PhotoError(f"is not a picture read here ({known}): convert to PNG") from None
    check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    # An MPO is a JPEG with previews or a gain map behind it: its first frame is the photo.
    if frames > 1 and image.format != "MPO":
        raise PhotoError(f"has {frames} frames: export the one to edit as a single PNG")
    if image.mode not in COLOURS:
        raise PhotoError(f"has mode {image.mode}: convert it to 8 or 16 bit RGB")
    if image.format == "AVIF" and _is_deep_avif(file):
        raise PhotoError("has more than 8 bits a sample: convert it to PNG of 16 bits")
    image.load()
    pixels = np.asarray(image)
    if image.mode == "1":
        pixels = pixels * np.uint8(255)
    return Photo(
        pixels=pixels,
        mode=image.mode,
        format=image.format or "",
        palette=_palette(image, pixels) if image.mode == "P" else None,
        transparency=image.info.get("transparency") if image.mode in ("L", "P") else None,
        dpi=image.info.get("dpi"),
        **_metadata(image.info),
    )


def _metadata(info: dict[Any, Any]) -> dict[str, Any]:
    """Profiles that a decoder hands over."""
    if info.get("icc_profile", b"") is None:
        raise ValueError("pieces of the colour profile are missing")
    exif = (info.get("exif") or b"").removeprefix(b"Exif\0\0")
    return {
        "icc": info.get("icc_profile") or None,
        "exif": exif or None,
        "xmp": info.get("xmp") or None,
    }


def _palette(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    return padded_palette(bytes(image.getpalette("RGB") or []), int(pixels.max()))


def _is_deep_avif(file: BinaryIO) -> bool:
    """Whether the AV1 configuration tells of more than 8 bits, which Pillow would narrow."""
    file.seek(0)
    boxes = file.read().split(b"av1C")[1:]
    return any(len(box) > 2 and box[2] & 0x40 for box in boxes)


def _read_heic(file: BinaryIO) -> Photo:
    try:
        import pillow_heif
    except ModuleNotFoundError:
        raise PhotoError("is HEIC, which needs: pip install 'hilotoken[heic]'") from None
    found = pillow_heif.open_heif(file, convert_hdr_to_8bit=False)
    if len(found) > 1:
        raise PhotoError(f"has {len(found)} frames: export the one to edit as a single PNG")
    check_size(*found.size)
    if found.mode not in COLOURS:
        raise PhotoError(f"has mode {found.mode}: convert it to 8 or 16 bit RGB")
    fields = _metadata(found.info)
    if exif := fields["exif"]:
        fields["exif"] = upright(exif)  # the decoder has turned the samples
    return Photo(np.array(found), found.mode, "HEIF", **fields)
