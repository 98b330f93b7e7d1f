"""BiGain: token merging and downsampling that look at spatial frequency.

BiGain-TM merges into the smoothest token of each cell, BiGain-TD blends two ways to downsample keys
and values. B batch, N grid tokens (row-major), M tokens of the coarse grid, C channels, D cells.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..blocks.matching import (
    Match,
    cell_destinations,
    cell_tokens,
    check_tokens,
    match_sources,
    widen,
)
from ..blocks.method import BlockMethod, Merging, MergingSession, Session, Site, Tokens
from ..checks import choice, number, settle, unless_none, whole
from . import todo
from .tome import cell_stride

NORMS = ("l1", "l2")


@dataclass(frozen=True, kw_only=True)
class BiGainTM(Merging):
    """ToMe's merging into the smoothest token of each cell, by the block's modulated norm.

    stride: rows and columns of a cell
    norm:   of the Laplacian over channels, "l1" or "l2"
    """

    takes_parts: ClassVar[bool] = False
    stride: tuple[int, int] = (2, 2)
    norm: str = "l1"

    def __post_init__(self) -> None:
        settle(self, stride=cell_stride, norm=choice(*NORMS))
        super().__post_init__()

    @property
    def most(self) -> float:
        return 1 - 1 / (self.stride[0] * self.stride[1])

    def session(self) -> "BiGainTMSession":
        return BiGainTMSession(self)


class BiGainTMSession(MergingSession):
    def __init__(self, method: BiGainTM) -> None:
        super().__init__(method)
        self.method = method

    def make(self, at: Site, normed_BNC: Tensor) -> Match:
        (h, w), (sy, sx) = at.tokens.grid, self.method.stride
        removed = self.method.removed(at.tokens, h * w - (h // sy) * (w // sx))
        return match(normed_BNC, h, w, removed=removed, stride=(sy, sx), norm=self.method.norm)


@dataclass(frozen=True, kw_only=True)
class BiGainTD(BlockMethod):
    """Keys and values are made of a blend of each cell's middle token and its mean.

    factor:    rows and columns of a cell
    alpha:     share of the token: 0 the mean, 1 the token, above 1 beyond it, away from the mean
    alpha_end: the share at no noise, if it is to change: alpha * t + alpha_end * (1 - t) at noise
               level t; the paper's schedule is alpha=0.9, alpha_end=0.1
    """

    factor: int = 2
    alpha: float = 0.5
    alpha_end: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, factor=whole(1), alpha=number(), alpha_end=unless_none(number()))

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        return todo.ToDo.knob(steps, side)

    def session(self) -> "BiGainTDSession":
        return BiGainTDSession(self)

    def check(self, tokens: Tokens, text: bool) -> None:
        todo.check_factor(self.factor, tokens)


class BiGainTDSession(Session):
    def __init__(self, method: BiGainTD) -> None:
        self.method = method

    def keys(self, at: Site, normed_BNC: Tensor) -> todo.Downsampled | None:
        method, batch = self.method, len(normed_BNC)
        if method.factor == 1:
            return None
        end = method.alpha if method.alpha_end is None else method.alpha_end
        alpha = method.alpha * at.noise + end * (1 - at.noise)
        token, mean = (
            todo.downsampled(at.tokens, batch, method.factor, mode)
            for mode in ("nearest-exact", "average")
        )

        def blend(x_BNC: Tensor) -> Tensor:
            return alpha * token.merge(x_BNC) + (1 - alpha) * mean.merge(x_BNC)

        return todo.Downsampled(blend, token.home_BM, token.count_BM)


def downsample(x: Tensor, height: int, width: int, *, factor: int, alpha: float) -> Tensor:
    """BiGain-TD: alpha * nearest-exact + (1 - alpha) * average of each cell, [B, M, C].

    alpha 0 is the average, 1 the nearest token, and above 1 extrapolates beyond it, away from the
    average. The released U-Net code departs from the paper where the grid is not square: it swaps
    height and width, and falls back to an average without a word.

    Raises:
        ValueError: as `todo.downsample`, or an alpha that is not finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number, got {alpha}")
    nearest_BMC = todo.downsample(x, height, width, factor=factor, mode="nearest-exact")
    average_BMC = todo.downsample(x, height, width, factor=factor, mode="average")
    return alpha * nearest_BMC + (1 - alpha) * average_BMC


def laplacian_score(x: Tensor, height: int, width: int, *, norm: str = "l1") -> Tensor:
    """Local frequency of every token: the norm over channels of (L * x), float32 [B, N].

    L = [0 1 0; 1 -4 1; 0 1 0] on the grid, channel by channel, with zeros around it, as the authors
    have it: tokens at the border score high.

    Raises:
        ValueError: a grid that does not fit N, or a norm other than "l1" and "l2".
    """
    check_tokens(x, height, width)
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose from {list(NORMS)}")
    x_BhwC = F.pad(widen(x).unflatten(1, (height, width)), (0, 0, 1, 1, 1, 1))
    rows_BhwC, columns_BhwC = x_BhwC[:, :, 1:-1], x_BhwC[:, 1:-1]
    vertical_BhwC = rows_BhwC[:, :-2] + rows_BhwC[:, 2:]
    horizontal_BhwC = columns_BhwC[:, :, :-2] + columns_BhwC[:, :, 2:]
    response_BhwC = vertical_BhwC + horizontal_BhwC - 4 * rows_BhwC[:, 1:-1]
    return response_BhwC.norm(p=int(norm[1]), dim=-1).flatten(1)


def match(
    metric: Tensor,
    height: int,
    width: int,
    *,
    removed: int,
    stride: tuple[int, int] = (2, 2),
    norm: str = "l1",
) -> Match:
    """BiGain-TM: ToMe's matching into the token of lowest frequency of each cell.

    As the paper has it, each sample's destination is the argmin of `laplacian_score` over the cell,
    the first token of equal ones. The released code departs from that: it takes the argmin over K
    tokens that follow one another in the sequence, and then reads that offset in the cell of two
    dimensions, which hits the true minimum hardly more often than chance (28.9 % against 25 % on
    noise). It refuses grids that the stride does not divide; here they are treated as in ToMe.

    Args:
        metric: what similarity and frequency are measured on
        height, width: the grid, N = height * width
        removed: tokens to remove from each sample

    Raises:
        ValueError: as `tome.match`, or an unknown norm.
    """
    score_BN = laplacian_score(metric, height, width, norm=norm)
    cell_DK = cell_tokens(height, width, stride, metric.device)
    destination_BD = cell_destinations(cell_DK, score_BN[:, cell_DK].argmin(-1))
    return match_sources(metric, destination_BD, removed)
