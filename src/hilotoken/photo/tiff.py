"""TIFF with every sample and tag that it holds: any number of channels, 16 bits in every mode.

Sources: Adobe, TIFF, Revision 6.0; AWare Systems, BigTIFF Design (read, never written).
"""

from __future__ import annotations

import logging
import mmap
import struct
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO

import numpy as np
import tifffile

from .metadata import (
    ICC,
    RESOLUTION_UNIT,
    X_RESOLUTION,
    XMP,
    Y_RESOLUTION,
    Block,
    Entry,
    append,
    build,
    numbers,
    parse,
)
from .value import COLOURS, MAX_PIXELS, Photo, PhotoError, check_size

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of the layout of the samples, of what a Photo has a field for, and of further copies of the
# picture, which an edit would not reach (sub-images, Photoshop's layers and thumbnails).
LAYOUT = {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 330, 338, 339}
LAYOUT |= {*range(322, 326), 346, 347, *range(512, 522), *range(529, 533), XMP, 34377, ICC, 37724}
DNG_VERSION, INK_SET = 50706, 332
UNSPECIFIED, PREMULTIPLIED, ALPHA = 0, 1, 2  # kinds of extra channels
WHITE_IS_ZERO, PALETTE, YCBCR = 0, 3, 6
BASES = {0: "L", 1: "L", 2: "RGB", 3: "P", 5: "CMYK", 6: "RGB"}  # modes by photometric
# Fax, LZW, JPEG, deflate, PackBits, LZMA, Zstandard: decoders by the dozen are a door to attacks.
COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000}
STRIP = 1 << 16  # bytes

# It warns of what is refused here, or harmless: not for the user of a command.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read(file: BinaryIO) -> Photo:
    """The photo of a TIFF in its stored frame.

    Raises PhotoError for what is refused, and whatever the decoder raises for a damaged file.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        block = parse(data)
    if block.faults:
        raise ValueError(block.faults[0])
    with tifffile.TiffFile(file) as found:
        page = found.pages.first
        _check(page, len(found.pages), block)
        mode, extra = _mode(page)
        pixels = _samples(page)
    if page.photometric == WHITE_IS_ZERO:
        pixels[..., 0] ^= np.iinfo(pixels.dtype).max
    kept = {tag: entry for tag, entry in block.entries.items() if tag not in LAYOUT}
    return Photo(
        pixels=pixels[..., 0] if pixels.shape[-1] == 1 else pixels,
        mode=mode,
        format="TIFF",
        icc=block.entries[ICC].data if ICC in block.entries else None,
        exif=build(block.order, kept) if kept else None,
        xmp=block.entries[XMP].data if XMP in block.entries else None,
        dpi=_dpi(block),
        palette=_palette(page) if mode == "P" else None,
        extra=extra,
    )


def write(photo: Photo, pixels: np.ndarray, file: BinaryIO) -> None:
    """Write a photo whose stored samples are `pixels`, uncompressed, in the byte order of its EXIF.

    The file starts with the EXIF block, which is a TIFF itself: what points into it stays right.
    Raises ValueError for EXIF that cannot be parsed.
    """
    body, block = _exif(photo)
    order = block.order
    tags = {tag: entry for tag, entry in block.entries.items() if tag not in LAYOUT}
    tags = {tag: replace(entry, directory=None) for tag, entry in tags.items()}  # where they lie
    tags |= _metadata(photo, order, X_RESOLUTION in tags)
    samples = np.packbits(pixels > 0, axis=1) if photo.mode == "1" else pixels
    samples = samples.astype(order + pixels.dtype.str[1:], copy=False)
    # Two strips at least: readers that map a single one into memory forget that it is rotated.
    rows = max(1, min(STRIP // samples[0].nbytes, -(-len(samples) // 2)))
    strips = [samples[top : top + rows] for top in range(0, len(samples), rows)]
    sizes = [strip.nbytes for strip in strips]

    def head(start: int) -> bytearray:
        """All that stands before the samples, if they start there."""
        whole = body.copy()
        starts = (start + np.cumsum([0, *sizes[:-1]])).tolist()
        layout = _layout(photo, pixels, order, rows, starts, sizes)
        struct.pack_into(order + "I", whole, 4, append(whole, order, tags | layout))
        return whole

    file.write(head(len(head(0))))
    for strip in strips:
        file.write(np.ascontiguousarray(strip).data)


def _exif(photo: Photo) -> tuple[bytearray, Block]:
    """A photo's EXIF and its directories, or those of none."""
    body = photo.exif or build("<", {})
    try:
        block = parse(body)
    except ValueError as error:
        raise ValueError(f"EXIF that cannot be parsed: {error}") from None
    if block.big or block.faults:
        raise ValueError(f"EXIF that cannot be parsed: {', '.join(block.faults) or 'BigTIFF'}")
    return bytearray(body), block


def _check(page: tifffile.TiffPage, pages: int, block: Block) -> None:
    """Raise PhotoError for a page that is refused, ValueError for a damaged one."""
    if pages > 1:
        raise PhotoError(f"has {pages} frames: export the one to edit as a single PNG")
    if page.subfiletype & 1 or DNG_VERSION in block.entries:
        raise PhotoError("holds a preview of a raw file: develop it and export a PNG")
    check_size(page.imagewidth, page.imagelength)
    if page.nbytes > 10 * MAX_PIXELS or page.tilewidth * page.tilelength > MAX_PIXELS:
        raise PhotoError(f"holds {page.nbytes >> 20} MB of samples, or tiles too large: shrink it")
    if page.compression not in COMPRESSIONS:
        name = getattr(page.compression, "name", page.compression)
        raise PhotoError(f"is compressed by {name}: save it with LZW or without compression")
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(places) < np.prod(page.chunked) or not all(all(place) for place in places):
        raise ValueError("samples are missing")


def _mode(page: tifffile.TiffPage) -> tuple[str, tuple[int, ...]]:
    """Mode of a page, and the kinds of the channels behind those of the mode."""
    base = BASES.get(page.photometric, "")
    bits, inks = page.bitspersample, page.tags.valueof(INK_SET, 1)
    if not base or inks != 1 or (page.photometric == YCBCR and page.compression != 7):
        name = "more inks" if inks != 1 else getattr(page.photometric, "name", page.photometric)
        raise PhotoError(f"has colours of kind {name}: convert it to RGB")
    channels = page.samplesperpixel - COLOURS[base]
    narrow = base in ("L", "P") and not channels
    if page.sampleformat != 1 or bits not in ((1, 2, 4, 8, 16) if narrow else (8, 16)):
        kind = {1: "whole", 2: "signed", 3: "floating-point"}.get(page.sampleformat, "other")
        raise PhotoError(f"has samples of {bits} bits, {kind}: convert it to 8 or 16 bit RGB")
    if base == "P" and (channels or bits == 16):
        raise PhotoError("has a palette with more channels or 16 bits: convert it to RGB")
    extra = tuple(map(int, page.extrasamples))[:channels]
    if base == "RGB" and channels == 1:
        extra = extra or (ALPHA,)  # untold: as viewers take it
    extra += (UNSPECIFIED,) * (channels - len(extra))
    if PREMULTIPLIED in extra:
        raise PhotoError("has premultiplied alpha: save it with unassociated alpha")
    if extra[:1] == (ALPHA,) and base in ("L", "RGB"):
        base, extra = base + "A", extra[1:]
    if bits == 16:
        return "I;16" if base == "L" else f"{base};16", extra
    return "1" if (base, bits) == ("L", 1) else base, extra


def _samples(page: tifffile.TiffPage) -> np.ndarray:
    """H W C samples as stored; those of fewer than 8 bits widened, but for indices."""
    found = page.asarray(squeeze=False)  # planes, depth, H, W, C
    planes, depth, height, width, channels = found.shape
    if depth != 1:
        raise PhotoError(f"has a depth of {depth}: export the one to edit as a single PNG")
    found = np.moveaxis(found[:, 0], 0, -2).reshape(height, width, planes * channels)
    bits = page.bitspersample
    if bits < 8 and page.photometric != PALETTE:
        found = found.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
    return np.require(found, np.uint16 if bits == 16 else np.uint8, ["C", "W"])


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    """N 3 uint8 entries."""
    table = page.colormap
    assert table is not None
    # Some writers forget to widen it to 16 bits.
    return np.ascontiguousarray((table >> 8 if table.max() > 255 else table).T.astype(np.uint8))


def _dpi(block: Block) -> tuple[float, float] | None:
    """Pixels an inch, if it says so."""
    tags, order = block.entries, block.order
    if not {X_RESOLUTION, Y_RESOLUTION} <= tags.keys():
        return None
    unit = numbers(order, tags[RESOLUTION_UNIT])[0] if RESOLUTION_UNIT in tags else 2
    scale = {2: 1.0, 3: 2.54}.get(unit)
    values = [tags[tag] for tag in (X_RESOLUTION, Y_RESOLUTION)]
    if scale is None or any(entry.type != 5 or entry.count < 1 for entry in values):
        return None
    x, y = (struct.unpack_from(order + "II", entry.data) for entry in values)
    return (x[0] / x[1] * scale, y[0] / y[1] * scale) if x[0] and x[1] and y[0] and y[1] else None


def _metadata(photo: Photo, order: str, sized: bool) -> dict[int, Entry]:
    """Tags that tell about a photo, besides those of EXIF."""
    tags = {}
    if photo.dpi and not sized:
        for tag, value in zip((X_RESOLUTION, Y_RESOLUTION), photo.dpi, strict=True):
            ratio = Fraction(value).limit_denominator(10_000)
            tags[tag] = Entry(5, 1, struct.pack(order + "II", *ratio.as_integer_ratio()))
        tags[RESOLUTION_UNIT] = _entry(order, "H", 2)
    if photo.icc:
        tags[ICC] = Entry(7, len(photo.icc), photo.icc)
    if photo.xmp:
        tags[XMP] = Entry(1, len(photo.xmp), photo.xmp)
    return tags


def _layout(
    photo: Photo, pixels: np.ndarray, order: str, rows: int, starts: list[int], sizes: list[int]
) -> dict[int, Entry]:
    """Tags that say how the samples lie."""
    height, width = pixels.shape[:2]
    channels = pixels[0, 0].size
    base = photo.mode.partition(";")[0]
    kinds = {"P": PALETTE, "RGB": 2, "RGBA": 2, "CMYK": 5}
    tags = {
        256: _entry(order, "I", width),
        257: _entry(order, "I", height),
        258: _entry(order, "H", *[1 if base == "1" else pixels.itemsize * 8] * channels),
        259: _entry(order, "H", 1),
        262: _entry(order, "H", kinds.get(base, 1)),
        273: _entry(order, "I", *starts),
        277: _entry(order, "H", channels),
        278: _entry(order, "I", rows),
        279: _entry(order, "I", *sizes),
        284: _entry(order, "H", 1),  # the samples of a pixel side by side
    }
    if extra := ((ALPHA,) if photo.has_alpha else ()) + photo.extra:
        tags[338] = _entry(order, "H", *extra)
    if photo.palette is not None:
        table = np.zeros((256, 3), int)
        table[: len(photo.palette)] = photo.palette
        tags[320] = _entry(order, "H", *(table.T.ravel() * 257))
    return tags


def _entry(order: str, kind: str, *values: int) -> Entry:
    """A tag of whole numbers of 2 ("H") or 4 ("I") bytes."""
    return Entry(
        {"H": 3, "I": 4}[kind], len(values), struct.pack(f"{order}{len(values)}{kind}", *values)
    )
