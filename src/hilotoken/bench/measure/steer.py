"""A pipeline steered to a known edit: real code on random weights, and a result that is known.

B batch, N tokens of the target on a grid h w, C channels of x_t.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ...grid import dilate, touch
from ...hooks import StepClock, hooked

Estimate = Callable[[float], Tensor]  # the clean tokens [1, N, C] that the model sees at a sigma


def _put_rows(velocity: Tensor, rows_BNC: Tensor) -> Tensor:
    return torch.cat([rows_BNC, velocity[:, rows_BNC.shape[1] :]], 1)


@contextmanager
def steered(
    pipe: Any,
    estimate: Estimate,
    source_BNC: Tensor,
    rows: Callable[[Tensor], Tensor] = lambda x: x,
    put: Callable[[Tensor, Tensor], Tensor] = _put_rows,
) -> Iterator[None]:
    """The transformer's velocity leads to `estimate(sigma)`, for the tokens that run.

    Those that were dropped follow the photo, source_BNC, and are left to it.

    rows, put: what the transformer takes and gives as rows of tokens, the target's first; and an
        answer with other rows of the target, where it is not in rows
    """
    whole: dict[str, Any] = {}
    clock = StepClock(pipe.scheduler)

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        whole.update(kwargs)

    def lead(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        velocity = output[0]
        sigma, (N, C) = clock.sigma, source_BNC.shape[1:]
        x_BNC = rows(whole["hidden_states"])[:, :N, :C]
        led_BNC = (x_BNC - estimate(sigma).to(x_BNC)) / sigma
        left_BNC = ((x_BNC.float() - source_BNC.float()) / sigma).to(velocity.dtype)
        dropped_BN1 = (rows(velocity)[:, :N] == left_BNC).all(-1, keepdim=True)
        velocity = put(velocity, led_BNC.where(~dropped_BN1, left_BNC).to(velocity.dtype))
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

    with hooked(pipe.transformer, note), hooked(pipe.transformer, None, lead, first=True):
        yield


def source_of(pipe: Any, photo: Image.Image, noise: torch.Generator) -> Tensor:
    """The latents of a FLUX.1 Kontext photo of whole tokens, as its pipeline makes them."""
    pixels = pipe.image_processor.preprocess(photo, photo.height, photo.width)
    latents = pipe._encode_vae_image(pixels.to(pipe.vae.device, pipe.vae.dtype), noise)
    return pipe._pack_latents(latents, *latents.shape)


def edited_under(source_1NC: Tensor, mask: np.ndarray, grid: tuple[int, int], grow: int) -> Tensor:
    """The photo's latents changed so that, grown, the region that is found is about the mask."""
    touched_1hw = touch(torch.from_numpy(mask)[None, None].float(), grid)
    inner_N1 = ~dilate(~touched_1hw, grow)[0].flatten()[:, None]
    noise_1NC = torch.randn(source_1NC.shape, generator=torch.Generator().manual_seed(0))
    return source_1NC + source_1NC.std() * (noise_1NC * inner_N1).to(source_1NC)


LOCAL = ("patch", "line", "two", "late")  # the region is to be found
WHOLE = ("colour", "shift", "zoom", "style")  # every token is to run
KINDS = (*LOCAL, *WHOLE, "identity")


@dataclass(frozen=True, eq=False)
class KnownEdit:
    """What an instruction changes, and how a model comes to see it.

    kind:       one of `KINDS`
    source_1NC: the photo's latents
    target_1NC: what they become
    late_N:     the tokens whose change shows late, bool [N]
    from_sigma: the noise level below which it does
    haze:       error of the estimate where the picture is all noise, over the photo's spread
    seed:       of that error
    """

    kind: str
    source_1NC: Tensor
    target_1NC: Tensor
    late_N: Tensor
    from_sigma: float
    haze: float
    seed: int

    def estimate(self, sigma: float) -> Tensor:
        """The clean tokens as they are seen at a noise level: hazy at first, exact at the end."""
        random = torch.Generator().manual_seed(self.seed + round(1e6 * sigma))
        error_1NC = torch.randn(self.source_1NC.shape, generator=random) * self.source_1NC.std()
        hidden_N1 = (self.late_N & (sigma >= self.from_sigma))[:, None]
        seen_1NC = self.source_1NC.where(hidden_N1, self.target_1NC)
        return seen_1NC + self.haze * sigma**2 * error_1NC

    @property
    def changed_N(self) -> Tensor:
        """The tokens that change, by however little: bool [N]."""
        return (self.target_1NC != self.source_1NC).any(-1)[0]


def known_edit(source_1NC: Tensor, grid: tuple[int, int], fold: int, seed: int) -> KnownEdit:
    """An edit at random, the kinds in turn.

    Args:
        source_1NC, grid, fold: see `methods.find.look`
    """
    random = torch.Generator().manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]
    where_hw = _place(kind, grid, random)
    late_hw = _place("patch", grid, random) & (kind == "late")
    where_hw |= late_hw
    noise_1NC = torch.randn(source_1NC.shape, generator=random) * source_1NC.std()
    size = _between(0.5, 2.0, random)
    if kind in LOCAL:
        target_1NC = source_1NC + size * noise_1NC * where_hw.flatten()[None, :, None]
    else:
        target_1NC = _everywhere(kind, source_1NC, grid, fold, size, noise_1NC)
    from_sigma, haze = _between(0.6, 0.95, random), _between(0.0, 0.2, random)
    return KnownEdit(kind, source_1NC, target_1NC, late_hw.flatten(), from_sigma, haze, seed)


def _everywhere(
    kind: str, source_1NC: Tensor, grid: tuple[int, int], fold: int, size: float, noise_1NC: Tensor
) -> Tensor:
    if kind == "colour":  # one channel after the other by another amount
        return source_1NC + size * noise_1NC[:, :1]
    if kind == "style":
        return source_1NC + size * noise_1NC
    if kind == "identity":
        return source_1NC
    latents = F.pixel_shuffle(source_1NC.mT.reshape(1, -1, *grid), fold)
    if kind == "shift":
        latents = latents.roll((1 + round(size), 1), (2, 3))
    else:
        height, width = latents.shape[-2:]
        middle = latents[..., height // 8 : -(height // 8), width // 8 : -(width // 8)]
        latents = F.interpolate(middle, (height, width), mode="bilinear")
    return F.pixel_unshuffle(latents, fold).flatten(2).mT


def _place(kind: str, grid: tuple[int, int], random: torch.Generator) -> Tensor:
    """Where the picture changes: bool [h, w]."""
    where_hw = torch.zeros(grid, dtype=torch.bool)
    for _ in range({"two": 2}.get(kind, 1)):
        if kind == "line":
            rows, columns = _line(grid, random)
            where_hw[rows, columns] = True
            continue
        high, wide = (_whole(2, max(2, side * 3 // 8), random) for side in grid)
        top, left = _whole(0, grid[0] - high, random), _whole(0, grid[1] - wide, random)
        where_hw[top : top + high, left : left + wide] = True
    return where_hw


def _line(grid: tuple[int, int], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token wide, from one place at random to another: rows and columns."""
    ends = [[_whole(0, side - 1, random) for side in grid] for _ in range(2)]
    count = 2 * max(abs(a - b) for a, b in zip(*ends, strict=True)) + 1
    steps = torch.linspace(0, 1, count)
    row, column = ((a + (b - a) * steps).round().long() for a, b in zip(*ends, strict=True))
    return row, column


def _between(low: float, high: float, random: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=random).item()


def _whole(low: int, high: int, random: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=random))
