"""Photos and masks on disk: read every sample, change some, write the rest back bit for bit.

H, W are the rows and columns a person sees (EXIF rotation applied); C counts stored channels.
"""

from __future__ import annotations

import os
import secrets
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, TiffTags, UnidentifiedImageError

MAX_PIXELS = 100_000_000
TILE = 512, 4096  # rows, columns worked on at once: bounds the float copies of a large photo

# Colour samples per pixel, alpha not counted.
COLOURS = {"1": 1, "L": 1, "LA": 1, "P": 1, "RGB": 3, "RGBA": 3, "CMYK": 4}
COLOURS |= {"I;16": 1, "LA;16": 1, "RGB;16": 3, "RGBA;16": 3}

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

# Formats whose samples Pillow and OpenCV hand over unchanged (AVIF or PPM may lose bit depth).
READABLE = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
PNG_TYPES = {"I;16": 0, "RGB;16": 2, "LA;16": 4, "RGBA;16": 6}
# PNG chunks carried over as they are: colour space and text.
PNG_KEPT = (b"cHRM", b"cICP", b"gAMA", b"sRGB", b"tEXt", b"zTXt", b"iTXt")
PNG_XMP = b"XML:com.adobe.xmp\0"
# TIFF tags that are not EXIF: the layout of the samples, what has a field of its own (XMP, ICC),
# and further copies of the unedited picture (Photoshop layers, sub-images).
TIFF_LAYOUT = {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 317, 320, *range(322, 326)}
TIFF_LAYOUT |= {330, 338, 339, 347, *range(512, 522), *range(529, 533), 700, 34377, 34675, 37724}
ORIENTATION, RESOLUTION, EXIF_IFD, GPS_IFD, INTEROP_IFD = 274, 282, 34665, 34853, 40965


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

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as a person sees them."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def stored(self) -> np.ndarray:
        """The samples in the file's own frame, EXIF rotation undone."""
        return np.ascontiguousarray(STORED[self.orientation](self.pixels))

    def rgb(self) -> Image.Image:
        """The photo as a person sees it, in 8-bit RGB; alpha is dropped, not blended."""
        if self.palette is not None:
            return Image.fromarray(self.palette[self.pixels])
        colours = _narrow(_layers(self.pixels)[..., : COLOURS[self.mode]])
        if self.mode == "CMYK":
            return Image.frombuffer("CMYK", self.size, colours, "raw", "CMYK", 0, 1).convert("RGB")
        if colours.shape[-1] == 1:
            return Image.fromarray(colours[..., 0]).convert("RGB")
        return Image.fromarray(np.ascontiguousarray(colours))

    def alpha(self) -> np.ndarray | None:
        """H W uint8 opacity, or None where neither a channel nor the palette holds one."""
        if self.mode.partition(";")[0].endswith("A"):
            return _narrow(self.pixels[..., -1])
        table = self._palette_alpha()
        return None if table is None else table[self.pixels]

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
            table = self._palette_alpha()
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
            if self.transparency is not None:
                key = np.array(self.transparency) * (255 if self.mode == "1" else 1)
                changed &= (colours != key).any(-1)
                # An opaque pixel must not turn transparent by hitting the key colour.
                fresh[(fresh == key).all(-1), -1] ^= 255 if self.mode == "1" else 1
        colours[changed] = fresh[changed]
        return after.reshape(before.shape)

    def _palette_alpha(self) -> np.ndarray | None:
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
    if mode == "CMYK":
        return np.concatenate([255 - values, np.zeros_like(values[..., :1])], axis=-1)
    if COLOURS[mode] == 1:
        values = values @ np.array([[0.299], [0.587], [0.114]], np.float32)
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
        raise PhotoError(f"{path}: {_line(error)}; {limit}") from None
    except UnidentifiedImageError:
        known = ", ".join(READABLE)
        raise PhotoError(f"{path} is not a picture read here ({known}): convert to PNG") from None
    except Exception as error:  # decoders raise anything on damage: struct.error, IndexError, ...
        if isinstance(error, OSError) and error.strerror:  # the system's: no such file, ...
            raise PhotoError(f"{path}: {error.strerror}: name an image file") from None
        raise PhotoError(
            f"{path} is damaged or cut short: export it again ({_line(error)})"
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
        raise PhotoError(f"{path} cannot be written: {_line(error)}") from error
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
        value = _exif_tags(exif).get(ORIENTATION)
    except Exception:  # viewers ignore EXIF that cannot be parsed; its bytes are still carried over
        return 1
    return value if value in UPRIGHT else 1


def _exif_tags(exif: bytes | None) -> Image.Exif:
    tags = Image.Exif()
    tags.load(exif or b"")
    return tags


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
    exif = _exif_tags(photo.exif)
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
