"""`hilo bench fill`: how well masked photographs with a hidden truth are filled.

Every photograph is filled under a mask of each class by every method, from the same noise. OpenCV's
inpainting is the bar that a model must clear. PSNR and LPIPS are taken in the mask alone, against
the truth and against dense: outside it the pictures are the same.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from rich.table import Table

from ..compress import Run, compress
from ..methods import Method
from ..train.autoencoder import to_model
from ..train.lpips import LPIPS
from ..train.masks import random_mask
from .rows import grouped, interval

# The mean mask shares of the three classes of arXiv 2606.13898.
CLASSES = {"small": 0.0638, "medium": 0.1592, "large": 0.3536}
CLASSICAL = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}


@dataclass(frozen=True)
class FillRow:
    """One fill. psnr in dB and lpips, in the mask: against the truth, and against dense."""

    photo: str
    mask_class: str
    mask_share: float
    method: str
    seed: int
    tokens_full: int
    tokens_run: int
    dit_seconds: float
    psnr: float
    lpips: float
    psnr_dense: float
    lpips_dense: float


def square(file: Path, size: int) -> np.ndarray:
    """The middle of a photograph as [size, size, 3] uint8."""
    photo = Image.open(file).convert("RGB")
    scale = size / min(photo.size)
    photo = photo.resize(
        (max(size, round(photo.width * scale)), max(size, round(photo.height * scale))),
        Image.Resampling.LANCZOS,
    )
    left, top = (photo.width - size) // 2, (photo.height - size) // 2
    return np.asarray(photo.crop((left, top, left + size, top + size)))


def bench_fill(
    pipe: DiffusionPipeline,
    files: Sequence[Path],
    methods: Mapping[str, Method],
    perceptual: LPIPS,
    *,
    size: int = 256,
    steps: int = 8,
) -> Iterator[FillRow]:
    """Rows, photo by photo; `methods` must hold "dense", which the others are compared with too.

    The mask and the noise of a photo follow from its name, so that any subset of the photographs
    gives the same rows.
    """
    for file in files:
        truth = square(file, size)
        for mask_class, share in CLASSES.items():
            digest = hashlib.sha256(f"{file.name} {mask_class}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big")
            rng = np.random.default_rng(seed)
            mask = random_mask(rng, (size, size), area=(0.97 * share, 1.03 * share))
            compressed = _compressed(pipe, methods, truth, mask, seed, steps)
            for name, (filled, run) in {**_classical(truth, mask), **compressed}.items():
                yield FillRow(
                    file.name,
                    mask_class,
                    float(mask.mean()),
                    name,
                    seed,
                    run.tokens_full if run else 0,
                    run.tokens_run if run else 0,
                    run.dit_seconds if run else 0.0,
                    *_distances(perceptual, filled, truth, mask),
                    *_distances(perceptual, filled, compressed["dense"][0], mask),
                )


def _classical(truth: np.ndarray, mask: np.ndarray) -> dict[str, tuple[np.ndarray, None]]:
    holes = mask.astype(np.uint8)
    hidden = np.where(mask[..., None], np.uint8(0), truth)
    return {name: (cv2.inpaint(hidden, holes, 3, flag), None) for name, flag in CLASSICAL.items()}


def _compressed(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Method],
    truth: np.ndarray,
    mask: np.ndarray,
    seed: int,
    steps: int,
) -> dict[str, tuple[np.ndarray, Run]]:
    fills = {}
    for name, method in methods.items():
        fast = compress(pipe, method)
        output = fast(
            image=Image.fromarray(truth),
            mask_image=Image.fromarray(mask.astype(np.uint8) * 255),
            height=truth.shape[0],
            width=truth.shape[1],
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
        )
        assert fast.last_run is not None
        fills[name] = (np.asarray(output.images[0]), fast.last_run)
    return fills


@torch.no_grad()
def _distances(
    perceptual: LPIPS, filled: np.ndarray, truth: np.ndarray, mask: np.ndarray
) -> tuple[float, float]:
    """PSNR in dB and LPIPS over the mask alone; outside it the pictures are the same."""
    error = (filled[mask].astype(np.float64) - truth[mask]) ** 2
    psnr = float(10 * np.log10(255**2 / max(error.mean(), 1e-12)))
    pair = to_model(np.stack([filled, truth]))
    weight = torch.from_numpy(mask)[None, None].float()
    lpips = 0.0
    for layer in perceptual.maps(pair[:1], pair[1:]):
        height, width = layer.shape[-2:]
        share = F.adaptive_avg_pool2d(weight, (height, width))
        lpips += float((layer * share).sum() / share.sum())
    return psnr, lpips


def fill_table(rows: Sequence[FillRow]) -> Table:
    """Means over the photographs with their 95 % bootstrap intervals."""
    table = Table("mask", "method", "tokens", "LPIPS", "PSNR", "PSNR to dense")
    for (mask_class, method), group in grouped(rows, "mask_class", "method").items():
        tokens = sum(row.tokens_run for row in group) / len(group)
        figures = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*interval([getattr(row, name) for row in group]))
            for name in ("lpips", "psnr", "psnr_dense")
        ]
        if method == "dense":
            figures[-1] = ""
        table.add_row(str(mask_class), str(method), f"{tokens:.0f}", *figures)
    return table
