"""A photo as a value: its stored samples, and an edit blended into them in its own mode.

H, W are the rows and columns a person sees (EXIF rotation applied); C counts stored channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

MAX_PIXELS = 100_000_000
TILE = 512, 4096  # rows, columns worked on at once: bounds the float copies of a large photo

# Colour samples per pixel, alpha not counted.
COLOURS = {"1": 1, "L": 1, "LA": 1, "P": 1, "RGB": 3, "RGBA": 3, "CMYK": 4}
COLOURS |= {"I;16": 1, "LA;16": 1, "RGB;16": 3, "RGBA;16": 3, "CMYK;16": 4}
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}
STORED = {
    orientation: UPRIGHT[{6: 8, 8: 6}.get(orientation, orientation)] for orientation in UPRIGHT
}


class PhotoError(ValueError):
    """A photo, mask or output that cannot be used: one line naming the value and the way out."""


@dataclass(frozen=True, eq=False)
class Photo:
    """One still picture with everything needed to write it back."""

    pixels: np.ndarray  # H W or H W C stored samples, uint8 or uint16 ("1": 0/255, "P": indices)
    mode: str  # a key of COLOURS: Pillow's name, with ";16" for uint16 samples
    format: str  # of the file it came from, such as "JPEG"
    orientation: int = 1  # EXIF orientation, 1 to 8, of the stored file
    icc: bytes | None = None
    exif: bytes | None = None  # starts at the TIFF header
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    palette: np.ndarray | None = None  # N 3 uint8
    transparency: int | tuple[int, ...] | bytes | None = None  # as in Pillow: tRNS of PNG and GIF
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    extra: tuple[int, ...] = ()  # kinds of TIFF's channels behind those of the mode, never edited

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as a person sees them."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def has_alpha(self) -> bool:
        """Whether the mode has a channel of opacity."""
        return self.mode.partition(";")[0].endswith("A")

    def stored(self) -> np.ndarray:
        """The samples in the file's own frame, EXIF rotation undone."""
        return np.array(STORED[self.orientation](self.pixels), order="C")

    def rgb(self) -> Image.Image:
        """The photo as a person sees it, in 8-bit RGB; alpha is dropped, not blended."""
        if self.palette is not None:
            return Image.fromarray(self.palette[self.pixels])
        colours = _narrow(_layers(self.pixels)[..., : COLOURS[self.mode]])
        if self.mode.startswith("CMYK"):
            return Image.frombuffer("CMYK", self.size, colours, "raw", "CMYK", 0, 1).convert("RGB")
        if colours.shape[-1] == 1:
            return Image.fromarray(colours[..., 0]).convert("RGB")
        return Image.fromarray(np.ascontiguousarray(colours))

    def alpha(self) -> np.ndarray | None:
        """H W uint8 opacity, or None where no channel, palette entry or key colour holds one."""
        if self.has_alpha:
            return _narrow(self.pixels[..., COLOURS[self.mode]])
        table = self.palette_alpha()
        if table is not None:
            return table[self.pixels]
        key = self._key()
        if key is None:
            return None
        return np.where((_layers(self.pixels) == key).all(-1), np.uint8(0), np.uint8(255))

    def with_edit(self, rgb: np.ndarray, weight: np.ndarray) -> Photo:
        """Blend an edit into the photo, in the photo's own mode.

        rgb is H W 3 uint8; weight is H W in [0, 1]: 0 keeps the samples bit for bit, 1 takes the
        edit. Alpha never changes: palette entries and key colours that are not opaque stay.
        Raises ValueError if a shape, the dtype or a weight does not fit.
        """
        height, width = self.pixels.shape[:2]
        if rgb.shape != (height, width, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"rgb must be {height} {width} 3 uint8, got {rgb.shape} {rgb.dtype}")
        if weight.shape != (height, width):
            raise ValueError(f"weight must be {height} {width}, got {weight.shape}")
        low, high = float(weight.min()), float(weight.max())
        if not (low >= 0 and high <= 1):  # so written that NaN is caught too
            raise ValueError(f"weight must lie in [0, 1], got {low} to {high}")
        pixels = self.pixels.copy()
        for tile in _tiles(weight):
            pixels[tile] = self._edited(self.pixels[tile], rgb[tile], weight[tile])
        return replace(self, pixels=pixels)

    def _edited(self, before: np.ndarray, rgb: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """One tile of `with_edit`."""
        after = _layers(before).copy()
        colours = after[..., : COLOURS[self.mode]]
        share = weight[..., None].astype(np.float32)
        changed = weight > 0
        if self.palette is not None:
            table = self.palette_alpha()
            opaque = np.full(len(self.palette), True) if table is None else table == 255
            changed &= opaque[before]
            if not changed.any():
                return before
            mixed = _mix(self.palette[before], rgb, share)
            fresh = _nearest(mixed, self.palette, np.flatnonzero(opaque))
        else:
            mixed = _mix(colours, _in_mode(rgb, self.mode), share)
            fresh = np.where(mixed < 128, 0, 255) if self.mode == "1" else np.rint(mixed)
            fresh = fresh.astype(before.dtype)
            key = self._key()
            if key is not None:
                changed &= (colours != key).any(-1)
                # An opaque pixel must not turn transparent by hitting the key colour.
                fresh[(fresh == key).all(-1), -1] ^= 255 if self.mode == "1" else 1
        colours[changed] = fresh[changed]
        return after.reshape(before.shape)

    def _key(self) -> np.ndarray | None:
        """The samples of a colour that is transparent as a whole."""
        if self.palette is not None or self.transparency is None:
            return None
        return np.array(self.transparency) * (255 if self.mode == "1" else 1)

    def palette_alpha(self) -> np.ndarray | None:
        """Opacity of each palette entry, uint8."""
        if self.palette is None or self.transparency is None:
            return None
        table = np.full(len(self.palette), 255, np.uint8)
        if isinstance(self.transparency, bytes):
            known = np.frombuffer(self.transparency, np.uint8)[: len(table)]
            table[: len(known)] = known
        elif isinstance(self.transparency, int):
            table[self.transparency : self.transparency + 1] = 0  # GIF: may lie past the table
        return table


def _layers(pixels: np.ndarray) -> np.ndarray:
    """H W C view of H W or H W C samples."""
    return pixels.reshape(*pixels.shape[:2], -1)


def _narrow(samples: np.ndarray) -> np.ndarray:
    """Samples as uint8: the inverse of widening by 257."""
    return samples if samples.dtype == np.uint8 else (samples >> 8).astype(np.uint8)


def _mix(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """before + share · (after − before), float32."""
    start = before.astype(np.float32)
    return start + share * (after.astype(np.float32) - start)


def _in_mode(rgb: np.ndarray, mode: str) -> np.ndarray:
    """8-bit RGB as the colour samples of a mode, float32: luma for grey, K = 0 for CMYK."""
    values = rgb.astype(np.float32)
    if mode.startswith("CMYK"):
        values = np.concatenate([255 - values, np.zeros_like(values[..., :1])], axis=-1)
    if COLOURS[mode] == 1:
        # Term by term: a product of matrices is rounded by the shape of the tile.
        red, green, blue = (values[..., channel, None] for channel in range(3))
        values = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return values * 257 if mode.endswith("16") else values


def _nearest(colours: np.ndarray, palette: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """H W 1 index of the allowed palette entry closest to each colour."""
    flat = np.rint(colours).astype(np.int64) @ np.array([65536, 256, 1])
    distinct, where = np.unique(flat, return_inverse=True)
    entries = palette[allowed].astype(np.float32)
    found = np.empty(len(distinct), palette.dtype)
    for start in range(0, len(distinct), 65536):
        part = distinct[start : start + 65536]
        wanted = np.stack([part >> 16, part >> 8 & 255, part & 255], axis=1).astype(np.float32)
        distance = (entries**2).sum(1) - 2 * wanted @ entries.T
        found[start : start + 65536] = allowed[distance.argmin(1)]
    return found[where].reshape(*colours.shape[:2], 1)


def _tiles(weight: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Tiles covering the bounding box of the non-zero weights."""
    rows, columns = (np.flatnonzero(weight.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    bottom, right = int(rows[-1]) + 1, int(columns[-1]) + 1
    for top in range(int(rows[0]), bottom, TILE[0]):
        for left in range(int(columns[0]), right, TILE[1]):
            yield (
                slice(top, min(top + TILE[0], bottom)),
                slice(left, min(left + TILE[1], right)),
            )


def padded_palette(entries: bytes, highest: int) -> np.ndarray:
    """N 3 uint8 of a palette's bytes, with black for indices past them up to `highest`."""
    palette = np.frombuffer(entries[:768], np.uint8).reshape(-1, 3)
    return np.pad(palette, ((0, max(0, highest + 1 - len(palette))), (0, 0)))


def check_size(width: int, height: int) -> None:
    """Raise PhotoError for more pixels than are read."""
    if width * height > MAX_PIXELS:
        limit = f"the limit is {MAX_PIXELS / 1e6:g} megapixels: crop or shrink it first"
        raise PhotoError(f"has {width}x{height} pixels; {limit}")


def one_line(error: Exception) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
