"""Photos, masks and patches as the bytes of files, and back.

What cannot be read or held is `Refused`, with the field at fault.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from .. import photo as photo_room
from ..photo import Photo, PhotoError, load_photo, save_photo
from ..region import Region
from .task import Patch, Refused, Task


def read_mask(task: Task, photo: Photo) -> np.ndarray:
    """The task's mask in the photo's upright frame, bool [H, W], True where it is edited."""
    with _as_file("mask", task.mask) as path:
        return photo_room.read_mask(path, photo, mask_from=task.mask_mode).pixels


@contextmanager
def _as_file(name: str, data: bytes) -> Iterator[Path]:
    """The bytes as a file, for readers that take a path; errors name the field, not the path."""
    with tempfile.TemporaryDirectory(prefix="hilo-") as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            yield path
        except PhotoError as error:
            raise Refused(str(error).replace(str(path), name), name) from error


def read_photo(name: str, data: bytes) -> Photo:
    """A photo of a file's bytes; `name` is the field that errors speak of."""
    with _as_file(name, data) as path:
        return load_photo(path)


def with_patch(photo: Photo, patch: Patch) -> Photo:
    """The photo with an earlier edit on it."""
    picture = read_photo("patch", patch.png)
    alpha, rgb = picture.alpha(), np.asarray(picture.rgb())
    height, width = rgb.shape[:2]
    rows = slice(patch.top, patch.top + height)
    columns = slice(patch.left, patch.left + width)
    fits = (
        min(patch.left, patch.top) >= 0
        and rows.stop <= photo.size[1]
        and columns.stop <= photo.size[0]
    )
    if alpha is None or not fits:
        raise Refused("a patch must have alpha and lie inside the photo", "patch")
    return _with_part(photo, rows, columns, rgb, alpha > 0)


def _with_part(
    photo: Photo, rows: slice, columns: slice, rgb: np.ndarray, mask: np.ndarray
) -> Photo:
    """The photo with a part of it replaced where the mask, of that part, says."""
    shape = photo.pixels.shape[:2]
    full, weight = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32)
    full[rows, columns], weight[rows, columns] = rgb, mask
    return photo.with_edit(full, weight)


def pasted(photo: Photo, mask: np.ndarray, region: Region, picture: Image.Image) -> Photo:
    """The photo with a picture of a region in it, where the mask says."""
    size = (region.right - region.left, region.bottom - region.top)
    rgb = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    part = mask[region.rows, region.columns]
    return _with_part(photo, region.rows, region.columns, rgb, part)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is True."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def encode(photo: Photo, mask: np.ndarray, task: Task) -> bytes:
    """The picture in the task's output format."""
    if task.output == "patch":
        return encode_patch(photo, mask)
    if task.output == "jpeg" or (task.output == "webp" and task.quality is not None):
        quality = 95 if task.quality is None else task.quality
        options = {"subsampling": 0} if task.output == "jpeg" else {}
        file = io.BytesIO()
        photo.rgb().save(
            file, task.output.upper(), quality=quality, icc_profile=photo.icc, **options
        )
        return file.getvalue()
    return encode_photo(photo, task.output)


def encode_photo(photo: Photo, output: str) -> bytes:
    """The photo with all its samples and metadata; Refused where the format cannot hold it."""
    with tempfile.TemporaryDirectory(prefix="hilo-") as folder:
        path = Path(folder) / f"photo.{output}"
        try:
            save_photo(photo, path)
        except PhotoError as error:
            raise Refused(str(error).replace(str(path), "the image"), "output_format") from error
        return path.read_bytes()


def encode_patch(photo: Photo, mask: np.ndarray) -> bytes:
    """The mask's bounding box as an RGBA PNG, opaque where the mask is True."""
    left, top, width, height = bounding_box(mask)
    picture = photo.rgb().crop((left, top, left + width, top + height))
    part = mask[top : top + height, left : left + width]
    picture.putalpha(Image.fromarray(part.astype(np.uint8) * 255))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def save(photo: bytes, patches: tuple[Patch, ...], output: str) -> bytes:
    """A photo with the edits that were made of it, in a lossless format with its metadata."""
    edited = read_photo("image", photo)
    for patch in patches:
        edited = with_patch(edited, patch)
    return encode_photo(edited, output)
