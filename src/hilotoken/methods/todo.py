"""ToDo: attend to a downsampled copy of the keys and values (arXiv 2402.13573).

B batch, N grid tokens (row-major), M tokens of the coarse grid, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks.matching import check_tokens, sum_slots, take, widen
from ..blocks.method import BlockMethod, Session, Site, Tokens
from ..checks import choice, settle, whole

MODES = ("nearest", "nearest-exact", "average", "area")


@dataclass(frozen=True, kw_only=True)
class ToDo(BlockMethod):
    """Keys and values are made of every cell's one token, or mean; queries stay whole.

    factor: rows and columns of a cell
    mode:   see `downsample`

    A mean sits at the place of the token in its cell's middle, (factor // 2, factor // 2): what its
    place should be under rotary positions is not in the paper, which has none. Works on part of a
    grid too, inside HiLo: the tokens of a cell are then those that run.
    """

    factor: int = 2
    mode: str = "nearest-exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, factor=whole(1), mode=choice(*MODES))

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        return [[f"factor={n}" for n in range(2, min(8, side) + 1)]]

    def session(self) -> "ToDoSession":
        return ToDoSession(self)

    def check(self, tokens: Tokens, text: bool) -> None:
        check_factor(self.factor, tokens)


class ToDoSession(Session):
    def __init__(self, method: ToDo) -> None:
        self.method = method

    def keys(self, at: Site, normed_BNC: Tensor) -> "Downsampled | None":
        if self.method.factor == 1:
            return None
        return downsampled(at.tokens, len(normed_BNC), self.method.factor, self.method.mode)


@dataclass(frozen=True, eq=False)
class Downsampled:
    """Fewer tokens to make keys and values of: see `Short`. Never unmerged."""

    down: Callable[[Tensor], Tensor]
    home_BM: Tensor
    count_BM: Tensor

    def merge(self, x_BNC: Tensor) -> Tensor:
        return self.down(x_BNC)

    def unmerge(self, y_BMC: Tensor) -> Tensor:
        raise TypeError("downsampled keys are never put back")


def downsampled(tokens: Tokens, batch: int, factor: int, mode: str) -> Downsampled:
    """How `downsample` makes keys of these tokens, which may be part of a grid."""
    device = tokens.device
    if not tokens.whole:
        return _downsampled_part(tokens, batch, factor, mode)
    (h, w), N = tokens.grid, tokens.count
    place_1N1 = torch.arange(N, device=device, dtype=torch.float32).view(1, N, 1)
    pick = mode if mode == "nearest" else "nearest-exact"
    home_M = downsample(place_1N1, h, w, factor=factor, mode=pick).long().flatten()
    count_BM = torch.full((batch, len(home_M)), N / len(home_M), device=device)
    home_BM = home_M.expand(batch, -1)
    if mode in ("nearest", "nearest-exact"):
        return Downsampled(lambda x_BNC: x_BNC.index_select(1, home_M), home_BM, count_BM)
    return Downsampled(
        lambda x_BNC: downsample(x_BNC, h, w, factor=factor, mode=mode), home_BM, count_BM
    )


def _downsampled_part(tokens: Tokens, batch: int, factor: int, mode: str) -> Downsampled:
    cell_N, M = tokens.cells((factor, factor))
    (row_N, column_N), middle = tokens.places, 0 if mode == "nearest" else factor // 2
    away_N = (row_N % factor - middle).abs() + (column_N % factor - middle).abs()
    home_BM = tokens.least((factor, factor), away_N.float()).expand(batch, -1)
    slot_BN = cell_N.expand(batch, -1)
    ones_BN1 = torch.ones(*slot_BN.shape, 1, device=slot_BN.device)
    count_BM = sum_slots(ones_BN1, slot_BN, M)[..., 0]

    def mean(x_BNC: Tensor) -> Tensor:
        total_BMC = sum_slots(widen(x_BNC), slot_BN, M)
        return (total_BMC / count_BM[..., None]).to(x_BNC.dtype)

    order_BM = slot_BN.gather(1, home_BM)  # homes rise with their place, cells with theirs
    count_at_BM = count_BM.gather(1, order_BM)
    if mode in ("nearest", "nearest-exact"):
        return Downsampled(lambda x_BNC: take(x_BNC, home_BM), home_BM, count_at_BM)
    return Downsampled(lambda x_BNC: take(mean(x_BNC), order_BM), home_BM, count_at_BM)


def check_factor(factor: int, tokens: Tokens) -> None:
    """Raise ValueError unless the factor fits the grid."""
    if factor > min(tokens.grid):
        raise ValueError(
            f"factor must lie in [1, {min(tokens.grid)}], the grid's shorter side, got {factor}"
        )


def downsample(x: Tensor, height: int, width: int, *, factor: int, mode: str) -> Tensor:
    """Tokens of the grid resampled by a whole factor a side, [B, M, C]; never unmerged.

    M = floor(height / factor) * floor(width / factor). On a grid that the factor divides, `nearest`
    takes each cell's top-left token, `nearest-exact` (the released code's default) the one at
    (factor // 2, factor // 2), `average` and `area` the cell's mean. On any other grid `average`
    leaves out the last rows and columns, and the others spread over the whole grid.
    Weights sum to 1, so resampling may come before an affine projection, and make it cheaper too.

    Args:
        x: the attention's input, after its norm
        height, width: the grid, N = height * width

    Raises:
        ValueError: a grid that does not fit N, a factor outside [1, shorter side], unknown mode.
    """
    check_tokens(x, height, width)
    if not 1 <= factor <= min(height, width):
        raise ValueError(
            f"factor must lie in [1, {min(height, width)}], the shorter side, got {factor}"
        )
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose from {list(MODES)}")
    x_BChw = x.mT.unflatten(2, (height, width))
    if mode == "average":
        down_BChw = F.avg_pool2d(x_BChw, factor)
    else:
        down_BChw = F.interpolate(x_BChw, size=(height // factor, width // factor), mode=mode)
    return down_BChw.flatten(2).mT
