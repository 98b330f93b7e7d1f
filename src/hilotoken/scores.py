"""Spatial-frequency scores: how much high-frequency detail each token's cell holds.

Every score is a pure function (luma_B1HW, grid) -> float32 [B, N], never negative, larger for more
detail, exactly 0 on a flat photo, and without units in common: compare tokens, not scores.

B batch, H W pixels, h w token grid, N = h * w tokens in row-major order, p q pixels a cell.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .checks import choice, number, said
from .grid import check_grid, luma, pool

Score = Callable[[Tensor, tuple[int, int]], Tensor]
ScoreSpec = str | Mapping[str, float]


def laplacian(luma_B1HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Laplacian energy: mean over the cell of the squared 4-neighbour Laplacian.

    Energy of Laplacian of Subbarao, Choi & Nikzad, "Focusing techniques" (1993), with the kernel
    [0 1 0; 1 -4 1; 0 1 0] and the photo's border replicated, so that a border is no detail.
    """
    x_B1HW = luma_B1HW.float()
    dx_B1HV, dy_B1VW = x_B1HW.diff(dim=-1), x_B1HW.diff(dim=-2)
    # Each difference is one neighbour's share at both its ends; the border has none outside,
    # which is what replicated pixels would give.
    response_B1HW = torch.zeros_like(x_B1HW)
    response_B1HW[..., :-1] += dx_B1HV
    response_B1HW[..., 1:] -= dx_B1HV
    response_B1HW[..., :-1, :] += dy_B1VW
    response_B1HW[..., 1:, :] -= dy_B1VW
    return pool(response_B1HW.square_(), grid).flatten(1)


def sobel(luma_B1HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Gradient energy (Tenengrad): mean over the cell of gx^2 + gy^2 from Sobel's 3x3 kernels.

    Kernels are divided by 8, so that a ramp rising by s a pixel scores s^2; the photo's border is
    replicated. Krotkov, "Focusing" (1988). Blind to a one-pixel checkerboard, as Sobel is.
    """
    x_B1HW = luma_B1HW.float()
    energy_B1HW = _central_difference(_smooth(x_B1HW, -2), -1).square_()
    energy_B1HW += _central_difference(_smooth(x_B1HW, -1), -2).square_()
    return pool(energy_B1HW, grid).flatten(1) / 64


def frequency(luma_B1HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Spatial frequency of each cell: sqrt(RF^2 + CF^2).

    RF^2 = sum_{m, n>=1} (x[m, n] - x[m, n-1])^2 / (p q), CF^2 likewise down the columns, with every
    difference inside the cell. Eskicioglu & Fisher, "Image quality measures and their performance"
    (1995). Cells as in `_cells`.
    """
    x_Bhpwq = _cells(luma_B1HW, grid)
    p, q = x_Bhpwq.shape[2], x_Bhpwq.shape[4]
    rows_Bhw = x_Bhpwq.diff(dim=4).square_().sum(dim=(2, 4))
    columns_Bhw = x_Bhpwq.diff(dim=2).square_().sum(dim=(2, 4))
    return ((rows_Bhw + columns_Bhw) / (p * q)).sqrt().flatten(1)


def dct(luma_B1HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """DCT energy of each cell, weighted by frequency.

    sum_{u, v} f(u, v) C[u, v]^2 / (p q), where C is the orthonormal DCT-II of the cell of p x q
    pixels (Ahmed, Natarajan & Rao 1974) and f = hypot(u / 2p, v / 2q) is the coefficient's
    frequency in cycles a pixel. With f = 1 but f(0, 0) = 0 this would be the variance (Parseval);
    as it is, fine texture counts for more than a slow gradient of the same contrast.
    Cells as in `_cells`.
    """
    x_Bhpwq = _from_corner(_cells(luma_B1HW, grid))
    B, h, p, w, q = x_Bhpwq.shape
    down_pp, across_qq = _dct_matrix(p).to(x_Bhpwq), _dct_matrix(q).to(x_Bhpwq)
    coefficients = x_Bhpwq.reshape(-1, q) @ across_qq.T
    coefficients = down_pp @ coefficients.view(B * h, p, w * q)
    u_p11 = torch.arange(p, device=x_Bhpwq.device).view(p, 1, 1) / (2 * p)
    v_q = torch.arange(q, device=x_Bhpwq.device) / (2 * q)
    energy_Bhpwq = coefficients.view(B, h, p, w, q).square_() * torch.hypot(u_p11, v_q)
    return energy_Bhpwq.mean(dim=(2, 4)).flatten(1)


def variance(luma_B1HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Variance of each cell: E[x^2] - E[x]^2, not below 0. Cells as in `_cells`."""
    x_Bhpwq = _from_corner(_cells(luma_B1HW, grid))
    mean_Bhw, square_Bhw = x_Bhpwq.mean(dim=(2, 4)), x_Bhpwq.square().mean(dim=(2, 4))
    return (square_Bhw - mean_Bhw.square()).clamp_min(0).flatten(1)


SCORES: dict[str, Score] = {
    "laplacian": laplacian,
    "sobel": sobel,
    "frequency": frequency,
    "dct": dct,
    "variance": variance,
}


def check_score(spec: ScoreSpec) -> None:
    """Raise ValueError unless `spec` names a score, or maps names to weights >= 0, one above 0."""
    weights = spec.items() if isinstance(spec, Mapping) else [(spec, 1.0)]
    for name, weight in weights:
        choice(*sorted(SCORES))("score", name)
        number(0, 1e6)(f"the weight of {name!r} in score", weight)
    if not any(weight for _, weight in weights):
        raise ValueError(
            f"a mix of scores needs a weight above 0, got {said(spec)}; "
            f"choose from {sorted(SCORES)}"
        )


def score(photo_B3HW: Tensor, grid: tuple[int, int], spec: ScoreSpec) -> Tensor:
    """Detail of every token: float32 [B, N].

    `spec` is a name from SCORES, giving that score as it is, or a mapping of names to weights,
    giving sum_k weight_k * score_k / mean_k with the mean over each photo's own tokens, so that
    equal weights mean equal say. The photo is one that passes `check_photo`.
    Raises ValueError for a bad spec, or a grid that does not fit.
    """
    check_score(spec)
    luma_B1HW = luma(photo_B3HW)
    if isinstance(spec, str):
        return SCORES[spec](luma_B1HW, grid)
    mixed_BN = luma_B1HW.new_zeros(luma_B1HW.shape[0], grid[0] * grid[1])
    for name, weight in spec.items():
        if weight:
            mixed_BN += weight * _relative(SCORES[name](luma_B1HW, grid))
    return mixed_BN


def _relative(score_BN: Tensor) -> Tensor:
    """The score over its mean; a flat photo's zeros stay zeros."""
    mean_B1 = score_BN.mean(dim=1, keepdim=True)
    return score_BN / mean_B1.clamp_min(torch.finfo(score_BN.dtype).tiny)


def _smooth(x_B1HW: Tensor, dim: int) -> Tensor:
    """[1 2 1] along one dimension, border replicated."""
    n = x_B1HW.shape[dim]
    y_B1HW = 2 * x_B1HW
    y_B1HW.narrow(dim, 1, n - 1).add_(x_B1HW.narrow(dim, 0, n - 1))
    y_B1HW.narrow(dim, 0, n - 1).add_(x_B1HW.narrow(dim, 1, n - 1))
    y_B1HW.select(dim, 0).add_(x_B1HW.select(dim, 0))
    y_B1HW.select(dim, -1).add_(x_B1HW.select(dim, -1))
    return y_B1HW


def _central_difference(x_B1HW: Tensor, dim: int) -> Tensor:
    """[-1 0 1] along one dimension, border replicated."""
    n = x_B1HW.shape[dim]
    step = x_B1HW.diff(dim=dim)
    y_B1HW = torch.zeros_like(x_B1HW)
    y_B1HW.narrow(dim, 0, n - 1).add_(step)
    y_B1HW.narrow(dim, 1, n - 1).add_(step)
    return y_B1HW


def _cells(luma_B1HW: Tensor, grid: tuple[int, int]) -> Tensor:
    """The photo cut into cells of one size: float32 [B, h, p, w, q].

    p = ceil(H / h) rows from row floor(i * H / h) on, and likewise q columns. Where pixels divide
    evenly these are the cells of `grid.pool`; elsewhere neighbours share pixels, none is left out.
    """
    check_grid(luma_B1HW, grid)
    (H, W), (h, w) = luma_B1HW.shape[-2:], grid
    x_BHW = luma_B1HW[:, 0].float()
    if H % h:
        x_BHW = x_BHW.index_select(1, _cell_pixels(H, h, x_BHW.device))
    if W % w:
        x_BHW = x_BHW.index_select(2, _cell_pixels(W, w, x_BHW.device))
    return x_BHW.reshape(-1, h, x_BHW.shape[1] // h, w, x_BHW.shape[2] // w)


def _cell_pixels(pixels: int, tokens: int, device: torch.device) -> Tensor:
    start = torch.arange(tokens, device=device) * pixels // tokens
    size = -(-pixels // tokens)
    return (start[:, None] + torch.arange(size, device=device)).flatten()


def _from_corner(x_Bhpwq: Tensor) -> Tensor:
    """Values relative to the cell's first pixel: flat cells become exact zeros, not rounding."""
    return x_Bhpwq - x_Bhpwq[:, :, :1, :, :1]


def _dct_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II, float64 [n, n]: row u is cos(pi (2 i + 1) u / 2n), scaled to length 1."""
    i_n = torch.arange(n, dtype=torch.float64)
    basis_nn = torch.cos(math.pi / (2 * n) * (2 * i_n + 1) * i_n[:, None]) * math.sqrt(2 / n)
    basis_nn[0] = math.sqrt(1 / n)
    return basis_nn
