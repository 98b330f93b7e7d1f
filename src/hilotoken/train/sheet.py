"""A sheet of fills by a pipeline in training: photo under its mask, dense, HiLo, the truth."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..compress import compress
from ..data.masks import random_mask
from ..methods import Dense, HiLo
from ..methods.udit import phases_of
from ..model import load_model
from ..picture import sheet
from .latent_cache import SIZE

AREAS = (0.0638, 0.1592, 0.3536)  # the mean mask shares of the paper's three classes


def sample_sheet(pipeline: Path, photos: list[np.ndarray], path: Path, steps: int = 8) -> None:
    """Fill each photo under a mask of each class in turn, and write the sheet."""
    pipe = load_model(pipeline)
    pipe.set_progress_bar_config(disable=True)
    rows = [_row(pipe, photo[:SIZE, :SIZE], i, steps) for i, photo in enumerate(photos)]
    result = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for i, row in enumerate(rows):
        result.paste(row, (0, i * row.height))
    result.save(path)


def _row(pipe: Any, photo: np.ndarray, index: int, steps: int) -> Image.Image:
    area = AREAS[index % len(AREAS)]
    rng = np.random.default_rng((4, index))
    mask = random_mask(rng, photo.shape[:2], area=(0.95 * area, 1.05 * area))
    truth, painted = Image.fromarray(photo), Image.fromarray(mask.astype(np.uint8) * 255)
    hidden = Image.fromarray(np.where(mask[..., None], np.uint8(127), photo))
    pictures = [("photo", hidden)]
    hilo = {} if phases_of(pipe.transformer) > 1 else {"HiLo": HiLo(bucket=16)}
    for name, method in {"dense": Dense(), **hilo}.items():
        fast = compress(pipe, method)
        generator = torch.Generator().manual_seed(index)
        output = fast(image=truth, mask_image=painted, height=SIZE, width=SIZE,
                      num_inference_steps=steps, generator=generator)  # fmt: skip
        assert fast.last_run is not None
        pictures.append((f"{name}: {fast.last_run.tokens_run} tokens", output.images[0]))
    return sheet([*pictures, ("truth", truth)], height=SIZE)
