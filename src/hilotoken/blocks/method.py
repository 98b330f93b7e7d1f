"""What a method that acts inside blocks is told, what it answers, and what it is.

B batch, N tokens it may touch, M tokens left of them, C channels, D cells.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..checks import block_numbers, blocks, flag, settle, share, whole
from ..method import Method
from ..plan import TokenPlan
from .matching import Match, match_targets


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens that a method may touch: a whole grid, or those of it that run.

    grid:   (h, w)
    keep_N: int64, the grid index of each token, ascending; None for the whole grid
    device: where they are
    """

    grid: tuple[int, int]
    keep_N: Tensor | None = None
    device: torch.device | None = None
    _cells: dict[tuple[int, int], tuple[Tensor, int]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_plan(cls, plan: TokenPlan, device: torch.device) -> "Tokens":
        """The native tokens of a plan; coarse ones are left as they are."""
        whole = len(plan.keep_K) == plan.tokens_full
        return cls(plan.grid, None if whole else plan.keep_K.to(device), device)

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1] if self.keep_N is None else len(self.keep_N)

    @property
    def whole(self) -> bool:
        return self.keep_N is None

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Row and column of every token, int64 [N] each."""
        w = self.grid[1]
        index = self.keep_N
        if index is None:
            index = torch.arange(self.count, device=self.device)
        return index.div(w, rounding_mode="floor"), index % w

    def cells(self, side: tuple[int, int]) -> tuple[Tensor, int]:
        """The cell of `side` rows and columns that each token lies in, int64 [N], and their number.

        Only cells that hold tokens are numbered, in the order of the grid.
        """
        if side not in self._cells:
            row, column = self.places
            cell_N = row // side[0] * -(-self.grid[1] // side[1]) + column // side[1]
            unique_D, compact_N = cell_N.unique(return_inverse=True)
            self._cells[side] = compact_N, len(unique_D)
        return self._cells[side]

    def least(self, side: tuple[int, int], score_N: Tensor) -> Tensor:
        """The token of least score in each cell, of equal ones the first: int64 [D], ascending."""
        cell_N, D = self.cells(side)
        best_D = torch.full((D,), torch.inf, dtype=score_N.dtype, device=score_N.device)
        best_D = best_D.scatter_reduce(0, cell_N, score_N, "amin")
        place_N = torch.arange(len(cell_N), device=score_N.device)
        rival_N = place_N.masked_fill(score_N > best_D[cell_N], len(cell_N))
        first_D = torch.full((D,), len(cell_N), device=score_N.device)
        return first_D.scatter_reduce(0, cell_N, rival_N, "amin").sort().values


class Short(Protocol):
    """How tokens become fewer, and whole again. `Match` is one."""

    @property
    def home_BM(self) -> Tensor:
        """The token whose place each token of the short sequence takes."""
        ...

    @property
    def count_BM(self) -> Tensor:
        """How many tokens each stands for."""
        ...

    def merge(self, x_BNC: Tensor) -> Tensor: ...

    def unmerge(self, y_BMC: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Site:
    """A module of a block in one call of the transformer, as a method sees it.

    part:      "attention", "attention2" (the second of SD3.5's dual blocks) or "feed_forward"
    block:     its number, from 0, in the order that blocks run
    blocks:    how many there are
    step:      of the run, from 0
    steps:     how many the run has
    branch:    0, or 1 in the second call of a step, as guidance makes it
    noise:     noise level, 1 pure noise and 0 none
    tokens:    which tokens these are
    input_BNC: what the block was given
    """

    part: str
    block: int
    blocks: int
    step: int
    steps: int
    branch: int
    noise: float
    tokens: Tokens
    input_BNC: Tensor

    @property
    def key(self) -> tuple[int, int]:
        """Names the block and the branch: what state is kept by."""
        return self.block, self.branch


class Session:
    """A method at work for one run. Each answer may be None: nothing is changed here."""

    def attention(self, at: Site, normed_BNC: Tensor) -> Short | None:
        """How attention's tokens become fewer, and its output whole again."""
        return None

    def keys(self, at: Site, normed_BNC: Tensor) -> Short | None:
        """How the tokens that keys and values are made of become fewer; never unmerged."""
        return None

    def feed_forward(self, at: Site, normed_BNC: Tensor) -> Short | None:
        """How the feed-forward's tokens become fewer, and its output whole again."""
        return None

    def attended(
        self, at: Site, query_BQHD: Tensor, key_BSHD: Tensor, image: slice, short: Short | None
    ) -> None:
        """Queries and keys as attention takes them; `image` are the keys that `short` made."""

    def route(
        self, at: Site, query: Tensor, key: Tensor, value: Tensor, image: slice, original: Any,
        **kwargs: Any,
    ) -> Tensor | None:  # fmt: skip
        """Attention itself, by another way; `original` is the usual one."""
        return None

    def text_count(self, at: Site) -> float:
        """How often each text key counts."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class BlockMethod(Method):
    """Options of every method that acts inside blocks.

    blocks:  those it acts in, numbered from 0 in the order they run: "all", or "1-5,7-11"
    weights: a merged key counts as many as it stands for (proportional attention, ToMe's for
             recognition, arXiv 2210.09461); exact and without a mask, but its head is wider

    Raises:
        ValueError: an option out of range, at construction.
    """

    site: ClassVar[str] = "blocks"
    takes_parts: ClassVar[bool] = True  # whether it works on part of a grid, inside HiLo
    blocks: str | int | tuple[int, ...] = "all"
    weights: bool = False

    def __post_init__(self) -> None:
        settle(self, blocks=blocks, weights=flag)

    @property
    def inner(self) -> "BlockMethod":
        return self

    @property
    def period(self) -> int:
        """After how many steps it does the same again."""
        return 1

    def session(self) -> Session:
        """The method at work, with no state of an earlier run."""
        raise NotImplementedError

    def check(self, tokens: Tokens, text: bool) -> None:
        """Raise ValueError for tokens that the method is unsuited to; `text`: keys of text."""

    def chosen_blocks(self, blocks: int) -> frozenset[int]:
        """The numbers that `blocks` names. Raises ValueError for ones beyond the last block."""
        return block_numbers("blocks", self.blocks, blocks)


@dataclass(frozen=True, kw_only=True)
class Merging(BlockMethod):
    """Options of the methods that merge tokens before a module and unmerge after it.

    ratio:        share of the tokens that are removed
    attention:    whether attention's are
    feed_forward: whether the feed-forward's are, by the same match
    reuse:        matches are made anew every so many steps
    """

    ratio: float = 0.5
    attention: bool = True
    feed_forward: bool = False
    reuse: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, ratio=share(self.most), attention=flag, feed_forward=flag, reuse=whole(1))
        if not (self.attention or self.feed_forward):
            raise ValueError("attention and feed_forward are both False: nothing would be merged")
        if self.weights and not self.attention:
            raise ValueError(
                "weights=True is of keys, and attention=False merges none: leave it out"
            )

    @property
    def most(self) -> float:
        """The largest ratio."""
        return 1.0

    @property
    def period(self) -> int:
        return self.reuse

    @property
    def alike(self) -> bool:
        return self.reuse == 1

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        """Merging is in attention alone where that saves enough, else in the feed-forward too."""
        plain = [f"ratio={ratio}" for ratio in shares(min(cls().most, 0.95))]
        return [plain, [f"{setting} feed_forward=True" for setting in plain]]

    def removed(self, tokens: Tokens, sources: int) -> int:
        """How many tokens the ratio removes, of as many as can be."""
        return min(sources, int(self.ratio * tokens.count + 1e-9))


class MergingSession(Session):
    """Makes a match at the first module of a block that asks, and keeps it for `reuse` steps."""

    def __init__(self, method: Merging) -> None:
        self.options = method
        self._kept: dict[tuple[int, int], tuple[int, Short]] = {}

    def make(self, at: Site, normed_BNC: Tensor) -> Short:
        """A new match."""
        raise NotImplementedError

    def attention(self, at: Site, normed_BNC: Tensor) -> Short | None:
        return self._match(at, normed_BNC) if self.options.attention else None

    def feed_forward(self, at: Site, normed_BNC: Tensor) -> Short | None:
        return self._match(at, normed_BNC) if self.options.feed_forward else None

    def _match(self, at: Site, normed_BNC: Tensor) -> Short:
        made_at, short = self._kept.get(at.key, (None, None))
        if short is None or at.step // self.options.reuse != made_at:
            short = self.make(at, normed_BNC)
            self._kept[at.key] = at.step // self.options.reuse, short
        return short


def identity(tokens: int, like: Tensor) -> Match:
    """The match that merges nothing."""
    return match_targets(torch.arange(tokens, device=like.device).expand(len(like), -1), tokens)


def shares(most: float) -> list[float]:
    """Twentieths, rising to the most there can be."""
    return [i / 20 for i in range(1, round(20 * most) + 1)]
