"""What is filled: a photograph with its hidden truth, a mask, and the seed of the noise."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .manifest import open_picture
from .masks import random_mask
from .samples import Sample

# The mean mask shares of the three classes of arXiv 2606.13898.
CLASSES = {"small": 0.0638, "medium": 0.1592, "large": 0.3536}
TOKEN = 16  # pixels a side of a token of FLUX's family


@dataclass(frozen=True, eq=False)
class Case:
    """A photograph to be filled under a mask.

    name:  of the photograph
    photo, truth: uint8 [size, size, 3]; one and the same where the photo hides its own truth
    mask:  bool [size, size], True where it is filled
    seed:  of the noise
    first: whether it is the first of the seeds of this photo and mask
    """

    name: str
    mask_class: str
    photo: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    seed: int
    first: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """What a pipeline is given for it, but for the steps and the noise."""
        return {
            "image": Image.fromarray(self.photo),
            "mask_image": Image.fromarray(self.mask.astype(np.uint8) * 255),
            "height": self.photo.shape[0],
            "width": self.photo.shape[1],
        }

    def noise(self) -> torch.Generator:
        """A generator of the noise that every method starts from."""
        return torch.Generator().manual_seed(self.seed)


def cases_of(file: Path | Sample, size: int, seeds: int = 1) -> Iterator[Case]:
    """A photograph under a mask of each class, for each seed; or a sample under its own mask.

    Mask and noise follow from the photo's name, so that any subset of photographs gives the same
    cases, and the first seeds are the same however many there are.
    """
    if isinstance(file, Sample):
        photo, truth, mask = file.square(size)
        # The class that is nearest as a ratio: a share of 10 % is as near to 6.4 % as to 16 %.
        near = min(CLASSES, key=lambda name: abs(np.log(CLASSES[name] / mask.mean())))
        for i in range(seeds):
            yield Case(file.name, near, photo, truth, mask, seed_of(file.name) + i, i == 0)
        return
    truth = square(file, size)
    for mask_class in CLASSES:
        mask, seed = hidden(file.name, mask_class, size)
        for i in range(seeds):
            yield Case(file.name, mask_class, truth, truth, mask, seed + i, i == 0)


def square(file: Path, size: int) -> np.ndarray:
    """The middle of a photograph as [size, size, 3] uint8."""
    photo = open_picture(file, "RGB")
    scale = size / min(photo.size)
    photo = photo.resize(
        (max(size, round(photo.width * scale)), max(size, round(photo.height * scale))),
        Image.Resampling.LANCZOS,
    )
    left, top = (photo.width - size) // 2, (photo.height - size) // 2
    return np.asarray(photo.crop((left, top, left + size, top + size)))


def hidden(name: str, mask_class: str, size: int) -> tuple[np.ndarray, int]:
    """The mask of that class, bool [size, size], and the first seed of a photo of that name."""
    share, seed = CLASSES[mask_class], seed_of(f"{name} {mask_class}")
    rng = np.random.default_rng(seed)
    return random_mask(rng, (size, size), area=(0.97 * share, 1.03 * share)), seed


def seed_of(name: str) -> int:
    """What follows from a name alone, in 32 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
