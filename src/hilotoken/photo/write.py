"""Write a photo in its stored frame; a format that cannot hold it is refused beforehand."""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags

from .tags import EXIF_IFD, GPS_IFD, INTEROP_IFD, PNG_TYPES, PNG_XMP, RESOLUTION, TIFF_LAYOUT
from .value import COLOURS, Photo, PhotoError, exif_tags, one_line


@dataclass(frozen=True)
class Format:
    """What an output format can hold."""

    name: str  # Pillow's
    modes: frozenset[str]
    lossless: bool = True
    side: int = 1 << 30  # longest side in pixels


PNG = Format("PNG", frozenset(COLOURS) - {"CMYK"})
TIFF = Format("TIFF", frozenset(COLOURS) - {"LA;16"})
WEBP = Format("WEBP", frozenset({"RGB", "RGBA"}), side=16383)
BMP = Format("BMP", frozenset({"1", "L", "RGB"}))
JPEG = Format("JPEG", frozenset({"L", "RGB", "CMYK"}), lossless=False, side=65500)
FORMATS = {".png": PNG, ".tif": TIFF, ".tiff": TIFF, ".webp": WEBP, ".bmp": BMP}
FORMATS |= {".jpg": JPEG, ".jpeg": JPEG}


def is_lossless(path: str | os.PathLike[str]) -> bool:
    """Whether the format of this suffix keeps samples bit for bit; PhotoError if unknown."""
    return _format(Path(path)).lossless


def check_output(photo: Photo, path: str | os.PathLike[str]) -> None:
    """Raise PhotoError if `save_photo` could not write this photo there; writes nothing."""
    path = Path(path)
    output = _format(path)
    obstacle = _obstacle(photo, output)
    if obstacle:
        able = [suffix for suffix, other in FORMATS.items() if not _obstacle(photo, other)]
        raise PhotoError(f"{path}: {output.name} cannot hold {obstacle}: write {' or '.join(able)}")
    if path.is_dir():
        raise PhotoError(f"{path} is a directory: name a file in it")
    if path.exists() and not path.is_file():
        raise PhotoError(f"{path} is not a regular file: name another")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise PhotoError(f"{path}: {folder} is not a directory: create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PhotoError(f"{path}: {folder} is not writable: write elsewhere")


def save_photo(photo: Photo, path: str | os.PathLike[str]) -> None:
    """Write the photo in its stored frame; an existing file is replaced only by a finished one."""
    check_output(photo, path)
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    unfinished = target.with_name(f".hilo-{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "xb") as file:
            _write(photo, _format(target), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except Exception as error:  # encoders raise anything: OSError, ValueError, struct.error, ...
        raise PhotoError(f"{path} cannot be written: {one_line(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _format(path: Path) -> Format:
    if path.suffix.lower() not in FORMATS:
        ending = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise PhotoError(f"{path} has {ending}: use one of {' '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def _obstacle(photo: Photo, output: Format) -> str | None:
    """What keeps a format from holding the whole photo, or None."""
    if photo.mode not in output.modes:
        return f"mode {photo.mode}"
    if photo.transparency is not None and output is not PNG:
        return f"the transparent colour of mode {photo.mode}"
    if max(photo.size) > output.side:
        return f"a side of {max(photo.size)} pixels (limit {output.side})"
    if output is BMP and (photo.icc or photo.exif):
        return f"the photo's {'ICC profile' if photo.icc else 'EXIF'}"
    if output is JPEG and max(len(photo.exif or b""), len(photo.xmp or b"")) > 65_000:
        return "more than 65000 bytes of EXIF or XMP"
    # libwebp leaves such a channel out: the file would come back as RGB.
    if output is WEBP and photo.mode == "RGBA" and photo.pixels[..., 3].min() == 255:
        return "an alpha channel that is opaque everywhere"
    return None


def _write(photo: Photo, output: Format, file: BinaryIO) -> None:
    pixels = photo.stored()
    if pixels.dtype == np.uint16:
        (_write_png_16 if output is PNG else _write_tiff_16)(photo, pixels, file)
        return
    image = _image(photo, pixels)
    options: dict[str, Any] = {"icc_profile": photo.icc, "exif": photo.exif or b""}
    if photo.dpi:
        options["dpi"] = photo.dpi
    if output is PNG:
        options["transparency"] = photo.transparency
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for name, data in _png_text(photo):
            options["pnginfo"].add(name, data)
    elif output is TIFF:
        options = {"tiffinfo": _tiff_tags(photo)}
    elif output is WEBP:  # exact: keep the colours under transparent pixels
        options |= {"lossless": True, "exact": True, "xmp": photo.xmp or b""}
        # The encoder takes some 37 bytes a pixel, 24 with method 0, for a larger file.
        options["method"] = 4 if pixels.size < 150_000_000 else 0
    elif output is JPEG:
        options |= {"quality": 95, "subsampling": 0, "xmp": photo.xmp}
        options["exif"] = b"Exif\0\0" + photo.exif if photo.exif else b""
    image.save(file, output.name, **options)


def _image(photo: Photo, pixels: np.ndarray) -> Image.Image:
    """8-bit stored samples as a Pillow image of the photo's mode."""
    mode = "L" if photo.mode == "1" else photo.mode
    size = pixels.shape[1], pixels.shape[0]
    image = Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1)
    if photo.palette is not None:
        image.putpalette(photo.palette.tobytes())
    return image.convert("1", dither=Image.Dither.NONE) if photo.mode == "1" else image


def _png_text(photo: Photo) -> list[tuple[bytes, bytes]]:
    """Chunks carried over from a PNG, and XMP from anywhere."""
    xmp = [(b"iTXt", PNG_XMP + bytes(4) + photo.xmp)] if photo.xmp else []
    return [*photo.png_chunks, *xmp]


def _write_png_16(photo: Photo, pixels: np.ndarray, file: BinaryIO) -> None:
    """16-bit PNG, each row stored as the difference from the one above."""

    def chunk(name: bytes, data: bytes) -> None:
        check = zlib.crc32(data, zlib.crc32(name))
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", check))

    height, width = pixels.shape[:2]
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, PNG_TYPES[photo.mode], 0, 0, 0))
    if photo.icc:
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc))
    for name, data in _png_text(photo):
        if not (photo.icc and name == b"sRGB"):  # PNG allows one of the two
            chunk(name, data)
    if photo.dpi:
        per_metre = (round(value / 0.0254) for value in photo.dpi)
        chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if photo.exif:
        chunk(b"eXIf", photo.exif)
    if photo.transparency is not None:
        chunk(b"tRNS", np.atleast_1d(photo.transparency).astype(">u2").tobytes())
    packer = zlib.compressobj()
    above = np.zeros((1, width * 2 * (pixels[0, 0].size)), np.uint8)
    for top in range(0, height, 64):
        rows = pixels[top : top + 64].astype(">u2").reshape(-1, above.size // 2).view(np.uint8)
        lines = np.full((len(rows), above.size + 1), 2, np.uint8)
        lines[:, 1:] = rows - np.concatenate([above, rows[:-1]])
        if data := packer.compress(lines.tobytes()):
            chunk(b"IDAT", data)
        above = rows[-1:]
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _tiff_tags(photo: Photo) -> TiffImagePlugin.ImageFileDirectory_v2:
    """EXIF, ICC, XMP and resolution as TIFF tags."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    exif = exif_tags(photo.exif)
    for tag in set(exif) - TIFF_LAYOUT:
        tags[tag] = exif.get_ifd(tag) if tag in (EXIF_IFD, GPS_IFD) else exif[tag]
    if INTEROP_IFD in tags.get(EXIF_IFD, {}):
        tags[EXIF_IFD] = {**tags[EXIF_IFD], INTEROP_IFD: exif.get_ifd(INTEROP_IFD)}
    if photo.dpi and RESOLUTION not in exif:
        tags[RESOLUTION], tags[RESOLUTION + 1], tags[296] = *photo.dpi, 2
    if photo.icc:
        tags[34675] = photo.icc
    if photo.xmp:
        tags[700] = photo.xmp
        tags.tagtype[700] = TiffTags.BYTE
    return tags


def _write_tiff_16(photo: Photo, pixels: np.ndarray, file: BinaryIO) -> None:
    """16-bit TIFF in one uncompressed strip."""
    height, width = pixels.shape[:2]
    channels = pixels[0, 0].size
    tags = _tiff_tags(photo)
    tags[256], tags[257], tags[258], tags[259] = width, height, (16,) * channels, 1
    tags[262] = 1 if channels == 1 else 2
    tags[273], tags[277], tags[278], tags[279] = 0, channels, height, pixels.nbytes
    tags[284] = 1  # samples of a pixel side by side
    if channels == 4:
        tags[338] = 2  # alpha that is not premultiplied
    tags.save(file)  # which moves the strip offset behind the tags
    file.write(pixels.astype("<u2", copy=False).data)
