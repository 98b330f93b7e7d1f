"""Read photos and masks, by their content, with every sample as it is stored."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from .tags import ORIENTATION, PNG_KEPT, PNG_TYPES, PNG_XMP, RESOLUTION, TIFF_LAYOUT
from .value import COLOURS, UPRIGHT, Photo, PhotoError, exif_tags, one_line

MAX_PIXELS = 100_000_000
# Formats whose samples Pillow and OpenCV hand over unchanged (AVIF or PPM may lose bit depth).
READABLE = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")


def load_photo(path: str | os.PathLike[str]) -> Photo:
    """Read a photo by its content; raises PhotoError for what cannot be kept bit for bit."""
    Image.init()  # open() with a list of formats does not load their plugins
    limit = f"the limit is {MAX_PIXELS / 1e6:g} megapixels: crop or shrink it first"
    try:
        with warnings.catch_warnings():
            # MAX_PIXELS is the limit here, and lies above the size Pillow warns at.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=READABLE) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise PhotoError(f"{path} has {image.width}x{image.height} pixels; {limit}")
                return _read(image, Path(path))
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{path}: {one_line(error)}; {limit}") from None
    except UnidentifiedImageError:
        known = ", ".join(READABLE)
        raise PhotoError(f"{path} is not a picture read here ({known}): convert to PNG") from None
    except Exception as error:  # decoders raise anything on damage: struct.error, IndexError, ...
        if isinstance(error, OSError) and error.strerror:  # the system's: no such file, ...
            raise PhotoError(f"{path}: {error.strerror}: name an image file") from None
        raise PhotoError(
            f"{path} is damaged or cut short: export it again ({one_line(error)})"
        ) from error


def load_mask(path: str | os.PathLike[str], photo: Photo) -> np.ndarray:
    """H W bool in the photo's upright frame: True (at least half white) means edit.

    Alpha is composited on black. A mask in the stored frame of a rotated photo is turned with it.
    Raises PhotoError if the file cannot be read, has another size or no white pixel.
    """
    mask = load_photo(path)
    luma = np.asarray(mask.rgb().convert("L"))
    alpha = mask.alpha()
    if alpha is not None:
        luma = luma.astype(np.uint16) * alpha // 255
    width, height = photo.size
    if mask.size != photo.size:
        # Orientations 5 to 8 swap the sides.
        if photo.orientation < 5 or mask.size != (height, width):
            raise PhotoError(
                f"mask {path} is {mask.size[0]}x{mask.size[1]} but the photo is {width}x{height}: "
                f"resize the mask to {width}x{height}"
            )
        luma = UPRIGHT[photo.orientation](luma)
    if luma.max() < 128:
        raise PhotoError(
            f"{path}: the mask has no white pixel: paint white where the photo should change"
        )
    return np.ascontiguousarray(luma >= 128)


def _read(image: ImageFile.ImageFile, path: Path) -> Photo:
    frames = getattr(image, "n_frames", 1)
    # An MPO is a JPEG with previews or a gain map behind it: its first frame is the photo.
    if frames > 1 and image.format != "MPO":
        raise PhotoError(f"{path} has {frames} frames: export the one to edit as a single PNG")
    chunks = _png_chunks(path) if image.format == "PNG" else {}
    depth, colour_type = chunks.pop(b"IHDR", [bytes(10)])[0][8:10]
    mode = (
        {value: name for name, value in PNG_TYPES.items()}[colour_type]
        if depth == 16
        else image.mode
    )
    early: dict[Any, Any] = {}
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Taken before decoding: Pillow then applies the orientation and forgets it.
        mode = _tiff_mode(image, path)
        early = {**image.info, "exif": _tiff_exif(image)}
        if RESOLUTION not in image.tag_v2:
            early["dpi"] = None  # Pillow makes one up
    if mode not in COLOURS:
        raise PhotoError(f"{path} has mode {mode}: convert it to 8 or 16 bit RGB")
    image.load()
    info = {**image.info, **early}
    exif = (info.get("exif") or b"").removeprefix(b"Exif\0\0") or None
    orientation = _orientation(exif)
    if mode.endswith("16"):
        pixels = _read_16(path, mode)
    else:
        pixels = np.asarray(image)
        if mode == "1":
            pixels = pixels * np.uint8(255)
    if image.format != "TIFF":  # Pillow and OpenCV have turned it already
        pixels = UPRIGHT[orientation](pixels)
    key = info.get("transparency") if mode in ("1", "L", "P", "RGB", "I;16", "RGB;16") else None
    if mode == "L" and 1 < depth < 8:
        key = key and key * 255 // (2**depth - 1)  # Pillow widens the samples, not the key
    return Photo(
        pixels=np.ascontiguousarray(pixels),
        mode=mode,
        format=image.format or "",
        orientation=orientation,
        icc=info.get("icc_profile"),
        exif=exif,
        xmp=info.get("xmp"),
        dpi=info.get("dpi"),
        palette=_palette(image, int(pixels.max())) if mode == "P" else None,
        transparency=key,
        png_chunks=tuple((name, data) for name, found in chunks.items() for data in found),
    )


def _read_16(path: Path, mode: str) -> np.ndarray:
    """Samples of a 16-bit file in RGB order, through OpenCV because Pillow narrows them."""
    samples = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise PhotoError(f"{path}: this kind of 16-bit file cannot be read: save it as PNG")
    if mode == "I;16":
        return samples.reshape(samples.shape[:2])
    if mode == "LA;16":
        return samples[..., [0, 3]]
    samples[..., [0, 2]] = samples[..., [2, 0]]
    return samples[..., : len(mode.partition(";")[0])]


def _palette(image: Image.Image, highest: int) -> np.ndarray:
    """N 3 uint8 entries, as many as the file has, and black for indices past them."""
    entries = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    return np.pad(entries, ((0, max(0, highest + 1 - len(entries))), (0, 0)))


def _orientation(exif: bytes | None) -> int:
    try:
        value = exif_tags(exif).get(ORIENTATION)
    except Exception:  # viewers ignore EXIF that cannot be parsed; its bytes are still carried over
        return 1
    return value if value in UPRIGHT else 1


def _tiff_mode(image: TiffImagePlugin.TiffImageFile, path: Path) -> str:
    """Mode of a TIFF, with ";16" for 16-bit samples; refuses layouts read inexactly."""
    tags = image.tag_v2
    wide = set(tags.get(258, (1,))) == {16}
    if 1 in tags.get(338, ()):
        raise PhotoError(f"{path} has premultiplied alpha: save it with unassociated alpha")
    if wide and (tags.get(284) == 2 or tags.get(262) == 0):
        layout = "separate planes" if tags.get(284) == 2 else "white as zero"
        raise PhotoError(f"{path} holds 16-bit samples with {layout}: save it as PNG")
    if not wide:
        return image.mode
    return {"I;16B": "I;16", "RGB": "RGB;16", "RGBA": "RGBA;16"}.get(image.mode, image.mode)


def _tiff_exif(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    exif = image.getexif()
    for tag in TIFF_LAYOUT & set(exif):
        del exif[tag]
    return exif.tobytes() if len(exif) else None


def _png_chunks(path: Path) -> dict[bytes, list[bytes]]:
    """IHDR and the chunks of PNG_KEPT, wherever they stand in the file; XMP is left out."""
    chunks: dict[bytes, list[bytes]] = {}
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            if name not in (b"IHDR", *PNG_KEPT):
                file.seek(size + 4, os.SEEK_CUR)
                continue
            data = file.read(size)
            file.seek(4, os.SEEK_CUR)
            if not data.startswith(PNG_XMP):
                chunks.setdefault(name, []).append(data)
    return chunks
