"""Photographs for training: a folder with a manifest, decoded once into memory."""

import csv
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
        ValueError: a manifest without the column `file` or `labels`, or a scale that is no number.
    """
    manifest = folder / "manifest.csv"
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8") as stream:
            rows = csv.DictReader(stream)
            for column in ("file", labels or "file"):
                if column not in (rows.fieldnames or ()):
                    raise ValueError(
                        f"{manifest} has no column {column!r}: name the columns in line 1"
                    )
            entries = [_entry(folder, row, labels) for row in rows]
    elif labels:
        raise ValueError(f"labels are read from a column of {manifest}, which is not there")
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        entries = [Entry(file, "train", False, None) for file in files]
    if not entries:
        raise FileNotFoundError(f"no photographs in {folder}: give a folder of images")
    return entries


def _entry(folder: Path, row: dict[str, str], labels: str) -> Entry:
    silhouette = row.get("mask") or None
    return Entry(
        folder / row["file"],
        row.get("split") or "train",
        float(row.get("scale") or 1) > ENLARGED,
        folder / silhouette if silhouette else None,
        (row[labels] or "") if labels else "",
    )


def decode(entries: Sequence[Entry], size: int) -> list[np.ndarray]:
    """Each photograph as [height, width, 3] uint8, its short side `size` or more."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda entry: _decode_one(entry.file, size), entries))


def _decode_one(file: Path, size: int) -> np.ndarray:
    photo = Image.open(file).convert("RGB")
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
        image = Image.open(entry.silhouette).convert("L").point([0] * 128 + [255] * 128)
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
