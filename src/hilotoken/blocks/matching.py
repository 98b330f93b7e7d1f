"""What the merging methods share: the match itself, and ToMe's matching for given destinations.

B batch, N grid tokens (row-major), M tokens left of them, C channels; D destinations and S sources,
N = D + S; R sources merged; K tokens in a cell, one destination each.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)  # tensors have no single ==
class Match:
    """Which tokens of each sample become one. Fits any channels on the grid it was made for.

    slot_BN:  int64, the token of the short sequence that each grid token is merged into, and which
              is copied to it on the way back
    home_BM:  int64, ascending, the grid index that each token of the short sequence sits at:
              removing none is the identity, not a permutation
    """

    slot_BN: Tensor
    home_BM: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of the short sequence."""
        return self.home_BM.shape[1]

    @property
    def count_BM(self) -> Tensor:
        """How many grid tokens each token of the short sequence stands for, float32."""
        ones_BN1 = torch.ones_like(self.slot_BN, dtype=torch.float32)[..., None]
        return sum_slots(ones_BN1, self.slot_BN, self.tokens)[..., 0]

    def merge(self, x_BNC: Tensor) -> Tensor:
        """The mean of the tokens in each slot, [B, M, C]; a token alone in its slot is exact.

        Raises:
            ValueError: x has another batch or another number of tokens than the match.
        """
        self._check(x_BNC, self.slot_BN)
        # Adding up hundreds of tokens in half precision would lose the last ones altogether.
        total_BMC = sum_slots(widen(x_BNC), self.slot_BN, self.tokens)
        return (total_BMC / self.count_BM[..., None]).to(x_BNC.dtype)

    def unmerge(self, y_BMC: Tensor) -> Tensor:
        """Every grid token as a copy of the token it was merged into, [B, N, C].

        Raises:
            ValueError: y has another batch or another number of tokens than the match leaves.
        """
        self._check(y_BMC, self.home_BM)
        return take(y_BMC, self.slot_BN)

    def _check(self, x_BNC: Tensor, index_BN: Tensor) -> None:
        if x_BNC.ndim != 3 or x_BNC.shape[:2] != index_BN.shape:
            B, N = index_BN.shape
            raise ValueError(f"tokens must have shape [{B}, {N}, C], got {list(x_BNC.shape)}")


def match_targets(target_BN: Tensor, tokens: int) -> Match:
    """The match in which each token joins the one that target_BN names; `tokens` name themselves.

    The number is asked for because counting on an accelerator would make the host wait for it.
    """
    stays_BN = target_BN == torch.arange(target_BN.shape[1], device=target_BN.device)
    slot_BN = (stays_BN.cumsum(1) - 1).gather(1, target_BN)
    return Match(slot_BN, _first(stays_BN, tokens))


def match_sources(metric_BNC: Tensor, destination_BD: Tensor, removed: int) -> Match:
    """ToMe's bipartite matching (arXiv 2303.17604) into given destinations.

    All other tokens are sources. Each is paired with the destination of largest cosine similarity,
    and the `removed` sources most similar to theirs join them. Equal similarities are settled by
    the lower grid index; a zero token is similar to none (0).

    Args:
        metric_BNC: what similarity is measured on
        destination_BD: int64, grid indices, ascending
        removed: tokens to remove, the same for every sample

    Raises:
        ValueError: removed outside [0, N - D].
    """
    (B, N, _), D = metric_BNC.shape, destination_BD.shape[1]
    check_removed(removed, N - D)
    # In half precision the guard against a division by zero would itself be zero; the product is
    # taken in the metric's own precision, where accelerators are fast.
    unit_BNC = F.normalize(widen(metric_BNC), dim=-1).to(metric_BNC.dtype)
    source_BN = torch.ones(B, N, dtype=torch.bool, device=metric_BNC.device)
    source_BS = _first(source_BN.scatter(1, destination_BD, False), N - D)
    similarity_BSD = take(unit_BNC, source_BS) @ take(unit_BNC, destination_BD).mT
    value_BS, nearest_BS = similarity_BSD.max(-1)
    chosen_BR = value_BS.argsort(dim=1, descending=True, stable=True)[:, :removed]
    target_BN = torch.arange(N, device=metric_BNC.device).repeat(B, 1)
    into_BR = destination_BD.gather(1, nearest_BS.gather(1, chosen_BR))
    target_BN = target_BN.scatter(1, source_BS.gather(1, chosen_BR), into_BR)
    return match_targets(target_BN, N - removed)


def cell_tokens(
    height: int, width: int, stride: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Grid indices of the tokens of each whole cell, both row-major: int64 [D, K].

    Cells are anchored at the top left; a row or column that no whole cell covers is in none.

    Raises:
        ValueError: a stride that is less than 1 or does not fit the grid.
    """
    sy, sx = stride
    if not (1 <= sy <= height and 1 <= sx <= width):
        raise ValueError(
            f"stride must lie in [1, {height}] x [1, {width}], the grid, got {sy} x {sx}"
        )
    rows, columns = height // sy, width // sx
    grid_hw = torch.arange(height * width, device=device).view(height, width)
    whole_hw = grid_hw[: rows * sy, : columns * sx]
    return whole_hw.reshape(rows, sy, columns, sx).transpose(1, 2).reshape(-1, sy * sx)


def cell_destinations(cell_DK: Tensor, offset_BD: Tensor) -> Tensor:
    """Grid index of the token at an offset into each cell's tokens: int64 [B, D], ascending."""
    cell_BDK = cell_DK.expand(len(offset_BD), -1, -1)
    return cell_BDK.gather(2, offset_BD[..., None])[..., 0].sort(dim=1).values


def sum_slots(x_BNC: Tensor, slot_BN: Tensor, slots: int) -> Tensor:
    """The sum of the tokens in each slot, [B, slots, C]."""
    zeros_BMC = x_BNC.new_zeros(x_BNC.shape[0], slots, x_BNC.shape[2])
    return zeros_BMC.scatter_add(1, slot_BN[..., None].expand_as(x_BNC), x_BNC)


def take(x_BNC: Tensor, index_BM: Tensor) -> Tensor:
    """The tokens that each sample's index names, [B, M, C]."""
    return x_BNC.gather(1, index_BM[..., None].expand(-1, -1, x_BNC.shape[-1]))


def widen(x: Tensor) -> Tensor:
    """The same in single precision, or in double if it is so already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_tokens(x_BNC: Tensor, height: int, width: int) -> None:
    """Raise ValueError unless the tokens are [B, N, C] and fill a grid of height x width."""
    if x_BNC.ndim != 3 or min(height, width) < 1 or x_BNC.shape[1] != height * width:
        raise ValueError(
            f"tokens on a grid of {height}x{width} must have shape [B, {height * width}, C] "
            f"with both sides 1 or more, got {list(x_BNC.shape)}"
        )


def check_removed(removed: int, most: int) -> None:
    """Raise ValueError unless `removed` tokens lie in [0, most]."""
    if not 0 <= removed <= most:
        raise ValueError(f"removed must lie in [0, {most}] tokens, got {removed}")


def _first(flag_BN: Tensor, count: int) -> Tensor:
    """Indices of the flagged tokens, ascending, `count` in every sample: int64 [B, count]."""
    return flag_BN.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
