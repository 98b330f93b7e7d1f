"""A short call: one plan on one call of a transformer, and every table derived from the two.

How a call is shortened and its answer put back, as far as all families share it. A reference on the
target's own grid is shortened by the same plan.

B batch, T image tokens of a call, N of the target's grid, K native tokens that run, M coarse
tokens, S tokens of the short sequence, C channels of x_t, D channels a token, A axes of a place.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import nearest_outside
from ..hooks import Call, Made
from ..plan import TokenPlan, gather, token_positions
from ..source import Source
from .coarse import Coarse, cell_means
from .family import Family


@dataclass(frozen=True)
class Span:
    """Image tokens `start` to `stop` of the sequence, on a grid (h, w)."""

    start: int
    stop: int
    grid: tuple[int, int]
    short: bool  # whether the plan shortens it

    @property
    def length(self) -> int:
        return self.stop - self.start


class ShortCall:
    """A plan at work. Made once for a plan; another plan is another short call.

    beside_BND: what the target's tokens have in their channels besides x_t
    counts_S:   how many tokens each of the short sequence stands for: float32
    filler:     how many of the native tokens, the last ones, run to fill up the length alone: no
                token attends to them, and their answer is let go
    ran:        image tokens that the last call was seen to run on
    """

    def __init__(
        self,
        family: Family,
        plan: TokenPlan,
        source: Source,
        spans: list[Span],
        beside_BND: Tensor,
        coarse: Coarse | None = None,
    ) -> None:
        self.family, self.plan, self.source = family, plan, source
        self.spans, self.beside_BND, self.coarse = spans, beside_BND, coarse
        counts = plan.count_S
        whole = [counts if span.short else counts.new_ones(span.length) for span in spans]
        self.counts_S = torch.cat(whole)
        self.ran = self.filler = 0
        self._placed = Made()

    @classmethod
    def of(
        cls, family: Family, plan: TokenPlan, source: Source, mask_B1HW: Tensor, call: Call
    ) -> "ShortCall":
        """The short call of a plan, in a run whose calls are like `call`."""
        latents_BNC = source.latents_BNC
        plan = plan.to(latents_BNC.device)
        tokens_BTD = family.tokens(call)
        spans = _spans(family, plan, latents_BNC, tokens_BTD, family.grids(call))
        beside_BND = tokens_BTD[:, : plan.tokens_full, latents_BNC.shape[-1] :]
        made = cls(family, plan, source, spans, beside_BND)
        if len(plan.cells_M):
            made.coarse = made._encode_coarse(mask_B1HW)
        return made

    def edit_alone(self, bucket: int = 1) -> "ShortCall":
        """The same with the edit tokens alone: no context, no coarse tokens, no references.

        Their number is filled up to a multiple of `bucket` by the tokens around them.
        """
        alone = self.part(self.plan.edit_N, references=False)
        plan, edited = alone.plan, len(alone.plan.keep_K)
        ring = nearest_outside(plan.edit_N.view(plan.grid), -edited % bucket).to(plan.keep_K)
        if not len(ring):
            return alone
        keep_K = torch.cat([plan.keep_K, ring])
        count_S = torch.cat([plan.count_S, plan.count_S.new_ones(len(ring))])
        plan = replace(plan, keep_K=keep_K, count_S=count_S)
        filled = type(self)(self.family, plan, self.source, alone.spans, self.beside_BND)
        filled.filler = len(ring)
        return filled

    def part(self, runs_N: Tensor, references: bool = True) -> "ShortCall":
        """The same with those of its native tokens alone that are in `runs_N`.

        references: whether they run too that the plan shortens, at the same places
        """
        plan, device = self.plan, self.plan.keep_K.device
        runs_K = runs_N[plan.keep_K]
        fewer = replace(
            plan,
            keep_K=plan.keep_K[runs_K],
            cells_M=torch.arange(0, device=device),
            count_S=plan.count_S[: len(runs_K)][runs_K],
            weighted=False,
        )
        none = lambda span: Span(span.stop, span.stop, (0, 0), False)  # noqa: E731
        target, *others = self.spans
        spans = [target, *(s if references and s.short else none(s) for s in others)]
        return type(self)(self.family, fewer, self.source, spans, self.beside_BND)

    # What a plan comes to, for each token of the short sequence.

    @cached_property
    def coarse_S(self) -> Tensor:
        """Which are coarse: bool."""
        flags = []
        short = [False] * len(self.plan.keep_K) + [True] * len(self.plan.cells_M)
        for span in self.spans:
            flags += short if span.short else [False] * span.length
        return torch.tensor(flags, device=self.plan.keep_K.device)

    @cached_property
    def places_S(self) -> Tensor:
        """The place of each in the whole sequence; -1 for a coarse one."""
        plan, device = self.plan, self.plan.keep_K.device
        coarse_M = torch.full_like(plan.cells_M, -1)
        return torch.cat(
            [
                torch.cat([span.start + plan.keep_K, coarse_M])
                if span.short
                else torch.arange(span.start, span.stop, device=device)
                for span in self.spans
            ]
        )

    @cached_property
    def coarse_rows(self) -> Tensor:
        """Where the coarse ones are: int64."""
        return self.coarse_S.nonzero().flatten()

    @cached_property
    def edited_S(self) -> Tensor:
        """Which are edited: bool."""
        edited_S = torch.zeros_like(self.counts_S, dtype=torch.bool)
        edited_S[: len(self.plan.keep_K)] = self.plan.edit_N[self.plan.keep_K]
        return edited_S

    @property
    def weighted(self) -> bool:
        """Whether keys count for the tokens they stand for."""
        return self.plan.weighted

    @property
    def aligned(self) -> bool:
        """Whether coarse queries see all keys on their own stride."""
        return self.plan.positions == "aligned" and self.coarse is not None

    @property
    def inside(self) -> tuple[bool, bool]:
        """What it needs inside the transformer: see `Family.stand_ins`."""
        return self.weighted, self.aligned

    # The call, shorter, and its answer, whole again.

    def shorten(self, call: Call, sigma: float) -> Call:
        """The call with only the tokens that run."""
        tokens_BTD = self.family.tokens(call)
        self.check_length(tokens_BTD.shape[1])
        short_BSD = self.tokens(call, sigma)
        self.ran = short_BSD.shape[1]
        return call | {"hidden_states": short_BSD} | self.placed(call)

    def tokens(self, call: Call, sigma: float) -> Tensor:
        """The tokens that run, [B, S, D]."""
        tokens_BTD = self.family.tokens(call)
        parts = [self._short(tokens_BTD, span, sigma) for span in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def placed(self, call: Call) -> Call:
        """The arguments that say where tokens sit."""
        name = self.family.ids_name
        ids = call[name]

        def make() -> Tensor:
            return torch.cat([self.short_ids(ids, span) for span in self.spans], -2)

        return {name: self._placed.of((ids,), make)}

    def restore(self, velocity_BSC: Tensor, call: Call, sigma: float) -> Tensor:
        """The velocity of the whole target. A dropped token follows the source.

        v = (x_t - x0) / sigma lands it on x0; without noise it is there already.
        """
        x_BNC = self.x_t(call, velocity_BSC.shape[-1]).float()
        fill_BNC = x_BNC - self.source.for_batch(len(x_BNC)).float()
        fill_BNC = fill_BNC / sigma if sigma else torch.zeros_like(fill_BNC)
        fill_BNC = fill_BNC.to(velocity_BSC.dtype)
        answered_K = self._answered_K
        return fill_BNC.index_copy_(1, answered_K, _cut(velocity_BSC, len(answered_K)))

    @cached_property
    def _answered_K(self) -> Tensor:
        return self.plan.keep_K[: len(self.plan.keep_K) - self.filler]

    def check_ran(self) -> None:
        """Raise RuntimeError where the last call was seen to run on other tokens than planned."""
        if self.ran != len(self.counts_S):
            raise RuntimeError(
                f"the transformer ran on {self.ran} tokens where {len(self.counts_S)} were "
                "planned: compiled code passed over what shortens its sequence; compile it by "
                "compile_repeated_blocks, or not at all"
            )

    def x_t(self, call: Call, channels: int | None) -> Tensor:
        """The noisy tokens of the target, [B, N, C]; all that is in their channels without C."""
        return _cut(self.family.tokens(call), self.plan.tokens_full, channels)

    def rows(self, rows_BND: Tensor) -> Tensor:
        """What belongs to each token of the target's grid, for the tokens that run: [B, S, D]."""
        short = gather(rows_BND, self.plan)
        return torch.cat([short, cell_means(rows_BND, self.plan)], 1) if self.coarse else short

    def short_ids(self, ids: Tensor, span: Span) -> Tensor:
        """The places [..., T, A] of a span's short sequence; axes 1 and 2 are row and column."""
        ids = ids[..., span.start : span.stop, :]
        if not span.short:
            return ids.float() if self.coarse else ids
        kept = ids.index_select(-2, self.plan.keep_K)
        if not self.coarse:
            return kept
        # float32: integers and bfloat16 cannot hold the half of a coarse place
        extra = F.pad(self.coarse_places, (1, ids.shape[-1] - 3))
        return torch.cat([kept.float(), ids[..., :1, :].float() + extra], -2)

    @cached_property
    def coarse_places(self) -> Tensor:
        """Row and column of every coarse token, in units of native ones: [M, 2]."""
        return token_positions(self.plan)[len(self.plan.keep_K) :]

    def condition(self, masked_BmC: Tensor, mask_B1HW: Tensor) -> Tensor:
        """What the coarse tokens have in their channels besides x_t, [B, M, D].

        Of the downsampled photo without what the mask covers, and the downsampled mask, each cell
        of the grid a token.
        """
        return cell_means(self.beside_BND, self.plan)

    def check_length(self, tokens: int) -> None:
        """Raise ValueError for a call of another length than the one that was planned for."""
        if tokens != (whole := self.whole_length):
            raise ValueError(
                f"the transformer was given {tokens} tokens, but the photo's grid of "
                f"{self.plan.grid} has {whole}: this use is not supported"
            )

    @property
    def whole_length(self) -> int:
        """Image tokens of a whole call, references included."""
        return self.spans[-1].stop

    def _short(self, tokens_BTD: Tensor, span: Span, sigma: float) -> Tensor:
        whole = span.length == tokens_BTD.shape[1]
        tokens_BnD = tokens_BTD if whole else tokens_BTD[:, span.start : span.stop]
        if not span.short:
            return tokens_BnD
        if span.start > 0:  # clean: what is averaged is the photo, not its noise
            return self.rows(tokens_BnD)
        short_BKD = gather(tokens_BnD, self.plan)
        if not self.coarse:
            return short_BKD
        x_BNC = _cut(tokens_BnD, span.length, self.source.latents_BNC.shape[-1])
        return torch.cat([short_BKD, self.coarse.tokens(x_BNC, sigma).to(short_BKD.dtype)], 1)

    def _encode_coarse(self, mask_B1HW: Tensor) -> Coarse:
        def encode(photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
            return self.family.encode_tokens(photo_B3HW, generator).to(self.source.latents_BNC)

        fold = self.family.latents_a_side
        return Coarse.encode(self.plan, self.source, mask_B1HW, encode, self.condition, fold)


def _cut(x_BTD: Tensor, tokens: int, channels: int | None = None) -> Tensor:
    """The first tokens and channels; without the time that a view takes where those are all."""
    if x_BTD.shape[1] != tokens:
        x_BTD = x_BTD[:, :tokens]
    return x_BTD if channels in (None, x_BTD.shape[2]) else x_BTD[..., :channels]


def _spans(
    family: Family,
    plan: TokenPlan,
    latents_BNC: Tensor,
    tokens_BTD: Tensor,
    grids: list[tuple[int, int]],
) -> list[Span]:
    spans, start = [], 0
    for i, grid in enumerate(grids):
        stop = start + grid[0] * grid[1]
        short = i == 0 or (
            grid == plan.grid
            and plan.references == "compressed"
            and _is_source(tokens_BTD[:, start:stop], latents_BNC)
        )
        spans.append(Span(start, stop, grid, short))
        start = stop
    return spans


def _is_source(tokens_BnC: Tensor, latents_BNC: Tensor) -> bool:
    """Whether a reference is the photo that is edited, and not another picture."""
    like = latents_BNC[:1]
    reference = tokens_BnC[:1, :, : like.shape[-1]].to(like)
    return torch.allclose(reference, like, rtol=1e-2, atol=1e-2)  # a cast to bfloat16 may pass
