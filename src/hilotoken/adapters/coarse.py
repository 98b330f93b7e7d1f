"""The coarse tokens: the photo downsampled, as tokens at any noise level.

B batch, N grid tokens, M coarse tokens, C latent channels a token (x_t), D channels a token in all,
H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
        noise_BMC = torch.randn(x0_BMC.shape, generator=private).to(like.device, like.dtype)
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
        B = len(x_BNC)
        x0, noise, condition, touched = (
            part.repeat(-(-B // len(part)), 1, 1)[:B]  # guidance may end, and its half with it
            for part in (self.x0_BMC, self.noise_BMC, self.condition_BMD, self.touched_BM1)
        )
        known = (1 - sigma) * x0 + sigma * noise
        average, missing = cell_averages(x_BNC, self.plan, self.fold)
        unknown = average + sigma * missing * noise
        return torch.cat([torch.where(touched, unknown, known), condition], -1)


def cell_averages(x_BNC: Tensor, plan: TokenPlan, fold: int = 2) -> tuple[Tensor, Tensor]:
    """The average of x over each coarse cell, and the share of noise that it lacks: [B, M, C].

    A token holds `fold` x `fold` latents, channel by channel, and so does a coarse token.
    """
    latents = F.pixel_shuffle(x_BNC.unflatten(1, plan.grid).movedim(-1, 1), fold)
    down, across = (_shares(n, plan.stride, fold).to(latents) for n in plan.grid)
    average = down @ latents @ across.T
    # The variance of an average of independent noise is the sum of its squared shares.
    variance = down.square().sum(1)[:, None] * across.square().sum(1)
    missing = (1 - variance).sqrt().expand_as(average)
    average_BMC, missing_BMC = (
        F.pixel_unshuffle(part, fold).flatten(2).mT.index_select(1, plan.cells_M)
        for part in (average, missing)
    )
    return average_BMC, missing_BMC


def cell_means(x_BND: Tensor, plan: TokenPlan) -> Tensor:
    """The mean of the tokens of each coarse cell, [B, M, D], of any tokens on the grid."""
    h, w = plan.grid
    down, across = (_shares(n, plan.stride, 1).to(x_BND) for n in plan.grid)
    grid_BDhw = x_BND.unflatten(1, (h, w)).movedim(-1, 1)
    return (down @ grid_BDhw @ across.T).flatten(2).mT.index_select(1, plan.cells_M)


def shrink(image: Tensor, grid: tuple[int, int], stride: int, pool: Any) -> Tensor:
    """The image at one pixel for `stride` a side, by the pooling given.

    Cells that reach beyond the grid are filled up with its last row and column.
    """
    h, w = grid
    below, right = (-h % stride) * (image.shape[-2] // h), (-w % stride) * (image.shape[-1] // w)
    return pool(F.pad(image.float(), (0, right, 0, below), mode="replicate"), stride)


def _shares(tokens: int, stride: int, rows_each: int = 2) -> Tensor:
    """The share of each row in each coarse row, pooled as by `shrink`: [rows m, rows h]."""
    rows = torch.arange(-(-tokens // stride) * stride * rows_each)
    rows = rows.clamp(max=rows_each * tokens - 1)
    return F.one_hot(rows).float().unflatten(0, (-1, stride)).mean(1)
