"""Photos as files, made without the package under test: samples, metadata and layout are known."""

import io
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

CHANNELS = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}
PNG_KINDS = {"1": 0, "L": 0, "RGB": 2, "P": 3, "LA": 4, "RGBA": 6}
# Starts, then steps, of the seven passes of an interlaced PNG: row, column.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
ADAM7 += ((1, 0, 2, 1),)


@dataclass
class Sample:
    """A photo as the file's bytes, and what a reader shall find in it."""

    data: bytes
    mode: str
    pixels: np.ndarray  # H W or H W C, in the stored frame, widened to 8 bits
    orientation: int = 1
    icc: bytes | None = None
    xmp: bytes | None = None
    exif: bytes | None = None  # with the thumbnail
    secret: bytes = b""  # bytes of a thumbnail, which no output may hold
    extra: tuple[int, ...] = ()
    palette: np.ndarray | None = None
    made_of: str = field(default="")  # how it was made, for a report


def random(*shape: int, high: int = 256, seed: int = 0) -> np.ndarray:
    """Noise: uint8, or uint16 where `high` asks for it."""
    found = np.random.default_rng(seed).integers(0, high, shape)
    return found.astype(np.uint16 if high > 256 else np.uint8)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(
    samples: np.ndarray,
    kind: int,
    depth: int,
    extra: bytes = b"",
    *,
    interlaced: bool = False,
    filters: tuple[int, ...] = (0,),
) -> bytes:
    """A PNG of H W C samples of `depth` bits; rows take the filters (0, 1, 2) by turns."""
    height, width = samples.shape[:2]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(
        _rows(samples[top::down, left::right], depth, filters) for top, left, down, right in passes
    )
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    parts = chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _rows(samples: np.ndarray, depth: int, filters: tuple[int, ...]) -> bytes:
    height, channels = samples.shape[::2]
    if not samples.size:
        return b""
    if depth < 8:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(height, -1), axis=1)
    else:
        packed = samples.astype(">u2" if depth == 16 else "u1").reshape(height, -1).view(np.uint8)
    step, out, above = max(1, channels * depth // 8), [], np.zeros_like(packed[0])
    for row, kind in zip(packed, np.resize(filters, height), strict=True):
        left = np.concatenate([np.zeros(step, np.uint8), row[:-step]])[: len(row)]
        out.append(bytes([kind]) + (row - (0, left, above)[kind]).astype(np.uint8).tobytes())
        above = row
    return b"".join(out)


def jpeg(seed: int = 0, size: tuple[int, int] = (16, 12)) -> bytes:
    """A small JPEG of noise, to be hidden in other files."""
    rng, out = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(out, "JPEG")
    return out.getvalue()


def exif(
    orientation: int = 1,
    order: str = "<",
    *,
    artist: bytes = "José ©".encode(),
    note: bytes = b"note\0\1",
    thumbnail: bytes = b"",
    strips: bool = False,
) -> bytes:
    """An EXIF block with EXIF, GPS and interoperability, as cameras write it.

    The thumbnail is a JPEG, or the uncompressed strip of one.
    """
    body = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8))

    def directory(*entries: tuple[int, int, bytes], following: int = 0) -> bytes:
        """Entries of tag, type and values, to lie at the end of the body."""
        size, rows, values = 2 + 12 * len(entries) + 4, [], b""
        at = len(body) + size
        for tag, kind, data in entries:
            count = len(data) // {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[kind]
            place = data.ljust(4, b"\0")
            if len(data) > 4:
                place = struct.pack(order + "I", at + len(values))
                values += data + bytes(len(data) % 2)
            rows.append(struct.pack(order + "HHI", tag, kind, count) + place)
        head = struct.pack(order + "H", len(rows)) + b"".join(rows)
        return head + struct.pack(order + "I", following) + values

    def short(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}H", *values)

    def long(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}I", *values)

    def first(exif_at: int, gps_at: int, following: int) -> bytes:
        return directory(
            (271, 2, b"Maker\0"),
            (274, 3, short(orientation)),
            (315, 2, artist + b"\0"),
            (34665, 4, long(exif_at)),
            (34853, 4, long(gps_at)),
            following=following,
        )

    places, size = [0, 0, 0], len(first(0, 0, 0))
    after = bytearray()
    start = len(body) + size
    body.extend(bytes(size))
    interoperability = len(body)
    body.extend(directory((1, 2, b"R98\0")))
    places[0] = len(body)
    body.extend(
        directory(
            (36867, 2, b"2020:01:02 03:04:05\0"),
            (37386, 5, long(505, 10)),
            (37500, 7, note),
            (40965, 4, long(interoperability)),
        )
    )
    places[1] = len(body)
    body.extend(directory((1, 2, b"N\0")))
    if thumbnail:
        places[2] = len(body)
        tags = (273, 279) if strips else (513, 514)
        room = len(directory((tags[0], 4, long(0)), (tags[1], 4, long(0))))
        at = len(body) + room
        body.extend(directory((tags[0], 4, long(at)), (tags[1], 4, long(len(thumbnail)))))
        after.extend(thumbnail)
    whole = bytes(body + after)
    del body[8:]
    assert start == 8 + size
    return whole[:8] + first(*places) + whole[8 + size :]


def exif_values(block: bytes) -> dict[str, object]:
    """What Pillow reads in an EXIF block, or in a TIFF file: tags of its directories."""
    tags = Image.Exif()
    tags.load(block)
    wanted = {tag: tags[tag] for tag in (271, 274, 315) if tag in tags}
    found = {"photo": wanted} | {str(tag): dict(tags.get_ifd(tag)) for tag in (34665, 34853, 40965)}
    found["34665"].pop(40965, None)  # where it lies
    return found
