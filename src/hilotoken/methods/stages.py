"""SDTM at work: which stage a step belongs to, staleness, protected steps, fused outputs.

arXiv 2505.11707; the matchings are in `sdtm.py`. B batch, N grid tokens, M left, C channels.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..blocks.matching import Match, match_targets
from ..blocks.method import BlockMethod, Session, Short, Site, Tokens, shares
from ..checks import number, settle, share, whole
from . import sdtm


@dataclass(frozen=True, kw_only=True)
class SDTM(BlockMethod):
    """Whole windows merge while structure forms, single tokens while detail does.

    In the structure stage attention and feed-forward both run on merged windows, in the detail
    stage the feed-forward alone, on matched tokens; by the block's modulated norm. The share that
    is removed falls along a cosine, from ratio + deviation to ratio - deviation.

    ratio:     mean share removed
    deviation: what it rises above and falls below that
    structure: share of the steps in the structure stage
    protect:   every so many steps, from the first, nothing is merged; 0 for never
    staleness: how much it counts, in choosing windows, that a window was merged before
    cached:    share of a merged token's output that is taken from the last protected step instead
               (the released scripts: 0.9); 0 for none. Keeps two outputs a block in memory
    emphasis:  how often each text key counts in the structure stage. The paper's abstract speaks of
               prompt reweighting, its code has none, so this definition is ours; 1 turns it off
    """

    takes_parts: ClassVar[bool] = False
    ratio: float = 0.3
    deviation: float = 0.2
    structure: float = 0.4
    protect: int = 3
    staleness: float = 0.05
    cached: float = 0.0
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, ratio=share(), deviation=number(), structure=share(), cached=share())
        settle(self, protect=whole(0), staleness=number(0), emphasis=number(0, 1e6))
        sdtm.ratio_schedule(self.ratio, self.deviation, 2)
        if self.ratio + self.deviation > 0.75:
            raise ValueError(
                f"ratio + deviation must lie in [0, 0.75]: a window of four keeps one; "
                f"got {self.ratio} + {self.deviation}"
            )
        if self.cached and not self.protect:
            raise ValueError("cached needs protected steps to take outputs from: set protect")
        if self.emphasis == 0:
            raise ValueError("emphasis must be above 0, got 0: text would not be read at all")
        for name, acts in (("emphasis", self.emphasis != 1), ("weights", self.weights)):
            if acts and not self.structure:
                raise ValueError(f"{name} is of the structure stage, and structure=0 leaves it out")

    @property
    def alike(self) -> bool:
        return False

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        deviations = {ratio: min(0.2, ratio, 0.75 - ratio) for ratio in shares(0.75)}
        return [[f"ratio={r} deviation={deviation:.2g}" for r, deviation in deviations.items()]]

    def session(self) -> "SDTMSession":
        return SDTMSession(self)

    def check(self, tokens: Tokens, text: bool) -> None:
        if tokens.grid[0] % 2 or tokens.grid[1] % 2:
            h, w = tokens.grid
            raise ValueError(f"SDTM needs an even height and width, got a grid of {h}x{w}")
        if self.emphasis != 1 and not text:
            raise ValueError("emphasis needs text among the keys of attention: this model has none")


class SDTMSession(Session):
    def __init__(self, method: SDTM) -> None:
        self.method = method
        self.staleness: dict[int, Tensor | None] = {}  # by branch; all blocks share it
        self.metric: tuple[object, Tensor | None] = (None, None)
        self.match: tuple[object, Short | None] = (None, None)
        self.cache: dict[object, Tensor] = {}

    def attention(self, at: Site, normed_BNC: Tensor) -> Short | None:
        self.metric = (at.key, at.step), normed_BNC
        if self._protected(at):
            return self._recorder(at, normed_BNC)
        return self._fused(at, self._structure(at, normed_BNC)) if self._forms(at) else None

    def feed_forward(self, at: Site, normed_BNC: Tensor) -> Short | None:
        if self._protected(at):
            return self._recorder(at, normed_BNC)
        if self._forms(at):
            return self._fused(at, self._structure(at, normed_BNC))
        made_for, metric_BNC = self.metric
        if made_for != (at.key, at.step) or metric_BNC is None:  # where it runs beside attention
            metric_BNC = normed_BNC
        (h, w), stale = at.tokens.grid, self.staleness.get(at.branch)
        match, stale = sdtm.match_detail(
            metric_BNC, h, w, removed=self._removed(at), staleness=stale
        )
        self.staleness[at.branch] = stale
        return self._fused(at, match)

    def text_count(self, at: Site) -> float:
        return self.method.emphasis if self._forms(at) else 1.0

    def _structure(self, at: Site, normed_BNC: Tensor) -> Short:
        made_for, match = self.match
        if made_for != (at.key, at.step) or match is None:
            (h, w), stale = at.tokens.grid, self.staleness.get(at.branch)
            match, stale = sdtm.match_structure(
                normed_BNC, h, w, removed=self._removed(at), staleness=stale,
                weight=self.method.staleness,
            )  # fmt: skip
            self.staleness[at.branch] = stale
            self.match = (at.key, at.step), match
        return match

    def _protected(self, at: Site) -> bool:
        return self.method.protect > 0 and at.step % self.method.protect == 0

    def _forms(self, at: Site) -> bool:
        return at.step < self.method.structure * at.steps

    def _removed(self, at: Site) -> int:
        schedule = sdtm.ratio_schedule(self.method.ratio, self.method.deviation, at.steps)
        return int(schedule[at.step] * at.tokens.count + 1e-9)

    def _recorder(self, at: Site, x_BNC: Tensor) -> Short | None:
        if not self.method.cached:
            return None
        B, N, _ = x_BNC.shape
        all_BN = torch.arange(N, device=x_BNC.device).expand(B, -1)
        return Recorder(match_targets(all_BN, N), self.cache, (at.key, at.part))

    def _fused(self, at: Site, match: Short) -> Short:
        stale_BN, kept = self.staleness[at.branch], self.cache.get((at.key, at.part))
        if not self.method.cached or kept is None or stale_BN is None:
            return match
        return Fused(match, kept, stale_BN > 0, self.method.cached)


@dataclass(frozen=True, eq=False)
class Recorder:
    """Merges nothing, and keeps what comes out: see `Short`."""

    match: Match
    cache: dict[object, Tensor]
    key: object

    @property
    def home_BM(self) -> Tensor:
        return self.match.home_BM

    @property
    def count_BM(self) -> Tensor:
        return torch.ones_like(self.match.home_BM, dtype=torch.float32)

    def merge(self, x_BNC: Tensor) -> Tensor:
        return x_BNC

    def unmerge(self, y_BMC: Tensor) -> Tensor:
        self.cache[self.key] = y_BMC
        return y_BMC


@dataclass(frozen=True, eq=False)
class Fused:
    """A match whose merged tokens come back blended with an earlier output: see `Short`.

    As the released code has it, destinations are blended like the rest, in the detail stage even
    those that took in no other. There the outputs are kept after their gate; here before it.
    """

    match: Short
    cached_BNC: Tensor
    merged_BN: Tensor
    share: float

    @property
    def home_BM(self) -> Tensor:
        return self.match.home_BM

    @property
    def count_BM(self) -> Tensor:
        return self.match.count_BM

    def merge(self, x_BNC: Tensor) -> Tensor:
        return self.match.merge(x_BNC)

    def unmerge(self, y_BMC: Tensor) -> Tensor:
        whole_BNC = self.match.unmerge(y_BMC)
        blend_BNC = torch.lerp(whole_BNC, self.cached_BNC, self.share)
        return torch.where(self.merged_BN[..., None], blend_BNC, whole_BNC)
