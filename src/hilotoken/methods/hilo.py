"""HiLo-Token: run the tokens in and near the mask, those of fine detail, and a coarse copy.

arXiv 2606.13898. What the paper leaves open (the score, the counts, the dilation, the positions) is
an option here. B batch, N grid tokens, K native tokens that run, M coarse tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checks import SEED, SIDE, choice, flag, settle, share, unless_none, whole
from ..grid import dilate, touch
from ..method import Method
from ..plan import POSITIONS, REFERENCES, TokenPlan, cells_of
from ..scores import SCORES, ScoreSpec, check_score, score
from .find import Find, as_find
from .refresh import Refresh, refreshed

CONTEXTS = ("frequency", "sampled")
COARSE_CELLS = ("open", "clear", "all")


@dataclass(frozen=True)
class HiLo(Method):
    """The paper's selection; `HiLo(context="sampled")` is ours, the context sampled evenly.

    None stands for what the other options make of it; an option without effect is refused.

    dilate:     tokens by which the mask is grown: 2 unless given, and 0 with `find`, which grows
                the region itself
    detail:     share of the grid kept outside the mask for its detail, the best first; 0.10 unless
                `energy` is given
    energy:     instead of `detail`: keep the fewest tokens that hold this share of the detail
                outside the mask, so that a busy photo gets more tokens than a plain one
    score:      what detail means: a name, or a mapping of names to weights, of `scores.SCORES`; or
                "random", the control that every score must beat
    coarse:     side of a coarse cell in tokens (4: one coarse token for 16); 0 for none.
                Unless given, 4, and 0 with sampled context
    coarse_cells: "open" (the default) leaves out cells whose tokens all run anyway, "clear" also
                those the mask touches, "all" none
    positions:  where coarse tokens sit: "interpolated" (the default), "aligned" or "native"
    context:    "frequency" (detail and coarse tokens), or "sampled": besides the detail tokens, one
                native token at random from each cell
    cell:       side of a sampled cell in tokens; 2 unless given
    weights:    proportional attention: add log(count), of the tokens each stands for, to the
                attention logits of its key. Unless given, with sampled context: measured, it helps
                there and not with coarse
    references: "compressed": a reference that is the photo itself (Kontext, Qwen-Image-Edit,
                FLUX.2) is shortened by the same plan; "whole": it is not
    refresh:    context computed seldom, its keys and values kept between: a `Refresh`, or in short
                its `at`: a count of steps, the steps themselves, or "auto". None: at every step
    find:       no mask is given: the region is found during the run, see `Find`; True, or a number
                of dense steps, for short. The whole context runs then, at three steps unless
                `refresh` says otherwise, counted from the last dense step
    bucket:     the length is rounded up to a multiple of this with the next-best detail tokens
    seed:       of the random choices

    Raises:
        ValueError: an option out of range or without effect, at construction.
    """

    dilate: int | None = None
    detail: float | None = None
    energy: float | None = None
    score: str | Mapping[str, float] = "laplacian"
    coarse: int | None = None
    coarse_cells: str | None = None
    positions: str | None = None
    context: str = "frequency"
    cell: int | None = None
    weights: bool | None = None
    references: str = "compressed"
    refresh: Refresh | int | Sequence[int] | str | None = field(
        default=None, metadata={"options": Refresh}
    )
    bucket: int = 64
    seed: int = 0
    find: Find | int | None = field(default=None, metadata={"options": Find})

    def __post_init__(self) -> None:
        settle(
            self,
            dilate=unless_none(whole(0, SIDE)),
            detail=unless_none(share()),
            energy=unless_none(share()),
            score=_score,
            coarse=unless_none(whole(0, SIDE)),
            coarse_cells=unless_none(choice(*COARSE_CELLS)),
            positions=unless_none(choice(*POSITIONS)),
            context=choice(*CONTEXTS),
            cell=unless_none(whole(1, SIDE)),
            weights=unless_none(flag),
            references=choice(*REFERENCES),
            refresh=refreshed,
            bucket=whole(1),
            seed=whole(0, SEED),
            find=as_find,
        )
        if self.find is not None:
            self._find_by_the_whole()
        self._unless_given("dilate", 2)
        if self.coarse == 1:
            raise ValueError("coarse=1 would copy every token: use 2 or more, or 0 for none")
        sampled = self.context == "sampled"
        self._unless_given("coarse", 0 if sampled else 4)
        self._check_effects(sampled)
        self._unless_given("detail", 0.10 if self.energy is None else None)
        self._unless_given("weights", sampled)
        self._unless_given("cell", 2 if sampled else None)
        self._unless_given("coarse_cells", "open" if self.coarse else None)
        self._unless_given("positions", "interpolated" if self.coarse else None)

    def _unless_given(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _find_by_the_whole(self) -> None:
        """A region is found, and tokens join it, where all of them are looked at."""
        whole_context = {"detail": 1.0, "coarse": 0, "context": "frequency", "score": "laplacian"}
        for name, value in whole_context.items():
            self._unless_given(name, value)
            if (given := getattr(self, name)) != value:
                raise ValueError(
                    f"{name}={given!r} chooses context, and find looks at all of it: leave out one "
                    "of the two"
                )
        self._unless_given("dilate", 0)
        if self.dilate:
            raise ValueError(f"dilate={self.dilate} grows a mask: give Find(grow={self.dilate})")
        self._unless_given("refresh", Refresh(3))

    def _check_effects(self, sampled: bool) -> None:
        """Refuse options that do nothing, or cannot do what they say, beside the others."""
        if self.detail is not None and self.energy is not None:
            raise ValueError(
                f"detail={self.detail:g} and energy={self.energy:g} both say how many detail "
                "tokens run: give one of them"
            )
        if self.cell is not None and not sampled:
            raise ValueError(
                f"cell={self.cell} is of sampled context: leave it out, or give context='sampled'"
            )
        for name in ("coarse_cells", "positions"):
            if getattr(self, name) is not None and not self.coarse:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is of coarse tokens, and there are none: "
                    "leave it out, or give coarse=4"
                )
        if self.weights and not self.coarse and not sampled:
            raise ValueError(
                "weights=True counts tokens for those they stand for, and without coarse tokens "
                "or sampled context each stands for itself: leave it out"
            )
        if self.refresh is not None and self.positions == "aligned":
            raise ValueError("refresh keeps one set of keys, and positions='aligned' has two")

    @property
    def alike(self) -> bool:
        return self.refresh is None

    @property
    def adaptive(self) -> bool:
        return isinstance(self.refresh, Refresh) and self.refresh.at == "auto"

    @property
    def unnested(self) -> str:
        if self.refresh is not None:
            return "refresh keeps keys and values of blocks as they are"
        if self.weights:
            return "weights=True is for the inner one alone, where keys merge last"
        if self.positions == "aligned":
            return "positions='aligned' attends twice: use 'interpolated'"
        return ""

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        """Plan from a photo in [0, 1] and its mask; a batch shares the union of its masks."""
        touched_BN = touch(mask_B1HW, grid)
        if self.score == "random":
            score_N = torch.rand(
                grid[0] * grid[1], generator=self._generator(), dtype=torch.float32
            )
        else:
            score_BN = score(photo_B3HW, grid, self.score)
            # Photos of a batch weigh alike, however busy each is.
            score_N = (score_BN / score_BN.mean(1, keepdim=True).clamp_min(1e-12)).mean(0)
        return self.select(score_N, touched_BN.any(0), grid)

    def select(self, score_N: Tensor, touched_hw: Tensor, grid: tuple[int, int]) -> TokenPlan:
        """Plan from a score for every token and the tokens that the mask touches."""
        score_N, touched_N = score_N.cpu(), touched_hw.flatten().cpu()
        edit_N = dilate(touched_hw[None].cpu(), self.dilate or 0).flatten()
        # Stable, so that equal scores are settled by the place, the same on every machine.
        rank_N = score_N.masked_fill(edit_N, -1).argsort(descending=True, stable=True)
        certain_N = edit_N.clone()
        certain_N[rank_N[: self._detail_count(score_N, edit_N)]] = True
        while True:
            # What fills the bucket is certain too, and so chosen before context is sampled: added
            # after it, it would leave the token drawn from its cell too large a weight.
            sampled_N = self._sample(~certain_N, grid)
            runs_N = certain_N | sampled_N
            cells_M = self._coarse_cells(runs_N, touched_N, grid)
            length = int(runs_N.sum()) + len(cells_M)
            spare_R = rank_N[~certain_N[rank_N]][: -length % self.bucket]
            if not len(spare_R):
                break
            certain_N[spare_R] = True  # a cell filled up by this needs no token any more
        if length >= len(runs_N):
            runs_N[:], cells_M = True, cells_M[:0]
        return TokenPlan(
            grid=grid,
            keep_K=runs_N.nonzero().flatten(),
            edit_N=edit_N,
            stride=self.coarse or 0,
            cells_M=cells_M,
            count_S=self._counts(runs_N, sampled_N, cells_M, grid),
            positions=self.positions or POSITIONS[0],
            weighted=bool(self.weights),
            references=self.references,
        )

    def _detail_count(self, score_N: Tensor, edit_N: Tensor) -> int:
        outside = int((~edit_N).sum())
        if self.detail is not None:
            return min(outside, round(self.detail * len(score_N)))
        assert self.energy is not None
        falling = score_N[~edit_N].double().sort(descending=True).values.cumsum(0)
        if not outside or falling[-1] <= 0:
            return 0
        # The rounding of a long sum must not ask for the last token of an energy of 1 twice.
        short = falling < self.energy * falling[-1] * (1 - 1e-12)
        return min(outside, int(short.sum()) + (self.energy > 0))

    def _sample(self, open_N: Tensor, grid: tuple[int, int]) -> Tensor:
        """One token at random of those in each cell that have no certain place: bool [N]."""
        if self.context != "sampled":
            return torch.zeros_like(open_N)
        # A permutation draws no number twice, so one token wins in every cell.
        draw_N = torch.randperm(len(open_N), generator=self._generator()).masked_fill(~open_N, -1)
        cell_N = cells_of(grid, self.cell or 1)
        best = torch.full((int(cell_N[-1]) + 1,), -1).scatter_reduce(0, cell_N, draw_N, "amax")
        return open_N & (draw_N == best[cell_N])

    def _coarse_cells(self, runs_N: Tensor, touched_N: Tensor, grid: tuple[int, int]) -> Tensor:
        if not self.coarse:
            return torch.arange(0)
        cell_N = cells_of(grid, self.coarse)
        wanted = torch.ones(int(cell_N[-1]) + 1, dtype=torch.bool)
        if self.coarse_cells != "all":
            wanted = torch.zeros_like(wanted).index_put((cell_N[~runs_N],), torch.tensor(True))
        if self.coarse_cells == "clear":
            wanted[cell_N[touched_N]] = False
        return wanted.nonzero().flatten()

    def _counts(
        self, runs_N: Tensor, sampled_N: Tensor, cells_M: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """How many tokens each stands for: itself, and those that were dropped in its cell.

        Coarse tokens stand for the dropped tokens of their cell; without them, the sampled token
        does. What is kept for certain stands for itself (Horvitz and Thompson 1952).
        """
        side = self.coarse if len(cells_M) else self.cell
        cell_N = cells_of(grid, side or 1)
        zeros = torch.zeros(int(cell_N[-1]) + 1, dtype=torch.float32)
        dropped = zeros.index_add(0, cell_N, (~runs_N).float())
        if len(cells_M):
            native = torch.ones(int(runs_N.sum()), dtype=torch.float32)
            return torch.cat([native, dropped[cells_M].clamp_min(1)])
        return (1 + sampled_N * dropped[cell_N])[runs_N]

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def _score(name: str, value: Any) -> ScoreSpec:
    """Check that it names a score, or mixes several: see `checks`."""
    if not isinstance(value, Mapping):
        return choice(*sorted((*SCORES, "random")))(name, value)
    check_score(value)
    return {str(one): float(weight) for one, weight in value.items()}
