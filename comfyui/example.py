"""A photo and its mask (CC0, from the desktop Budgie's wallpapers; the mask is drawn for it)."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).parent / "example"


def load() -> tuple[Tensor, Tensor]:
    """IMAGE [1, 512, 512, 3] in [0, 1] and MASK [1, 512, 512] of 0 and 1."""
    photo = np.asarray(Image.open(FOLDER / "photo.jpg").convert("RGB"), np.float32) / 255
    mask = np.asarray(Image.open(FOLDER / "mask.png").convert("L")) >= 128
    return torch.from_numpy(photo)[None], torch.from_numpy(mask.astype(np.float32))[None]
