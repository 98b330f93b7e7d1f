"""Write a photo in its stored frame; a format that cannot hold it is refused beforehand."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from . import png, tiff
from .value import COLOURS, Photo, PhotoError, one_line

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open: it needs no locks
    fcntl = None


@dataclass(frozen=True)
class Format:
    """What an output format can hold."""

    name: str  # Pillow's
    modes: frozenset[str]
    lossless: bool = True
    side: int = 1 << 30  # longest side in pixels


PNG = Format("PNG", frozenset(COLOURS) - {"CMYK", "CMYK;16"})
TIFF = Format("TIFF", frozenset(COLOURS))
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
    try:
        target = Path(os.path.realpath(path))
        if path.is_dir():
            raise PhotoError(f"{path} is a directory: name a file in it")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise PhotoError(f"{path} is not a regular file: name another")
    except OSError as error:  # a loop of links, a name too long, ...
        raise PhotoError(f"{path}: {error.strerror}: name another file") from None
    folder = target.parent
    if not folder.is_dir():
        raise PhotoError(f"{path}: {folder} is not a directory: create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PhotoError(f"{path}: {folder} is not writable: write elsewhere")


def save_photo(photo: Photo, path: str | os.PathLike[str]) -> None:
    """Write the photo in its stored frame; an existing file is replaced only by a finished one.

    What a killed write has left in the folder is removed. Text of a PNG goes with PNG alone.
    """
    path = Path(path)
    check_output(photo, path)
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    _sweep(target.parent)
    try:
        with _replacing(target) as file:
            _write(photo, _format(path), file)
    except Exception as error:  # encoders raise anything: OSError, ValueError, struct.error, ...
        raise PhotoError(f"{path} cannot be written: {one_line(error)}") from error


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file, which takes the place of another once it is whole."""
    file = _create(target.parent)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl:  # while it is locked: no other write shall take it for left behind
                os.replace(file.name, target)
        if not fcntl:
            os.replace(file.name, target)
    finally:
        Path(file.name).unlink(missing_ok=True)


def _create(folder: Path) -> BinaryIO:
    """A new file, locked as long as it is open."""
    while True:
        file = open(folder / f".hilo-{secrets.token_hex(8)}.tmp", "xb")  # noqa: SIM115
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):
            return file
        file.close()  # swept before it was locked


def _sweep(folder: Path) -> None:
    """Remove what killed writes have left: a living one has its file locked."""
    for left in folder.glob(".hilo-*.tmp"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


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
    if photo.extra and output is not TIFF:
        return "channels besides colours and alpha"
    if output is BMP and (photo.icc or photo.exif or photo.xmp):
        return f"the photo's {'ICC profile' if photo.icc else 'EXIF' if photo.exif else 'XMP'}"
    if output is not PNG and (name := png.own_colours(photo)):
        return f"the colour space that {name} tells: convert it to sRGB, or"
    # libwebp leaves such a channel out: the file would come back as RGB.
    if output is WEBP and photo.mode == "RGBA" and photo.pixels[..., 3].min() == 255:
        return "an alpha channel that is opaque everywhere"
    try:  # now, not after the edit
        _write(replace(photo, pixels=photo.pixels[:1, :1]), output, io.BytesIO())
    except Exception as error:
        return f"what the photo tells about itself ({one_line(error)})"
    return None


def _write(photo: Photo, output: Format, file: BinaryIO) -> None:
    pixels = photo.stored()
    if output in (PNG, TIFF):
        (png if output is PNG else tiff).write(photo, pixels, file)
        return
    mode = "L" if photo.mode == "1" else photo.mode
    image = Image.frombuffer(mode, (pixels.shape[1], pixels.shape[0]), pixels, "raw", mode, 0, 1)
    if photo.mode == "1":
        image = image.convert("1", dither=Image.Dither.NONE)
    options: dict[str, Any] = {"icc_profile": photo.icc, "exif": photo.exif or b""}
    if photo.dpi:
        options["dpi"] = photo.dpi
    if output is WEBP:  # exact: keep the colours under transparent pixels
        options |= {"lossless": True, "exact": True, "xmp": photo.xmp or b""}
        # The encoder takes some 37 bytes a pixel, 24 with method 0, for a larger file.
        options["method"] = 4 if pixels.size < 150_000_000 else 0
    elif output is JPEG:
        options |= {"quality": 95, "subsampling": 0, "xmp": photo.xmp}
        options["exif"] = b"Exif\0\0" + photo.exif if photo.exif else b""
    image.save(file, output.name, **options)
