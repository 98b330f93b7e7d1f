"""`hilo bench fill`: how well masked photographs with a hidden truth are filled.

Every photograph is filled under a mask of each class by every method, from the same noise. OpenCV's
inpainting is the bar that a model must clear. PSNR and LPIPS are taken of the raw fill, in the mask
alone, against the truth and against dense. The seam is taken of what `hilo edit` makes of it:
colours led to the photo's, and the photo's own pixels outside the mask.
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

from ..composite import match_border
from ..compress import compress
from ..methods import Method
from ..picture import sheet
from ..record import Run
from ..train.autoencoder import to_model
from ..train.lpips import LPIPS
from ..train.masks import random_mask
from .rows import grouped, interval
from .samples import Sample

# The mean mask shares of the three classes of arXiv 2606.13898.
CLASSES = {"small": 0.0638, "medium": 0.1592, "large": 0.3536}
CLASSICAL = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}


@dataclass(frozen=True)
class FillRow:
    """One fill. psnr in dB and lpips, in the mask: against the truth, and against dense.

    The seam's jumps are in levels of 255; those with `_photo` are the untouched photo's own.
    """

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
    step: float
    step_photo: float
    colour: float
    colour_photo: float


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
    files: Sequence[Path | Sample],
    methods: Mapping[str, Method],
    perceptual: LPIPS,
    *,
    size: int = 256,
    steps: int = 8,
) -> Iterator[FillRow]:
    """Rows, photo by photo; `methods` must hold "dense", which the others are compared with too.

    The mask and the noise of a photo follow from its name, so that any subset of the photographs
    gives the same rows. A sample has a mask of its own, and gives one case.
    """
    for file in files:
        for mask_class, photo, truth, mask, seed in _cases(file, size):
            compressed = _compressed(pipe, methods, photo, mask, seed, steps)
            for name, (filled, run) in {**_classical(photo, mask), **compressed}.items():
                led = match_border(photo, filled, mask) if run else filled
                (step, colour), (own_step, own_colour) = (
                    seam(led, photo, mask),
                    seam(truth, truth, mask),
                )
                yield FillRow(
                    file.name,
                    mask_class,
                    float(mask.mean()),
                    name,
                    seed,
                    run.tokens_full if run else 0,
                    round(run.mean_tokens_run) if run else 0,  # over the steps
                    run.dit_seconds if run else 0.0,
                    *_distances(perceptual, filled, truth, mask),
                    *_distances(perceptual, filled, compressed["dense"][0], mask),
                    *(step, own_step, colour, own_colour),
                )


def _cases(
    file: Path | Sample, size: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, int]]:
    """Class of mask, photo, truth, mask, and the seed of the noise."""
    if isinstance(file, Sample):
        photo, truth, mask = file.square(size)
        # The class that is nearest as a ratio: a share of 10 % is as near to 6.4 % as to 16 %.
        near = min(CLASSES, key=lambda name: abs(np.log(CLASSES[name] / mask.mean())))
        digest = hashlib.sha256(file.name.encode()).digest()
        yield near, photo, truth, mask, int.from_bytes(digest[:4], "big")
        return
    for mask_class in CLASSES:
        truth, mask, seed = _case(file, mask_class, size)
        yield mask_class, truth, truth, mask, seed


def _case(file: Path, mask_class: str, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The hidden truth, its mask, and the seed of the noise, which follow from the file's name."""
    share = CLASSES[mask_class]
    digest = hashlib.sha256(f"{file.name} {mask_class}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, (size, size), area=(0.97 * share, 1.03 * share))
    return square(file, size), mask, seed


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


def seam(filled: np.ndarray, photo: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """What jumps across the mask's border when the mask's pixels of `filled` are put into `photo`.

    Returns two means over the border, in levels of 255: the step from a pixel to its neighbour on
    the other side, and the difference between the mean colours near it of the two sides (Gaussian,
    3 px). Both are 0 for a mask without a border.
    """
    image = np.where(mask[..., None], filled, photo).astype(np.float32)
    steps = [
        np.abs(np.diff(image, axis=axis)).mean(-1)[np.diff(mask, axis=axis)] for axis in (0, 1)
    ]
    rim = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    if not rim.any():
        return 0.0, 0.0
    sides = []
    for side in (mask, ~mask):
        weight = side.astype(np.float32)
        total = cv2.GaussianBlur(image * weight[..., None], (0, 0), 3.0)
        sides.append(total / np.maximum(cv2.GaussianBlur(weight, (0, 0), 3.0), 1e-6)[..., None])
    colour = np.abs(sides[0] - sides[1])[rim].mean()
    return float(np.concatenate(steps).mean()), float(colour)


def fill_sheet(
    pipe: DiffusionPipeline,
    files: Sequence[Path],
    methods: Mapping[str, Method],
    path: Path,
    *,
    size: int = 256,
    steps: int = 8,
    columns: int = 2,
    height: int = 200,
) -> None:
    """Write what the rows are taken from, as `hilo edit` would show it, as one picture.

    The classes of masks take turns. A case shows the photo without what is hidden, a fill by each
    method, and the photo; `columns` cases stand side by side, each picture `height` pixels high.
    """
    rows = []
    for i, file in enumerate(files):
        truth, mask, seed = _case(file, list(CLASSES)[i % len(CLASSES)], size)
        pictures = [("photo", np.where(mask[..., None], np.uint8(127), truth))]
        for name, (filled, run) in _compressed(pipe, methods, truth, mask, seed, steps).items():
            led = match_border(truth, filled, mask)
            caption = f"{name.split()[0]}: {run.tokens_run} tokens"
            pictures.append((caption, np.where(mask[..., None], led, truth)))
        shown = [(caption, Image.fromarray(p)) for caption, p in [*pictures, ("truth", truth)]]
        rows.append(sheet(shown, height))
    width, tall = max(row.width for row in rows), rows[0].height
    whole = Image.new("RGB", (width * columns, tall * -(-len(rows) // columns)), (255, 255, 255))
    for i, row in enumerate(rows):
        whole.paste(row, (i % columns * width, i // columns * tall))
    whole.save(path, quality=85)


def fill_table(rows: Sequence[FillRow]) -> Table:
    """Means over the photographs with their 95 % bootstrap intervals.

    The seam is the step, and the jump in colour, as multiples of the untouched photos' own.
    """
    table = Table("mask", "method", "tokens", "LPIPS", "PSNR", "PSNR to dense", "seam")
    for (mask_class, method), group in grouped(rows, "mask_class", "method").items():
        tokens = sum(row.tokens_run for row in group) / len(group)
        figures = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*interval([getattr(row, name) for row in group]))
            for name in ("lpips", "psnr", "psnr_dense")
        ]
        if method == "dense":
            figures[-1] = ""
        ratios = [
            sum(getattr(row, name) for row in group)
            / max(sum(getattr(row, f"{name}_photo") for row in group), 1e-9)
            for name in ("step", "colour")
        ]
        figures.append("{:.2f}, {:.2f}".format(*ratios))
        table.add_row(str(mask_class), str(method), f"{tokens:.0f}", *figures)
    return table
