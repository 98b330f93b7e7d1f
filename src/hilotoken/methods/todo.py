"""ToDo: attend to a downsampled copy of the keys and values (arXiv 2402.13573).

B batch, N grid tokens (row-major), M tokens of the coarse grid, C channels.
"""

import torch.nn.functional as F
from torch import Tensor

from .matching import check_tokens

MODES = ("nearest", "nearest-exact", "average", "area")


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
