"""The latent cache: what the transformer trains on, encoded once, photographs, masks, latents.

A group is a few photographs that share their masks, because a batch shares its rotary positions.
For every group: latents of the photos, and for each mask the latents of the masked photos, the same
of a copy downsampled four times (for the coarse tokens), and the detail score of every token.

G groups, P photos a group, V masks a group, N tokens of a 256 px photo.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from numpy.lib.format import open_memmap
from torch import Tensor

from ..data.manifest import random_crop, to_model
from ..data.masks import random_mask
from ..scores import score
from .log import Log

SIZE, STRIDE = 256, 4  # pixels a side; tokens a side of a coarse cell
GRID = (SIZE // 16, SIZE // 16)


@dataclass(frozen=True)
class ViewOptions:
    """How many views, of what make."""

    groups: int = 1000
    photos: int = 8
    masks: int = 2


@dataclass(frozen=True, eq=False)
class LatentCache:
    """Memory-mapped arrays; `done` groups of them are filled. Latents are unscaled, float16."""

    latents: np.ndarray  # [G, P, C, 32, 32]
    masked: np.ndarray  # [G, V, P, C, 32, 32]
    coarse_masked: np.ndarray  # [G, V, P, C, 8, 8]
    masks: np.ndarray  # [G, V, 256, 32] uint8, bits
    scores: np.ndarray  # [G, N] float32
    done: np.ndarray  # [1] int64

    @classmethod
    def open(cls, folder: Path, options: ViewOptions, channels: int) -> "LatentCache":
        """The arrays in `folder`, all made anew if one is not there or of another size."""
        folder.mkdir(parents=True, exist_ok=True)
        G, P, V = options.groups, options.photos, options.masks
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "latents": ((G, P, channels, 32, 32), np.float16),
            "masked": ((G, V, P, channels, 32, 32), np.float16),
            "coarse_masked": ((G, V, P, channels, 8, 8), np.float16),
            "masks": ((G, V, SIZE, SIZE // 8), np.uint8),
            "scores": ((G, GRID[0] * GRID[1]), np.float32),
            "done": ((1,), np.int64),
        }
        paths = {name: folder / f"{name}.npy" for name in shapes}
        if all(_shape(paths[name]) == shape for name, (shape, _) in shapes.items()):
            return cls(**{name: np.load(path, mmap_mode="r+") for name, path in paths.items()})
        made = {
            name: open_memmap(paths[name], "w+", d, shape) for name, (shape, d) in shapes.items()
        }
        return cls(**made)


def _shape(path: Path) -> tuple[int, ...] | None:
    try:
        return np.load(path, mmap_mode="r").shape
    except (OSError, ValueError, EOFError):  # not there, or cut short
        return None


def make_views(
    views: LatentCache,
    photos: list[np.ndarray],
    silhouettes: list[np.ndarray],
    autoencoder: AutoencoderTiny,
    run: Path,
    device: torch.device,
) -> None:
    """Fill the views that are not filled yet."""
    log, done = Log(run, "views"), int(views.done[0])
    encode = encoder(autoencoder, device)
    with log.progress(len(views.latents), done) as advance:
        for g in range(done, len(views.latents)):
            _make_group(views, g, photos, silhouettes, encode, device)
            views.done[0] = g + 1
            advance(1)


def _make_group(
    views: LatentCache,
    g: int,
    photos: list[np.ndarray],
    silhouettes: list[np.ndarray],
    encode: Callable[[Tensor], np.ndarray],
    device: torch.device,
) -> None:
    rng = np.random.default_rng((2, g))
    P, V = views.latents.shape[1], views.masks.shape[1]
    photo_P3HW = to_model(draw_crops(photos, P, rng)).to(device)
    views.latents[g] = encode(photo_P3HW)
    score_PN = score(photo_P3HW / 2 + 0.5, GRID, "laplacian")
    relative_PN = score_PN / score_PN.mean(1, keepdim=True).clamp_min(1e-12)
    views.scores[g] = relative_PN.mean(0).cpu().numpy()
    for v in range(V):
        mask = random_mask(rng, (SIZE, SIZE), silhouettes)
        views.masks[g, v] = np.packbits(mask, axis=1)
        mask_11HW = torch.from_numpy(mask)[None, None].float().to(device)
        views.masked[g, v] = encode(photo_P3HW * (1 - mask_11HW))
        small = F.avg_pool2d(photo_P3HW, STRIDE) * (1 - F.max_pool2d(mask_11HW, STRIDE))
        views.coarse_masked[g, v] = encode(small)


def draw_crops(photos: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Squares of `count` photographs, [count, 256, 256, 3] uint8."""
    chosen = _choose(len(photos), count, rng)
    return np.stack([random_crop(photos[i], SIZE, rng) for i in chosen])


def _choose(photos: int, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(photos, count, replace=photos < count)


def group_photos(photos: int, group: int, count: int) -> np.ndarray:
    """Which of so many photographs a group's `count` pictures are from."""
    return _choose(photos, count, np.random.default_rng((2, group)))


def group_crops(photos: list[np.ndarray], group: int, count: int) -> np.ndarray:
    """The `count` squares that a group's latents were encoded from, drawn again."""
    return draw_crops(photos, count, np.random.default_rng((2, group)))


def batch_crops(photos: list[np.ndarray], groups: Sequence[int], count: int) -> Tensor:
    """The pictures that a batch's latents are of, [count, 3, H, W] in [-1, 1]."""
    return _mosaic([to_model(group_crops(photos, group, count)) for group in groups])


def _mosaic(parts: Sequence[Tensor]) -> Tensor:
    """Parts [..., H, W] set in a square, row by row; one part is itself."""
    tiles = isqrt(len(parts))
    rows = [torch.cat(list(parts[i : i + tiles]), -1) for i in range(0, len(parts), tiles)]
    return torch.cat(rows, -2)


def encoder(autoencoder: AutoencoderTiny, device: torch.device) -> Callable[[Tensor], np.ndarray]:
    """From pictures [B, 3, H, W] in [-1, 1] to latents as the views keep them."""
    model = autoencoder.to(device)  # type: ignore[arg-type]

    @torch.no_grad()
    def encode(photo: Tensor) -> np.ndarray:
        photo = photo.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            latents = model.encode(photo, return_dict=False)[0]
        return latents.float().cpu().numpy().astype(np.float16)

    return encode


def latent_scale(views: LatentCache) -> float:
    """What brings the latents to unit variance: the autoencoder's `scaling_factor`."""
    return float(1 / views.latents[: min(64, int(views.done[0]))].astype(np.float32).std())


def draw_of_kinds(views: LatentCache, done: int) -> np.random.Generator:
    """Draws what kind of work a step is: the same in processes side by side, so that none waits.

    A process adds its own number to `done`, which grows by whole groups, and so draws pictures of
    its own.
    """
    return np.random.default_rng((6, done // views.latents.shape[1]))


@dataclass(frozen=True, eq=False)
class Batch:
    """Photographs that share a mask; latents are scaled. B pictures of h x w tokens."""

    latents: Tensor  # [B, C, 2h, 2w]
    masked: Tensor  # [B, C, 2h, 2w]
    coarse_masked: Tensor  # [B, C, 2h/4, 2w/4]
    mask: Tensor  # [1, 1, 16h, 16w]
    score_N: Tensor
    groups: tuple[int, ...]  # one; or those of a mosaic, row by row
    label_BL: Tensor | None = None  # one-hot, or nothing


def chances_of_masks(views: LatentCache, tilt: float) -> np.ndarray:
    """How likely each mask of each group is drawn, [groups done * V]: as its share ** `tilt`.

    Shares are log-uniform (`random_mask`), half of them below a tenth: 0 leaves that, at 0.5 masks
    below a tenth, up to a quarter and above are drawn about equally often.
    """
    masks = views.masks[: int(views.done[0])].reshape(-1, *views.masks.shape[2:])
    chance = np.array([np.unpackbits(mask).mean() for mask in masks]) ** tilt
    return chance / chance.sum()


def read_batch(
    views: LatentCache,
    rng: np.random.Generator,
    tiles: int,
    scale: float,
    chances: np.ndarray | None = None,
) -> Batch:
    """A group under one of its masks, drawn evenly or by `chances_of_masks`; or `tiles` x `tiles`.

    Side by side they make a larger picture of unrelated parts: the transformer meets the distances
    of a larger grid without a larger photograph.
    """
    count = tiles * tiles
    done, V = int(views.done[0]), views.masks.shape[1]
    groups, chosen = np.divmod(rng.choice(done * V, count, p=chances), V)

    def mosaic(parts: list[np.ndarray]) -> Tensor:
        return _mosaic([torch.from_numpy(part).float() for part in parts])

    pairs = list(zip(groups, chosen, strict=True))
    masks = [np.unpackbits(views.masks[g, v], axis=1)[None, None] for g, v in pairs]
    scores = [views.scores[g].reshape(1, *GRID) for g in groups]
    return Batch(
        mosaic([views.latents[g] for g in groups]) * scale,
        mosaic([views.masked[g, v] for g, v in pairs]) * scale,
        mosaic([views.coarse_masked[g, v] for g, v in pairs]) * scale,
        mosaic(masks),
        mosaic(scores).flatten(),
        tuple(int(g) for g in groups),
    )
