"""The control: nothing is compressed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..grid import touch
from ..plan import TokenPlan


@dataclass(frozen=True)
class Dense:
    """Every token runs: the untouched pipeline, measured and composited."""

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        return whole_plan(grid, touch(mask_B1HW, grid).any(0).flatten().cpu())


def whole_plan(grid: tuple[int, int], edit_N: Tensor | None = None) -> TokenPlan:
    """The plan by which every token of the grid runs."""
    N = grid[0] * grid[1]
    edit_N = torch.zeros(N, dtype=torch.bool) if edit_N is None else edit_N
    return TokenPlan(grid, torch.arange(N), edit_N, 0, torch.arange(0), torch.ones(N))
