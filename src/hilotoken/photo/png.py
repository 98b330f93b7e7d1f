"""PNG by its chunks: what they say is carried over as stored, and samples keep their 16 bits.

Source: W3C, Portable Network Graphics (PNG) Specification, third edition.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

from .metadata import find_jpegs, text_without_pictures
from .value import Photo, PhotoError, check_size, padded_palette

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}  # by colour type, at 8 bits
# Chunks carried over as they are: of colour, of the shape of pixels, of text.
COLOUR = (b"cHRM", b"cICP", b"gAMA", b"mDCV", b"cLLI", b"sRGB")
SRGB = {b"gAMA": struct.pack(">I", 45455)}
SRGB[b"cHRM"] = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
TEXT = (b"tEXt", b"zTXt", b"iTXt")
XMP_KEY = b"XML:com.adobe.xmp"
INCH = 0.0254  # metres
LARGEST = 1 << 26  # bytes of a profile or text, unpacked


def read(file: BinaryIO) -> Photo:
    """The photo of a PNG in its stored frame.

    Raises PhotoError for what is refused, and whatever the decoders raise for a damaged file.
    """
    whole = file.read()
    width, height, depth, colour_type = struct.unpack_from(">IIBB", whole, 16)  # of the first chunk
    check_size(width, height)
    found: dict[bytes, list[bytes]] = {}
    for name, data in _chunks(whole):
        found.setdefault(name, []).append(data)
    if b"acTL" in found and (frames := struct.unpack_from(">I", found[b"acTL"][0])[0]) > 1:
        raise PhotoError(f"has {frames} frames: export the one to edit as a single PNG")
    mode = MODES[colour_type]
    if depth == 16:
        mode = "I;16" if mode == "L" else f"{mode};16"
    elif (mode, depth) == ("L", 1):
        mode = "1"
    pixels = _samples(found, mode)
    keyed = b"tRNS" in found and colour_type < 4  # the others have a channel of opacity
    return Photo(
        pixels=pixels,
        mode=mode,
        format="PNG",
        palette=padded_palette(found[b"PLTE"][0], int(pixels.max())) if mode == "P" else None,
        transparency=_key(found[b"tRNS"][0], mode, depth) if keyed else None,
        **_metadata(found),
    )


def write(photo: Photo, pixels: np.ndarray, file: BinaryIO) -> None:
    """Write a photo whose stored samples are `pixels`."""
    height, width = pixels.shape[:2]
    depth = {"1": 1}.get(photo.mode, pixels.itemsize * 8)
    kinds = {mode: kind for kind, mode in MODES.items()} | {"1": 0, "I": 0}
    kind = kinds[photo.mode.partition(";")[0]]
    file.write(SIGNATURE)
    file.write(_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)))
    for name, data in _ancillary(photo):
        file.write(_chunk(name, data))
    # Rows of single bits are rows of bytes to the encoder. It finds nothing to save in the low
    # bytes of 16-bit samples, however long it tries, nor by predicting an index from others; and
    # photographs come as small by the row above as by the best of all filters, in half the time.
    rows = np.packbits(pixels > 0, axis=1) if depth == 1 else pixels
    level = 1 if depth == 16 else 5
    filters = imagecodecs.PNG.FILTER.NO if photo.mode in ("1", "P") else imagecodecs.PNG.FILTER.UP
    for name, data in _chunks(imagecodecs.png_encode(rows, level=level, filter=filters)):
        if name == b"IDAT":
            file.write(_chunk(name, data))
    file.write(_chunk(b"IEND", b""))


def own_colours(photo: Photo) -> str | None:
    """The chunk that tells of a colour space other than sRGB, which a profile would overrule."""
    if photo.icc or any(name == b"sRGB" for name, _ in photo.png_chunks):
        return None
    for name, data in photo.png_chunks:
        if name in SRGB:
            found, usual = (np.frombuffer(part, ">u4") for part in (data, SRGB[name]))
            if found.size == usual.size and np.allclose(found, usual, rtol=0.01):
                continue
        if name in COLOUR:
            return name.decode()
    return None


def _chunks(data: bytes | bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents. Raises ValueError or struct.error where one is damaged or missing."""
    at = len(SIGNATURE)
    name = b""
    while name != b"IEND":
        size, name = struct.unpack_from(">I4s", data, at)
        content = bytes(data[at + 8 : at + 8 + size])
        (check,) = struct.unpack_from(">I", data, at + 8 + size)
        if check != zlib.crc32(content, zlib.crc32(name)):
            raise ValueError(f"wrong checksum of {name.decode('latin-1')}")
        yield name, content
        at += 12 + size


def _chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", check)


def _samples(found: dict[bytes, list[bytes]], mode: str) -> np.ndarray:
    """H W or H W C samples as stored; those of fewer than 8 bits widened, but for indices."""
    header = bytearray(found[b"IHDR"][0])
    if mode == "P":
        header[9] = 0  # read as grey, which the decoder does not turn into colours
    chunks = [_chunk(b"IHDR", bytes(header)), *(_chunk(b"IDAT", data) for data in found[b"IDAT"])]
    pixels = imagecodecs.png_decode(b"".join([SIGNATURE, *chunks, _chunk(b"IEND", b"")]))
    return pixels // (255 // (2 ** header[8] - 1)) if mode == "P" else pixels


def _key(data: bytes, mode: str, depth: int) -> bytes | int | tuple[int, ...]:
    """What is transparent: opacity by index, or a colour."""
    if mode == "P":
        return data
    if mode.startswith("RGB"):
        return struct.unpack(">3H", data)
    (value,) = struct.unpack(">H", data)
    # Narrow samples have been widened; those of one bit are told by 0 and 1.
    return value * 255 // (2**depth - 1) if 1 < depth < 8 else value


def _metadata(found: dict[bytes, list[bytes]]) -> dict[str, Any]:
    """Fields of a Photo for what its chunks tell about it."""
    chunks = [(name, data) for name in COLOUR for data in found.get(name, [])]
    fields: dict[str, Any] = {}
    for name in TEXT:
        for data in found.get(name, []):
            key, text = _text(name, data)
            if key == XMP_KEY:
                fields["xmp"] = text
                continue
            if key.startswith(b"Raw profile type "):  # ImageMagick's, in hexadecimal
                text = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
            if text.startswith(b"Exif\0\0"):
                fields["exif"] = text[6:]
            elif text == text_without_pictures(text) and not any(find_jpegs(text)):
                chunks.append((name, data))
    for data in found.get(b"pHYs", []):
        *counts, unit = struct.unpack(">IIB", data)
        if unit == 1:
            fields["dpi"] = tuple(count * INCH for count in counts)
        else:
            chunks.append((b"pHYs", data))
    for data in found.get(b"eXIf", []):
        fields["exif"] = data.removeprefix(b"Exif\0\0")
    for data in found.get(b"iCCP", []):
        fields["icc"] = _inflate(data.partition(b"\0")[2][1:])
    return fields | {"png_chunks": tuple(chunks)}


def _text(name: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Key and text of a chunk of text, unpacked."""
    key, _, rest = data.partition(b"\0")
    if name == b"tEXt":
        return key, rest
    if name == b"zTXt":
        return key, _inflate(rest[1:])
    packed, text = rest[0], rest[2:].split(b"\0", 2)[2]
    return key, _inflate(text) if packed else text


def _inflate(data: bytes) -> bytes:
    packer = zlib.decompressobj()
    found = packer.decompress(data, LARGEST)
    if packer.unconsumed_tail:
        raise PhotoError("holds a profile or text of more than 64 MB: save it without")
    if not packer.eof:
        raise ValueError("a profile or text that ends early")
    return found


def _ancillary(photo: Photo) -> Iterator[tuple[bytes, bytes]]:
    """Chunks that tell about the photo, in the order that PNG demands."""
    for name, data in photo.png_chunks:
        if name in COLOUR and not (photo.icc and name == b"sRGB"):  # PNG allows one of the two
            yield name, data
    if photo.icc:
        yield b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc)
    if photo.palette is not None:
        yield b"PLTE", photo.palette.tobytes()
    if photo.transparency is not None:
        yield b"tRNS", _transparency(photo)
    if photo.dpi:
        yield b"pHYs", struct.pack(">IIB", *(round(value / INCH) for value in photo.dpi), 1)
    if photo.exif:
        yield b"eXIf", photo.exif
    if photo.xmp:
        yield b"iTXt", XMP_KEY + bytes(5) + photo.xmp
    yield from ((name, data) for name, data in photo.png_chunks if name not in COLOUR)


def _transparency(photo: Photo) -> bytes:
    table = photo.palette_alpha()
    if table is not None:
        return table.tobytes()
    return np.atleast_1d(np.array(photo.transparency)).astype(">u2").tobytes()
