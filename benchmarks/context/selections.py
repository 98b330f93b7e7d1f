"""Ways to choose context that HiLo does not have, to be judged before it gets them.

All are HiLo with another choice outside the edit tokens, so that `compress` runs them and context
can be reused with them. Inside `experimental()` two of them replace a part of the library too: a
pyramid's coarse tokens are of several sizes, and attended context is chosen inside the attention.

N grid tokens, S tokens of the short sequence, D channels a token, A axes of a place.
B batch, Q queries, X context tokens, H heads, d channels a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from unittest.mock import patch

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hilotoken import HiLo, adapters, lane
from hilotoken.adapters.base import Span
from hilotoken.adapters.coarse import Coarse
from hilotoken.adapters.flux import FluxFill, FluxFillShort
from hilotoken.grid import dilate
from hilotoken.plan import TokenPlan, cells_of, token_positions
from hilotoken.reuse import Reuse

PYRAMID = (2, 4, 8)


def distance_to(edit_hw: Tensor) -> Tensor:
    """Steps from each token to the nearest edit token, diagonals counting as one: int64 [h, w]."""
    away = cv2.distanceTransform((~edit_hw).numpy().astype(np.uint8), cv2.DIST_C, 3)
    return torch.from_numpy(away).round().long()


def growing_cells(edit_hw: Tensor, growth: float, sides: tuple[int, ...] | None = None) -> Tensor:
    """The side of the square cell that each token lies in, which grows with the distance: [h, w].

    A cell is as large as its nearest token is far from the edit, times `growth`, or smaller; its
    side is a power of two, or one of `sides`. So a ring between two distances holds as many cells
    as the ring of twice those distances, and cells grow in number with the logarithm of the photo.
    """
    h, w = edit_hw.shape
    away_hw = distance_to(edit_hw)
    if sides is None:
        sides = tuple(2**k for k in range(1, max(h, w).bit_length()))
    side_hw = torch.ones(h, w, dtype=torch.int64)
    for side in sorted(sides):
        padded = F.pad(away_hw.float(), (0, -w % side, 0, -h % side), value=torch.inf)
        nearest = -F.max_pool2d(-padded[None, None], side)[0, 0]
        large = (nearest * growth >= side).repeat_interleave(side, 0).repeat_interleave(side, 1)
        side_hw = torch.where(large[:h, :w], side, side_hw)
    return side_hw


def cell_names(side_hw: Tensor) -> Tensor:
    """A number for each cell, the same for all its tokens: int64 [N]."""
    h, w = side_hw.shape
    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    first_N = (row // side_hw * side_hw * w + column // side_hw * side_hw).flatten()
    return first_N.unique(return_inverse=True)[1]


def one_a_cell(
    certain_N: Tensor, cell_N: Tensor, total: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Besides what is certain, one token at random of each cell, weighted by what it stands for.

    What is added to reach `total` tokens is drawn first, at random, and stands for itself: a token
    added after the draw would leave its cell's token with too large a weight.

    Returns:
        bool [N], the tokens that run, and float32 [N], how many tokens each stands for.
    """
    N = len(certain_N)
    order_N = torch.randperm(N, generator=generator)
    given_N, spare = certain_N, order_N[~certain_N[order_N]]
    draw_N = torch.randperm(N, generator=generator)
    extra = 0
    while True:
        certain_N = given_N.clone()
        certain_N[spare[:extra]] = True
        open_N = (~certain_N).nonzero().flatten()
        best = torch.full((int(cell_N.max()) + 1,), -1)
        best = best.scatter_reduce(0, cell_N[open_N], draw_N[open_N], "amax")
        drawn_N = ~certain_N & (draw_N == best[cell_N])
        missing = total - int((certain_N | drawn_N).sum())
        if missing <= 0 or extra >= len(spare):
            break
        extra += missing
    size = torch.zeros(len(best)).index_add(0, cell_N[open_N], torch.ones(len(open_N)))
    return certain_N | drawn_N, torch.where(drawn_N, size[cell_N], 1.0)


@dataclass(frozen=True)
class Spread(HiLo):
    """Context sampled evenly (`growth` 0: cells of `cell` tokens a side), or foveated.

    Detail tokens, where there are any, are certain.

    growth: side of a cell over its distance from the edit tokens
    total:  tokens to run; as many as there are cells and edit tokens, unless that is fewer
    """

    growth: float = 0.0
    total: int = 0

    def select(self, score_N: Tensor, touched_hw: Tensor, grid: tuple[int, int]) -> TokenPlan:
        edit_hw = dilate(touched_hw[None].cpu(), self.dilate)[0]
        if self.growth:
            cell_N = cell_names(growing_cells(edit_hw, self.growth))
        else:
            cell_N = cells_of(grid, self.cell or 1)
        edit_N = edit_hw.flatten()
        best_N = score_N.cpu().masked_fill(edit_N, -1).argsort(descending=True, stable=True)
        certain_N = edit_N.clone()
        certain_N[best_N[: self._detail_count(score_N, edit_N)]] = True
        runs_N, count_N = one_a_cell(certain_N, cell_N, self.total, self._generator())
        keep_K = runs_N.nonzero().flatten()
        return replace(
            _native(grid, keep_K, edit_N), count_S=count_N[keep_K], weighted=bool(self.weights)
        )


def foveated(growth: float = 2.0, **options: Any) -> Spread:
    """Sampled context that thins out with the distance from the edit."""
    return Spread(context="sampled", detail=0.0, growth=growth, **options)


@dataclass(frozen=True)
class Needed(HiLo):
    """The oracle: edit tokens and those that tell the hidden part, which no method can know."""

    need: tuple[int, ...] = ()

    def select(self, score_N: Tensor, touched_hw: Tensor, grid: tuple[int, int]) -> TokenPlan:
        edit_N = dilate(touched_hw[None].cpu(), self.dilate).flatten()
        runs_N = edit_N.clone()
        runs_N[list(self.need)] = True
        return _native(grid, runs_N.nonzero().flatten(), edit_N)


def _native(grid: tuple[int, int], keep_K: Tensor, edit_N: Tensor) -> TokenPlan:
    """A plan without coarse tokens, in which each token stands for itself."""
    return TokenPlan(grid, keep_K, edit_N, 0, torch.arange(0), torch.ones(len(keep_K)))


@dataclass(frozen=True, eq=False)
class PyramidPlan(TokenPlan):
    """Coarse tokens of several sizes: a plan for each, side by side in the short sequence."""

    levels: tuple[TokenPlan, ...] = ()


@dataclass(frozen=True)
class Pyramid(HiLo):
    """Coarse tokens of 2, 4 and 8 tokens a side, the larger the farther; the nearest are native."""

    growth: float = 1.0

    def select(self, score_N: Tensor, touched_hw: Tensor, grid: tuple[int, int]) -> TokenPlan:
        edit_hw = dilate(touched_hw[None].cpu(), self.dilate)[0]
        side_N = growing_cells(edit_hw, self.growth, PYRAMID).flatten()
        keep_K = (side_N == 1).nonzero().flatten()
        flat = _native(grid, keep_K, edit_hw.flatten())
        levels = []
        for side in PYRAMID:
            cells_M = cells_of(grid, side)[side_N == side].unique()
            if len(cells_M):
                levels.append(replace(flat, stride=side, cells_M=cells_M))
        counts = [torch.full((len(x.cells_M),), float(x.stride**2)) for x in levels]
        return PyramidPlan(
            grid,
            keep_K,
            flat.edit_N,
            max((x.stride for x in levels), default=0),
            torch.arange(sum(len(x.cells_M) for x in levels)),
            torch.cat([flat.count_S, *counts]),
            weighted=bool(self.weights),
            levels=tuple(levels),
        )


class PyramidShort(FluxFillShort):
    """A short call with the coarse tokens of a pyramid; with other plans as ever."""

    def _encode_coarse(self, mask_B1HW: Tensor) -> Any:
        if not isinstance(self.plan, PyramidPlan):
            return super()._encode_coarse(mask_B1HW)
        levels, whole = [], self.plan
        for level in whole.levels:
            self.plan = level.to(whole.keep_K.device)
            levels.append(super()._encode_coarse(mask_B1HW))
        self.plan = whole
        return _Levels(tuple(levels))

    def short_ids(self, ids: Tensor, span: Span) -> Tensor:
        if not isinstance(self.coarse, _Levels):
            return super().short_ids(ids, span)
        ids_TA = ids[span.start : span.stop]
        kept = ids_TA.index_select(0, self.plan.keep_K).float()
        places = [token_positions(x.plan)[len(x.plan.keep_K) :] for x in self.coarse.levels]
        return torch.cat([kept, ids_TA[:1].float() + F.pad(torch.cat(places), (1, 0))])


class PyramidFill(FluxFill):
    short: ClassVar[Any] = PyramidShort


@dataclass(frozen=True, eq=False)
class _Levels:
    levels: tuple[Coarse, ...]

    def tokens(self, x_BNC: Tensor, sigma: float | Tensor) -> Tensor:
        return torch.cat([level.tokens(x_BNC, sigma) for level in self.levels], 1)


@dataclass(frozen=True)
class Attended(HiLo):
    """The whole context is computed at a refresh, and of it the keys kept that edits attend to.

    share: of the context's keys, in each attention module those of the greatest mass
    """

    share: float = 0.25


class AttendedReuse(Reuse):
    """Reuse that lets go of most keys; with other methods as ever."""

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        output = super().attend(module, query, key, value, original, **kw)
        if self.refreshing and isinstance(self.run.method, Attended):
            mass_X = self._mass(query, key)
            count = max(1, round(self.run.method.share * len(mass_X)))
            chosen = mass_X.argsort(descending=True, stable=True)[:count].sort().values
            self.kept[id(module)] = tuple(x[:, chosen] for x in self.kept[id(module)])
        return output

    def _mass(self, query_BQHd: Tensor, key_BQHd: Tensor) -> Tensor:
        """Attention that each context token gets from the edit tokens, over all heads: [X]."""
        text = key_BQHd.shape[1] - self.counts_S.shape[0]
        edited = torch.ones_like(self.counts_S, dtype=torch.bool)
        edited[self.context_X] = False
        query = query_BQHd[:, text:][:, edited].transpose(1, 2)
        logits = query @ key_BQHd.transpose(1, 2).mT * query.shape[-1] ** -0.5
        return logits.softmax(-1).sum((0, 1, 2))[text:][self.context_X]


@contextmanager
def experimental() -> Iterator[None]:
    """`compress` knows the pyramid and attended context, for this context."""
    names = {("FluxFillPipeline", "FluxTransformer2DModel"): PyramidFill}
    with patch.dict(adapters.ADAPTERS, names), patch.object(lane, "Reuse", AttendedReuse):
        yield
