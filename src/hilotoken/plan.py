"""The token plan: which tokens run, where they sit, and how to get there and back.

B batch, N grid tokens (row-major), K native and M coarse tokens that run, S = K + M, C channels.
`gather`, `scatter` and the cell arithmetic here are all the index arithmetic of a shorter sequence;
merging inside blocks has its own, in `blocks/matching.py`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

POSITIONS = ("interpolated", "aligned", "native")
REFERENCES = ("compressed", "whole")


@dataclass(frozen=True, eq=False)  # tensors have no single ==
class TokenPlan:
    """Which tokens run. Made once a run from photo and mask.

    grid:       (h, w), the DiT's token grid; N = h * w
    keep_K:     int64, grid index of every native token that runs, ascending: keeping all tokens is
                the identity, not a permutation
    edit_N:     bool, the tokens to be edited: those the mask touches, grown by the dilation
    stride:     side of a coarse cell in tokens; 0 where there are no coarse tokens
    cells_M:    int64, index of every coarse cell that runs, on the grid of ceil(h / stride) rows
    count_S:    float32, how many tokens of the grid each token of the short sequence stands for
    positions:  where coarse tokens sit: see `token_positions`
    weighted:   whether log(count) is added to the attention logits of a token's key
    references: what happens to a reference picture that is the photo itself, on the same grid:
                "compressed" by the same plan, or left "whole"
    """

    grid: tuple[int, int]
    keep_K: Tensor
    edit_N: Tensor
    stride: int
    cells_M: Tensor
    count_S: Tensor
    positions: str = "interpolated"
    weighted: bool = False
    references: str = "compressed"

    @property
    def tokens_full(self) -> int:
        """Tokens of the whole grid."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens_run(self) -> int:
        """Tokens the DiT runs on: native and coarse."""
        return len(self.keep_K) + len(self.cells_M)

    @property
    def keep_ratio(self) -> float:
        """Tokens run / tokens of the grid."""
        return self.tokens_run / self.tokens_full

    @property
    def counts(self) -> dict[str, int]:
        """How many edit, detail and coarse tokens run."""
        edit = int(self.edit_N.sum())
        return {"edit": edit, "detail": len(self.keep_K) - edit, "coarse": len(self.cells_M)}

    def to(self, device: torch.device) -> "TokenPlan":
        """The same plan with its tensors on `device`."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def whole_plan(grid: tuple[int, int], edit_N: Tensor | None = None) -> TokenPlan:
    """The plan by which every token of the grid runs."""
    N = grid[0] * grid[1]
    edit_N = torch.zeros(N, dtype=torch.bool) if edit_N is None else edit_N
    return native_plan(grid, torch.arange(N), edit_N)


def native_plan(grid: tuple[int, int], keep_K: Tensor, edit_N: Tensor) -> TokenPlan:
    """The plan by which these tokens run, each for itself, and no coarse ones."""
    ones_K = torch.ones(len(keep_K), dtype=torch.float32)
    return TokenPlan(grid, keep_K, edit_N, 0, torch.arange(0), ones_K)


def gather(x_BNC: Tensor, plan: TokenPlan) -> Tensor:
    """The native tokens that run, [B, K, C]."""
    return x_BNC.index_select(1, plan.keep_K)


def scatter(y_BSC: Tensor, plan: TokenPlan, fill_BNC: Tensor) -> Tensor:
    """`fill_BNC` with the tokens that ran put back in their places; coarse tokens are let go."""
    return fill_BNC.index_copy(1, plan.keep_K, y_BSC[:, : len(plan.keep_K)])


def cells_of(grid: tuple[int, int], side: int, device: torch.device | None = None) -> Tensor:
    """The cell of `side` x `side` tokens that each token lies in, row-major: int64 [N]."""
    h, w = grid
    row, column = torch.arange(h, device=device) // side, torch.arange(w, device=device) // side
    return (row[:, None] * -(-w // side) + column).flatten()


def token_positions(plan: TokenPlan) -> Tensor:
    """Row and column of every token of the short sequence, in units of native tokens: [S, 2].

    A native token sits where it always sat. Coarse token i at stride s sits at the centre of its
    cell, s * i + (s - 1) / 2 (`interpolated` and `aligned`), or at the native place just before
    that centre (`native`), a whole number. `aligned` leaves the places as they are, and has coarse
    queries see all keys on the coarse stride instead (after arXiv 2511.19778).
    """
    native_K2 = torch.stack(_row_column(plan.keep_K, plan.grid[1]), 1).float()
    if not len(plan.cells_M):
        return native_K2
    cells_M2 = torch.stack(_row_column(plan.cells_M, -(-plan.grid[1] // plan.stride)), 1)
    centre_M2 = plan.stride * cells_M2 + (plan.stride - 1) / 2
    if plan.positions == "native":
        centre_M2 = centre_M2.floor()
    return torch.cat([native_K2, centre_M2])


def _row_column(index: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return index.div(width, rounding_mode="floor"), index % width
