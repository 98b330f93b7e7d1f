"""ToMe for diffusion: merge the tokens that are most like another (arXiv 2303.17604).

B batch, N grid tokens (row-major), C channels, D cells of K tokens.
"""

import torch
from torch import Tensor

from .matching import Match, cell_destinations, cell_tokens, check_tokens, match_sources


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
