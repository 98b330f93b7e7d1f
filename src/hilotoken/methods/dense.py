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
        edit_N = touch(mask_B1HW, grid).any(0).flatten().cpu()
        tokens, nothing = torch.arange(len(edit_N)), torch.arange(0)
        return TokenPlan(grid, tokens, edit_N, 0, nothing, torch.ones(len(edit_N)))
