"""Photographs for training: a folder with a manifest, decoded once into memory."""

import csv
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SUFFIXES = (".webp", ".jpg", ".jpeg", ".png")
ENLARGED = 1.2  # a photo enlarged beyond this has no detail of its own left to learn


@dataclass(frozen=True)
class Entry:
    """One row of the manifest."""

    file: Path
    split: str
    enlarged: bool
    silhouette: Path | None
    label: str = ""


def read_manifest(folder: Path, labels: str = "") -> list[Entry]:
    """The photographs of `folder`, by its `manifest.csv` or, without one, every image below it.

    The manifest needs a column `file`; `split` (only `train` is trained on; default `train`),
    `scale` (how much the photo was enlarged) and `mask` (a silhouette image) are optional, and
    `labels` names one that says what kind of thing is on the photo.

    Raises:
        FileNotFoundError: no folder, or no photograph in it.
        ValueError: a manifest that is no CSV, without the column `file` or `labels`, with a file
            outside its folder, or a scale that is no number.
    """
    manifest = folder / "manifest.csv"
    if manifest.is_file():
        entries = _entries(manifest, labels)
    elif labels:
        raise ValueError(f"labels are read from a column of {manifest}, which is not there")
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        entries = [Entry(file, "train", False, None) for file in files]
    if not entries:
        raise FileNotFoundError(f"no photographs in {folder}: give a folder of images")
    return entries


def _entries(manifest: Path, labels: str) -> list[Entry]:
    try:
        with manifest.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), reader.fieldnames or ()
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{manifest} is no CSV in UTF-8: {error}") from error
    for column in ("file", labels or "file"):
        if column not in columns:
            raise ValueError(f"{manifest} has no column {column!r}: name the columns in line 1")
    entries = []
    for number, row in enumerate(rows, 2):
        try:
            entries.append(_entry(manifest.parent, row, labels))
        except ValueError as error:
            raise ValueError(f"{manifest}, row {number}: {error}") from error
    return entries


def _entry(folder: Path, row: dict[str, str], labels: str) -> Entry:
    silhouette = row.get("mask") or None
    return Entry(
        within(folder, row["file"]),
        row.get("split") or "train",
        float(row.get("scale") or 1) > ENLARGED,
        within(folder, silhouette) if silhouette else None,
        (row[labels] or "") if labels else "",
    )


def within(folder: Path, name: str | None) -> Path:
    """The file that a list in `folder` names: raises ValueError for none, or one outside it."""
    place = Path(os.path.normpath(name or "."))
    if place.is_absolute() or place.parts[:1] in ((), ("..",)):
        raise ValueError(f"{name!r} is no file inside {folder}")
    return folder / place


def decode(entries: Sequence[Entry], size: int) -> list[np.ndarray]:
    """Each photograph as [height, width, 3] uint8, its short side `size` or more."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda entry: _decode_one(entry.file, size), entries))


def open_picture(file: Path, mode: str | None = None) -> Image.Image:
    """A picture in memory, of that mode or of its own.

    Raises:
        ValueError: it cannot be read, or unpacks to more pixels than any photograph has.
    """
    try:
        with Image.open(file) as picture:
            return picture.convert(mode or picture.mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read ({error}): leave it out") from error


def _decode_one(file: Path, size: int) -> np.ndarray:
    photo = open_picture(file, "RGB")
    short = min(photo.size)
    if short < size:
        scale = size / short
        enlarged = (max(size, round(photo.width * scale)), max(size, round(photo.height * scale)))
        photo = photo.resize(enlarged, Image.Resampling.LANCZOS)
    return np.asarray(photo)


def silhouettes(entries: Sequence[Entry]) -> list[np.ndarray]:
    """The object shapes that come with the photographs, each cropped to its bounding box."""
    shapes = []
    for entry in entries:
        if entry.silhouette is None:
            continue
        image = open_picture(entry.silhouette, "L").point([0] * 128 + [255] * 128)
        if box := image.getbbox():
            shapes.append(np.asarray(image.crop(box)))
    return shapes


def random_crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of `size` pixels from anywhere in the photo, mirrored half the time."""
    height, width = photo.shape[:2]
    top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
    crop = photo[top : top + size, left : left + size]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def to_model(photos: np.ndarray) -> Tensor:
    """What models are given of photographs: [B, H, W, 3] uint8 to [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1
