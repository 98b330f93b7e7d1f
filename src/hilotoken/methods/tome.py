"""ToMe for diffusion: merge the tokens that are most like another (arXiv 2303.17604).

B batch, N grid tokens (row-major), C channels, D cells of K tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..blocks.matching import Match, cell_destinations, cell_tokens, check_tokens, match_sources
from ..blocks.method import Merging, MergingSession, Site
from ..checks import SEED, SIDE, flag, said, settle, whole


@dataclass(frozen=True, kw_only=True)
class ToMe(Merging):
    """Tokens join the one they are most like, among one of each cell; by the block's input.

    stride:  rows and columns of a cell
    random:  draw each cell's destination, anew for every block and step, from `seed`, one draw for
             a batch and for both branches of guidance; else it is the top-left token

    Other options as in `Merging` and `BlockMethod`. Works on part of a grid too, inside HiLo.
    """

    stride: tuple[int, int] = (2, 2)
    random: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self, stride=cell_stride, random=flag, seed=whole(0, SEED))
        super().__post_init__()

    @property
    def most(self) -> float:
        return 1 - 1 / (self.stride[0] * self.stride[1])

    def session(self) -> "ToMeSession":
        return ToMeSession(self)


class ToMeSession(MergingSession):
    def __init__(self, method: ToMe) -> None:
        super().__init__(method)
        self.method = method

    def make(self, at: Site, normed_BNC: Tensor) -> Match:
        tokens, (sy, sx), x_BNC = at.tokens, self.method.stride, at.input_BNC
        (h, w), draw = tokens.grid, None
        if self.method.random:
            # By place in the run, so that both branches of guidance draw the same.
            number = (at.step // self.method.reuse) * at.blocks + at.block
            draw = torch.Generator().manual_seed((self.method.seed * 1_000_003 + number) % SEED)
        if tokens.whole:
            removed = self.method.removed(tokens, h * w - (h // sy) * (w // sx))
            return match(x_BNC, h, w, removed=removed, stride=(sy, sx), generator=draw)
        score_N = torch.arange(tokens.count, device=x_BNC.device).float()
        if draw:
            score_N = torch.rand(tokens.count, generator=draw).to(x_BNC.device)
        destination_D = tokens.least((sy, sx), score_N)
        removed = self.method.removed(tokens, tokens.count - len(destination_D))
        return match_sources(x_BNC, destination_D.expand(len(x_BNC), -1), removed)


def cell_stride(name: str, value: Any) -> tuple[int, int]:
    """Check that these are rows and columns of a cell of more than one token: see `checks`."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name} must be rows and columns, such as (2, 2), got {said(value)}")
    rows, columns = (whole(1, SIDE)(name, side) for side in value)
    if rows == columns == 1:
        raise ValueError(f"{name} (1, 1) leaves nothing to merge: use (2, 2) or more")
    return rows, columns


def match(
    metric: Tensor,
    height: int,
    width: int,
    *,
    removed: int,
    stride: tuple[int, int] = (2, 2),
    generator: torch.Generator | None = None,
) -> Match:
    """Merge into one destination a cell the tokens most like any destination of the grid.

    Cells of `stride` (rows, columns) are anchored at the top left; tokens that no whole cell covers
    are sources. Where the released code differs: there a zero token's similarity is NaN, equal
    similarities fall as the sort has them, the short sequence is reordered, too large a `removed`
    is clipped, and a batch of odd size never draws.

    Args:
        metric: what similarity is measured on; the paper takes the block's input
        height, width: the grid, N = height * width
        removed: tokens to remove from each sample
        generator: draws each cell's destination, one draw for the whole batch; without it the
            destination is the cell's top-left token

    Raises:
        ValueError: a grid that does not fit N, a stride that does not fit the grid, or removed
            outside [0, sources].
    """
    check_tokens(metric, height, width)
    cell_DK = cell_tokens(height, width, stride, metric.device)
    D, K = cell_DK.shape
    offset_D = torch.zeros(D, dtype=torch.int64, device=metric.device)
    if generator is not None:
        offset_D = torch.randint(K, (D,), generator=generator, device=generator.device).to(offset_D)
    destination_BD = cell_destinations(cell_DK, offset_D.expand(len(metric), -1))
    return match_sources(metric, destination_BD, removed)
