"""What a file says of itself in its first bytes: checked before anything is decoded.

Pixels are decoded in a worker alone; here headers are read, so that a picture too large, or of a
kind not taken, is refused at once and for nothing.
"""

import io
import warnings
from dataclasses import dataclass

from PIL import Image

from .errors import ApiError

KINDS = "PNG, JPEG or WebP"


@dataclass(frozen=True)
class Header:
    """Format, stored width and height, and whether there is an alpha channel."""

    format: str
    width: int
    height: int
    alpha: bool


def read_header(data: bytes, param: str) -> Header:
    """The header of a PNG, JPEG or WebP; ApiError names the field where it is none."""
    try:
        found = _webp(data) if data[8:12] == b"WEBP" else _by_pillow(data)
    except Image.DecompressionBombError:
        raise ApiError(413, f"{param} claims far too many pixels", param=param) from None
    except Exception as error:  # on damage, parsers raise anything
        raise ApiError(
            400, f"{param} is not a picture read here ({KINDS}), or damaged", param=param
        ) from error
    if found.width < 1 or found.height < 1:
        raise ApiError(400, f"{param} has no pixels", param=param)
    return found


def _by_pillow(data: bytes) -> Header:
    """PNG and JPEG, of which opening reads no pixels and allocates none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `check_pixels` is told
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            alpha = image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info
            return Header(str(image.format), *image.size, alpha)


def _webp(data: bytes) -> Header:
    """WebP container specification, RFC 9649; opening one by Pillow would allocate its canvas."""
    if data[:4] != b"RIFF":
        raise ValueError("no RIFF")
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
        return Header("WEBP", width, height, bool(body[0] & 0x10))
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return Header("WEBP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1))
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        return Header("WEBP", width, height, False)
    raise ValueError("no WebP")


def check_upload(data: bytes, param: str, max_bytes: int, max_pixels: int) -> Header:
    """The header of an upload that is within the limits; ApiError 400 or 413 otherwise."""
    if not data:
        raise ApiError(400, f"{param} is empty: send a picture ({KINDS})", param=param)
    if len(data) > max_bytes:
        raise ApiError(413, f"{param} has {len(data)} bytes, the limit is {max_bytes}", param=param)
    header = read_header(data, param)
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise ApiError(
            413,
            f"{param} has {header.width}x{header.height} pixels, the limit is "
            f"{max_pixels / 1e6:g} megapixels: shrink it first",
            param=param,
        )
    return header


def check_mask(mask: Header, image: Header, mode: str) -> None:
    """ApiError where the headers alone show that a mask does not fit its image."""
    if mode == "alpha" and not mask.alpha:
        raise ApiError(
            400,
            "the mask has no alpha channel: make the pixels to be edited transparent, or send "
            "mask_mode=white for a mask that is white where the image is to be edited",
            param="mask",
        )
    # Swapped sides: a photo that its EXIF turns, which the worker looks at.
    if sorted((mask.width, mask.height)) != sorted((image.width, image.height)):
        raise ApiError(
            400,
            f"the mask is {mask.width}x{mask.height} but the image {image.width}x{image.height}: "
            "resize the mask",
            param="mask",
        )
