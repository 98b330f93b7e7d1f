"""SDTM: merge whole windows while structure forms, single tokens while detail does.

arXiv 2505.11707. Here are the two matchings and the schedule; which stage a step belongs to and the
blending with outputs of earlier steps are in `stages.py`. B batch, N grid tokens (row-major), C
channels, W windows of K tokens, Q windows collapsed.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks.matching import (
    Match,
    cell_destinations,
    cell_tokens,
    check_removed,
    check_tokens,
    match_sources,
    match_targets,
    widen,
)

WINDOW = (2, 2)
GROUP = 16  # merged windows and merged tokens come in multiples of this


def match_structure(
    metric: Tensor,
    height: int,
    width: int,
    *,
    removed: int,
    staleness: Tensor | None,
    weight: float,
) -> tuple[Match, Tensor]:
    """Structure stage: collapse the windows of 2 x 2 tokens that are most alike within.

    A window scores K^-2 sum_ij cos(x_i, x_j) + weight * mean_n(T_n / (mean T + 1e-6)), with T the
    staleness and its mean that of the sample. The best 16 * (removed // 48) windows become a token
    each, the mean of their tokens, at the top-left one; equal scores go to the earlier window. The
    released code can also place it at random, which changes its position but not its value.

    Args:
        metric: what similarity is measured on; there, the block's modulated and normed input
        height, width: the grid, N = height * width
        removed: tokens to remove from each sample at most; rounded down as above
        staleness: integers [B, N], for how many matchings in a row each token was merged, or None
            before the first
        weight: of the staleness; 0.05 there. It *raises* a window's chance to be merged again

    Returns:
        The match, and the staleness after it: one more for merged tokens, 0 for the others.

    Raises:
        ValueError: a grid that does not fit N or has an odd side, removed outside [0, 3N / 4], a
            staleness of another shape, or a weight that is not finite.
    """
    cell_WK, staleness_BN = _prepare(metric, height, width, staleness)
    W, K = cell_WK.shape
    if not math.isfinite(weight):
        raise ValueError(f"weight must be a finite number, got {weight}")
    check_removed(removed, W * (K - 1))
    # The mean over all pairs of unit vectors is the squared length of their mean.
    mean_BWC = F.normalize(widen(metric), dim=-1)[:, cell_WK].mean(2)
    stale_BN = staleness_BN / (staleness_BN.float().mean(1, keepdim=True) + 1e-6)
    score_BW = mean_BWC.square().sum(-1) + weight * stale_BN[:, cell_WK].mean(2)
    collapsed = GROUP * (removed // (GROUP * (K - 1)))
    chosen_BQ = score_BW.argsort(dim=1, descending=True, stable=True)[:, :collapsed]
    token_BQK = cell_WK[chosen_BQ]
    first_BQK = token_BQK[..., :1].expand_as(token_BQK)
    N = height * width
    target_BN = torch.arange(N, device=metric.device).repeat(len(metric), 1)
    target_BN = target_BN.scatter(1, token_BQK.flatten(1), first_BQK.flatten(1))
    match = match_targets(target_BN, N - collapsed * (K - 1))
    merged_BN = torch.zeros_like(target_BN, dtype=torch.bool)
    return match, _age(staleness_BN, merged_BN.scatter(1, token_BQK.flatten(1), True))


def match_detail(
    metric: Tensor, height: int, width: int, *, removed: int, staleness: Tensor | None
) -> tuple[Match, Tensor]:
    """Detail stage: ToMe's matching into the stalest token of each window of 2 x 2.

    Of equally stale tokens the first is the destination. 16 * (min(removed, sources) // 16) tokens
    are removed. For the staleness after it every destination counts as merged, even one that took
    in no other. Departure: the paper also weighs how little a token is attended to, from attention
    maps that fused attention never forms; the released code, which alone defines the stage in full,
    leaves that out, and so does this. Its random destinations are left out too.

    Args, returns and errors are those of `match_structure`, but removed may be anything in [0, N].
    """
    cell_WK, staleness_BN = _prepare(metric, height, width, staleness)
    N = height * width
    check_removed(removed, N)
    destination_BW = cell_destinations(cell_WK, staleness_BN[:, cell_WK].argmax(-1))
    count = GROUP * (min(removed, N - len(cell_WK)) // GROUP)
    match = match_sources(metric, destination_BW, count)
    merged_BN = torch.ones_like(staleness_BN, dtype=torch.bool).scatter(1, match.home_BM, False)
    return match, _age(staleness_BN, merged_BN.scatter(1, destination_BW, True))


def ratio_schedule(ratio: float, deviation: float, steps: int) -> tuple[float, ...]:
    """The removed share of each step s: ratio - deviation + 2 deviation cos(pi s / 2 (steps - 1)).

    It falls from ratio + deviation at s = 0, slowly at first, to ratio - deviation at the last.

    Raises:
        ValueError: steps below 1, or a deviation that takes the share out of [0, 1].
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    if not 0 <= deviation <= min(ratio, 1 - ratio):
        raise ValueError(
            f"ratio +- deviation must stay in [0, 1] with deviation 0 or more, "
            f"got {ratio} +- {deviation}"
        )
    quarter = math.pi / 2 / max(steps - 1, 1)
    return tuple(ratio - deviation + 2 * deviation * math.cos(quarter * s) for s in range(steps))


def _prepare(
    metric: Tensor, height: int, width: int, staleness: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The tokens of each window and the staleness, both checked."""
    check_tokens(metric, height, width)
    if height % WINDOW[0] or width % WINDOW[1]:
        raise ValueError(f"SDTM needs an even height and width, got a grid of {height}x{width}")
    shape = metric.shape[:2]
    if staleness is None:
        staleness = torch.zeros(shape, dtype=torch.int32, device=metric.device)
    if staleness.shape != shape:
        raise ValueError(f"staleness must have shape {list(shape)}, got {list(staleness.shape)}")
    return cell_tokens(height, width, WINDOW, metric.device), staleness


def _age(staleness_BN: Tensor, merged_BN: Tensor) -> Tensor:
    """One more for merged tokens, 0 for the others."""
    return (staleness_BN + 1).masked_fill(~merged_BN, 0)
