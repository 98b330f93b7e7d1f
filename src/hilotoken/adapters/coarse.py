"""The coarse tokens: the photo downsampled, as tokens at any noise level.

B batch, N grid tokens, M coarse tokens, C latent channels a token (x_t), D channels a token in all,
H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import touch
from ..plan import TokenPlan
from ..source import Source


@dataclass(frozen=True, eq=False)
class Coarse:
    """The photo downsampled `stride` times a side.

    A cell clear of the mask carries the noised latents of the downsampled photo. What is under the
    mask must not be told to the model: it is blanked before the VAE, which looks far around, and a
    cell that the mask touches carries the average of its tokens' x_t instead, whose noise is
    brought back to unit variance.

    x0_BMC: clean latents; noise_BMC: of unit variance, fixed for the run; condition_BMD: what else
    is in the channels; touched_BM1: bool, whether the mask touches the cell.
    """

    plan: TokenPlan
    x0_BMC: Tensor
    noise_BMC: Tensor
    condition_BMD: Tensor
    touched_BM1: Tensor
    fold: int = 2  # latents a side of a token

    @classmethod
    def encode(
        cls,
        plan: TokenPlan,
        source: Source,
        mask_B1HW: Tensor,
        encode: Callable[[Tensor, torch.Generator], Tensor],
        condition: Callable[[Tensor, Tensor], Tensor],
        fold: int = 2,
    ) -> "Coarse":
        """Encode the downsampled photo without what the mask covers.

        `encode` turns pixels [B, 3, H, W] in [-1, 1] into tokens [B, m, C]; `condition` turns those
        tokens and the downsampled mask [B, 1, H, W] into what else is in the channels, [B, M, D].
        """
        like = source.latents_BNC
        photo_B3HW = shrink(source.photo_B3HW, source.grid, plan.stride, F.avg_pool2d)
        mask_B1HW = shrink(mask_B1HW, source.grid, plan.stride, F.max_pool2d)
        private = torch.Generator().manual_seed(0)  # the user's generator stays untouched
        masked_BmC = encode(photo_B3HW * (1 - mask_B1HW), private)
        h, w = plan.grid
        touched_Bhw = touch(mask_B1HW, (-(-h // plan.stride), -(-w // plan.stride)))
        x0_BMC = masked_BmC.index_select(1, plan.cells_M)
        noise_BMC = torch.randn(x0_BMC.shape, generator=private, dtype=torch.float32).to(like)
        return cls(
            plan,
            x0_BMC,
            noise_BMC,
            condition(masked_BmC, mask_B1HW),
            touched_Bhw.flatten(1)[:, plan.cells_M.cpu(), None].to(like.device),
            fold,
        )

    def tokens(self, x_BNC: Tensor, sigma: float | Tensor) -> Tensor:
        """The coarse tokens at noise level sigma (or [B, 1, 1] of them), [B, M, D]."""
        B = len(x_BNC)  # guidance may end, and its half with it
        clean, noise, touched, condition = (
            part if len(part) == B else part.repeat(-(-B // len(part)), 1, 1)[:B]
            for part in (*self._parts, self.condition_BMD)
        )
        average = cell_averages(x_BNC, self.plan, self.fold)
        tokens_BMC = torch.lerp(clean, noise, sigma).addcmul(average, touched)
        return torch.cat([tokens_BMC, condition], -1) if condition.shape[-1] else tokens_BMC

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where cells are clear, clean latents and noise; where the mask touches them, nothing and
        the noise that an average lacks. And which those are, as 0 and 1."""
        missing_MC = missing_noise(self.plan, self.fold, self.x0_BMC)
        return (
            self.x0_BMC.masked_fill(self.touched_BM1, 0),
            torch.where(self.touched_BM1, missing_MC * self.noise_BMC, self.noise_BMC),
            self.touched_BM1.to(self.x0_BMC.dtype),
        )


def cell_averages(x_BNC: Tensor, plan: TokenPlan, fold: int = 2) -> Tensor:
    """The average of x over each coarse cell: [B, M, C].

    A token holds `fold` x `fold` latents, channel by channel, and so does a coarse token.
    """
    latents = F.pixel_shuffle(x_BNC.mT.unflatten(2, plan.grid), fold)
    average = F.pixel_unshuffle(_pooled(latents, plan), fold)
    return average.flatten(2).mT.index_select(1, plan.cells_M)


def cell_means(x_BND: Tensor, plan: TokenPlan) -> Tensor:
    """The mean of the tokens of each coarse cell, [B, M, D], of any tokens on the grid."""
    if not x_BND.shape[-1]:  # nothing in the channels besides x_t
        return x_BND.new_empty(len(x_BND), len(plan.cells_M), 0)
    means = _pooled(x_BND.mT.unflatten(2, plan.grid), plan)
    return means.flatten(2).mT.index_select(1, plan.cells_M)


def _pooled(x_BCHW: Tensor, plan: TokenPlan) -> Tensor:
    """The mean of `stride` rows and columns each; the last ones fill up what is no whole cell."""
    h, w = plan.grid
    rows = x_BCHW.shape[-2] // h
    below, right = (-h % plan.stride) * rows, (-w % plan.stride) * rows
    if below or right:
        x_BCHW = F.pad(x_BCHW, (0, right, 0, below), mode="replicate")
    return F.avg_pool2d(x_BCHW, plan.stride)


def shrink(image: Tensor, grid: tuple[int, int], stride: int, pool: Any) -> Tensor:
    """The image at one pixel for `stride` a side, by the pooling given.

    Cells that reach beyond the grid are filled up with its last row and column.
    """
    h, w = grid
    below, right = (-h % stride) * (image.shape[-2] // h), (-w % stride) * (image.shape[-1] // w)
    return pool(F.pad(image.float(), (0, right, 0, below), mode="replicate"), stride)


# Of every plan, by the latents a side of a token and what tensors it goes with.
_MISSING: WeakKeyDictionary[TokenPlan, dict[tuple[Any, ...], Tensor]] = WeakKeyDictionary()


def missing_noise(plan: TokenPlan, fold: int, like_BNC: Tensor) -> Tensor:
    """Of the noise in each channel of a coarse token, the share that its average lacks: [M, C].

    Made once a plan: it would be copied to the device at every step.
    """
    known = _MISSING.setdefault(plan, {})
    key = fold, like_BNC.shape[-1], like_BNC.dtype, like_BNC.device
    if key not in known:
        with torch.inference_mode(False):  # or no other mode could take it up
            down, across = (_shares(n, plan.stride, fold) for n in plan.grid)
            # The variance of an average of independent noise is the sum of its squared shares.
            variance = down.square().sum(1)[:, None] * across.square().sum(1)
            missing = F.pixel_unshuffle((1 - variance).sqrt()[None], fold).flatten(1).mT
            missing = missing.to(like_BNC).index_select(0, plan.cells_M)
            known[key] = missing.repeat(1, like_BNC.shape[-1] // fold**2)
    return known[key]


def _shares(tokens: int, stride: int, rows_each: int = 2) -> Tensor:
    """The share of each row in each coarse row, pooled as by `shrink`: [rows m, rows h]."""
    rows = torch.arange(-(-tokens // stride) * stride * rows_each)
    rows = rows.clamp(max=rows_each * tokens - 1)
    return F.one_hot(rows).float().unflatten(0, (-1, stride)).mean(1)
