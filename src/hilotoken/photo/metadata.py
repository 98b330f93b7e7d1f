"""EXIF and XMP, carried over as they are stored but for the pictures in them.

An EXIF block is a small TIFF file: directory 0 holds the tags of the photo, and points to the EXIF
and GPS directories; directory 1 holds a thumbnail. Values are bytes here and are not interpreted:
so nothing is lost, be it a maker's note or a name that is not ASCII.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, XMP, ICC = 274, 282, 283, 296, 700, 34675
# Directories that a tag of another points to: EXIF with interoperability in it, and GPS.
NESTED: dict[int, Any] = {34665: {40965: {}}, 34853: {}}
# Bytes of a value by the type of its entry; 16 to 18 are BigTIFF's.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}
JPEG, STRIPS = (513, 514), (273, 279)  # tags that say where a thumbnail lies, and its bytes
SCAN = b"\xff\xda"  # the marker of a JPEG behind which its samples lie

# A whole value that is base64 of a JPEG, PNG, TIFF, GIF, WebP, HEIC or AVIF.
_PICTURE = re.compile(
    rb"(?<=[>\"',])(?:\s|&#\w+;)*"
    rb"(?:/9j/|iVBORw0KGgo|SUkqA|TU0AK|R0lGOD|UklGR|AAAA[\w+/]GZ0eX)"
    rb"(?:[\w+/=\s]|&#\w+;)*"
)


@dataclass(frozen=True)
class Entry:
    """A tag of a directory: values as stored, or the directory that it points to."""

    type: int
    count: int
    data: bytes
    at: int = 0  # where data lies in the block
    directory: dict[int, Entry] | None = None


@dataclass(frozen=True)
class Block:
    """The directories of an EXIF block, or of a TIFF file."""

    order: str  # "<" or ">", as in struct
    entries: dict[int, Entry]  # of directory 0
    at: int  # where directory 0 ends, and its link to directory 1 lies
    link: int  # where directory 1 lies, or 0
    faults: tuple[str, ...]  # what could not be read
    big: bool  # numbers of 8 bytes where TIFF has 4: a BigTIFF, never EXIF


def parse(data: bytes | bytearray | mmap.mmap) -> Block:
    """Directory 0 with EXIF and GPS. Raises ValueError for data without a directory 0."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        raise ValueError("no TIFF header")
    reader = _Reader(data, order)
    version = reader.number(2, 2)
    if version not in (42, 43):
        raise ValueError(f"version {version} of TIFF")
    reader.big = version == 43
    start = reader.number(8, 8) if reader.big else reader.number(4, 4)
    entries, end = reader.directory(start, NESTED)
    try:
        link = reader.number(end, reader.wide)
    except ValueError:  # some writers leave it out
        link = 0
    return Block(order, entries, end, link, tuple(reader.faults), reader.big)


class _Reader:
    """Reads directories; what lies outside the data is a fault of its tag alone."""

    def __init__(self, data: bytes | bytearray | mmap.mmap, order: str) -> None:
        self.data, self.order = data, order
        self.big = False  # BigTIFF: numbers of 8 bytes where TIFF has 4
        self.faults: list[str] = []
        self.left = len(data)  # values do not overlap: together they are no longer than the data

    @property
    def wide(self) -> int:
        return 8 if self.big else 4

    def take(self, at: int, size: int) -> bytes:
        found = bytes(self.data[at : at + size])
        if len(found) < size:
            raise ValueError(f"{size} bytes at {at} lie past the end")
        return found

    def number(self, at: int, size: int) -> int:
        return struct.unpack(self.order + {2: "H", 4: "I", 8: "Q"}[size], self.take(at, size))[0]

    def directory(self, at: int, nested: dict[int, Any]) -> tuple[dict[int, Entry], int]:
        """Entries, and where they end."""
        head, step = (8, 20) if self.big else (2, 12)
        count = self.number(at, head)
        end = at + head + count * step
        if end > len(self.data):
            raise ValueError(f"{count} tags at {at} lie past the end")
        entries = {}
        for place in range(at + head, end, step):
            tag = self.number(place, 2)
            try:
                entries[tag] = self.entry(place, nested.get(tag))
            except ValueError as error:
                self.faults.append(f"tag {tag}: {error}")
        return entries, end

    def entry(self, place: int, nested: dict[int, Any] | None) -> Entry:
        kind, count = self.number(place + 2, 2), self.number(place + 4, self.wide)
        if kind not in SIZES:
            raise ValueError(f"type {kind} is unknown")
        size, inline = count * SIZES[kind], place + 4 + self.wide
        at = inline if size <= self.wide else self.number(inline, self.wide)
        self.left -= size
        if self.left < 0:
            raise ValueError(f"{size} bytes at {at} overlap others")
        found = Entry(kind, count, self.take(at, size), at)
        if nested is None or not count:
            return found
        place = numbers(self.order, found)[0]
        return replace(found, directory=self.directory(place, nested)[0])


def build(order: str, entries: dict[int, Entry]) -> bytes:
    """An EXIF block of these entries: the inverse of `parse`."""
    body = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    struct.pack_into(order + "I", body, 4, append(body, order, entries))
    return bytes(body)


def append(body: bytearray, order: str, entries: dict[int, Entry]) -> int:
    """Append a directory and its values to a block; returns where the directory lies."""
    rows = [_row(body, order, tag, entry) for tag, entry in sorted(entries.items())]
    at = _even(body)
    body.extend(struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4))
    return at


def _row(body: bytearray, order: str, tag: int, entry: Entry) -> bytes:
    kind, count, data = entry.type, entry.count, entry.data
    if entry.directory is not None:
        kind, count = 4, 1
        data = struct.pack(order + "I", append(body, order, entry.directory))
    if len(data) > 4:
        at = entry.at
        if body[at : at + len(data)] != data:  # of another block
            at = _even(body)
            body.extend(data)
        data = struct.pack(order + "I", at)
    return struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")


def _even(body: bytearray) -> int:
    """Pad a block to where a value may start."""
    body.extend(bytes(len(body) % 2))
    return len(body)


def numbers(order: str, entry: Entry) -> list[int]:
    """Whole numbers of an entry. Raises ValueError for one of another kind."""
    sizes = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8", 18: "u8"}
    if entry.type not in sizes:
        raise ValueError(f"type {entry.type} is no whole number")
    return np.frombuffer(entry.data, order + sizes[entry.type]).tolist()


def orientation(exif: bytes | None) -> int:
    """EXIF orientation, 1 to 8; 1 where EXIF cannot be parsed, as viewers take it."""
    try:
        block = parse(exif or b"")
        value = numbers(block.order, block.entries[ORIENTATION])[0]
    except (ValueError, KeyError, IndexError):
        return 1
    return value if 1 <= value <= 8 else 1


def upright(exif: bytes) -> bytes:
    """EXIF that says orientation 1, for samples that a decoder has turned already."""
    if orientation(exif) == 1:
        return exif
    block, body = parse(exif), bytearray(exif)
    entry = block.entries[ORIENTATION]
    size = SIZES[entry.type]
    body[entry.at : entry.at + size] = np.array(1, f"{block.order}u{size}").tobytes()
    return bytes(body)


def without_pictures(exif: bytes) -> bytes:
    """EXIF without its thumbnail, and without the previews in makers' notes.

    They show the photo as it was before an edit. All else stays where it is, since makers' notes
    point to places in the whole block.
    """
    with contextlib.suppress(ValueError):  # no directories: a JPEG is found all the same
        exif = _without_thumbnail(exif)
    body = bytearray(exif)
    for start, end in find_jpegs(exif):
        body[start:end] = bytes(end - start)
    return bytes(body)


def _without_thumbnail(exif: bytes) -> bytes:
    """EXIF without directory 1. Raises ValueError where there are no directories."""
    block = parse(exif)
    if block.big:
        raise ValueError("BigTIFF")
    if not block.link:
        return exif
    body = bytearray(exif)
    body[block.at : block.at + 4] = bytes(4)
    spans = [(start, min(end, len(body))) for start, end in _thumbnail(exif, block)]
    for start, end in spans:
        body[start:end] = bytes(max(0, end - start))
    start, end = max(spans, key=lambda span: span[1], default=(0, 0))
    if end == len(body):
        del body[start:]
    try:
        if parse(body).entries == block.entries:
            return bytes(body)
    except ValueError:
        pass
    return build(block.order, block.entries)  # a thumbnail said to lie among the tags


def _thumbnail(exif: bytes, block: Block) -> Iterator[tuple[int, int]]:
    """Where directory 1, those linked to it and their pictures lie: starts and ends."""
    reader, link, seen = _Reader(exif, block.order), block.link, set()
    while link and link not in seen:
        seen.add(link)
        try:
            entries, end = reader.directory(link, {})
        except ValueError:
            return
        yield link, end + 4
        for starts, sizes in (JPEG, STRIPS):
            if starts in entries and sizes in entries:
                places = (numbers(block.order, entries[tag]) for tag in (starts, sizes))
                for start, size in zip(*places, strict=False):
                    reader.left -= size
                    if reader.left < 0:  # made-up sizes
                        return
                    yield start, start + size
        link = int.from_bytes(exif[end : end + 4], "little" if block.order == "<" else "big")


def find_jpegs(data: bytes) -> Iterator[tuple[int, int]]:
    """Where JPEG streams lie: starts and ends."""
    end = 0
    dead: set[int] = set()  # places from where the segments lead to no scan: looked at once
    while (start := data.find(b"\xff\xd8\xff", end)) >= 0:
        end, path = start + 2, []
        while end not in dead and data[end : end + 1] == b"\xff" and data[end : end + 2] != SCAN:
            path.append(end)
            end += 2 + int.from_bytes(data[end + 2 : end + 4])
        if data[end : end + 2] != SCAN:  # three bytes met by chance
            dead.update(path)
            end = start + 2
            continue
        stop = data.find(b"\xff\xd9", end)
        end = len(data) if stop < 0 else stop + 2
        yield start, end


def text_without_pictures(text: bytes) -> bytes:
    """Text, XMP above all, in which a value that is a picture in base64 becomes an empty one."""
    return _PICTURE.sub(b"", text)
