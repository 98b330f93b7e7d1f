"""The context's keys and values, lent by one edit of a photo to another.

What an edit kept at each refresh (see `reuse`) serves an edit under another mask too, for those
tokens that are context both times and were the same when the run began. The rest is computed. It is
not exact: the context was computed beside the edit tokens of another mask, or of another noise.

B batch, S image tokens of the short sequence, X of them context, L of those lent, M of those
computed, N tokens of the target's grid, C channels of x_t, D of a token and its source.
"""

import itertools
import warnings
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters.base import ShortCall
from .hooks import Call
from .kv_store import taken
from .memory import Key, Memory, bytes_of, fingerprint, weights_of

KIND = "context"
IMAGE = ("hidden_states", "x")  # the arguments that hold the image's tokens; the rest are words
# Of the tokens' spread: by less an autoencoder that looks at the whole picture moves all of it
# when the mask moves. Another noise moves a token by 1.4.
SAME = 0.1
_NUMBERS = itertools.count()  # tell contexts of one kind apart

Kept = dict[int, tuple[Tensor, ...]]  # keys and values by attention module: see `reuse`


@dataclass(eq=False)
class Context:
    """What an edit kept of its context at every refresh.

    names_X:   which tokens, see `names_of`, in the order in which they are kept
    rows_BXD:  what they were when the run began
    refreshes: by step and branch of guidance the words that it attended to, and what was kept
    """

    names_X: Tensor
    rows_BXD: Tensor
    refreshes: dict[tuple[int, int], tuple[bytes, Kept]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Lending:
    """Where the edits of a session lend to each other.

    memory: of contexts
    keep:   whether an edit's own context is kept for others
    device: where contexts wait, if not where they were made
    variations: the memory is of one photo and one mask alone, and the noise may be another
    """

    memory: Memory
    keep: bool = True
    device: str | None = None
    variations: bool = False


@dataclass(frozen=True, eq=False)
class Opened:
    """What a session brings to an edit: what was encoded, and, where it is lent, context."""

    memory: Memory
    lending: Lending | None = None


class Loan:
    """One run's: what is lent to it, and what it keeps for others.

    context_X: the context's places in the short sequence: those lent, then those computed
    part:      the short call of a refresh, without what is lent; None where nothing is
    lent, asked: context tokens at the refreshes so far: those lent, and all
    """

    def __init__(
        self, lending: Lending, short: ShortCall, call: Call, sigma: float, key: Key
    ) -> None:
        self.lending, self.short = lending, short
        self.context_X = (~short.edited_S).nonzero().flatten()
        self.part: ShortCall | None = None
        self.lent = self.asked = 0
        self._lender = self._own = None
        self._under_way: tuple[tuple[int, int], bytes | None] = (0, 0), None
        words, names_S = _words(call), names_of(short)
        if words is None:
            return
        layout = tuple((span.start, span.stop, span.short) for span in short.spans)
        weights = weights_of(short.family.model)
        self.key: Key = (KIND, *key, words, layout, short.plan.grid, weights)
        rows_BSD = _beginning(short, call, sigma)
        self._borrow(names_S, rows_BSD)
        if lending.keep:
            rows_BXD = rows_BSD[:, self.context_X]
            self._own = Context(self._put(names_S[self.context_X]), self._put(rows_BXD))

    def lend(self, step: int, branch: int, call: Call) -> Kept | None:
        """What is lent at this refresh; None where all of the context is to be computed."""
        words = _words(call)
        self._under_way = (step, branch), words
        self.asked += len(self.context_X)
        found = self._lender.refreshes.get((step, branch)) if self._lender else None
        if found is None or found[0] != words:
            return None
        self.lent += len(self.lent_L)
        return found[1]

    def rows(self, kept: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
        """Of what a module of the lender kept: the text, and what is lent."""
        assert self._lender is not None
        text = kept[0].shape[1] - len(self._lender.names_X)
        rows = torch.cat([torch.arange(text, device=device), text + self.lent_L])
        return taken(tuple(x.to(device) for x in kept), rows)

    def keep(self, kept: Kept) -> None:
        """Note what the refresh under way left; too much for the memory is not kept at all."""
        at, words = self._under_way
        if self._own is None or words is None:
            return
        copied = {module: tuple(self._put(x) for x in parts) for module, parts in kept.items()}
        self._own.refreshes[at] = words, copied
        size, limit = bytes_of(self._own), self.lending.memory.limit
        if limit is not None and size > limit:
            self._own = None
            warnings.warn(
                f"the context takes {size / 2**20:.0f} MiB and more, and a memory of "
                f"{limit / 2**20:.0f} MiB is left: it is not kept for other edits; open the photo "
                "with more memory, or refresh in eight bits",
                stacklevel=2,
            )

    def settle(self) -> None:
        """The run ended well: what it kept is for others now."""
        if self._own and self._own.refreshes:
            self.lending.memory.put((*self.key, next(_NUMBERS)), self._own)

    def _put(self, x: Tensor) -> Tensor:
        return x.to(self.lending.device) if self.lending.device else x

    def _borrow(self, names_S: Tensor, rows_BSD: Tensor) -> None:
        """Find the context that can lend most, and what is left to compute."""
        most, shared_S, lender = 0, None, None
        for key, other in self.lending.memory.of_kind(KIND):
            if key[:-1] == self.key and other.rows_BXD.shape[::2] == rows_BSD.shape[::2]:
                at_S = self._places(names_S, rows_BSD, other)
                count = int((at_S[self.context_X] >= 0).sum())
                if count > most:
                    most, shared_S, lender = count, at_S, other
        if shared_S is None:
            return
        lent_X = shared_S[self.context_X] >= 0
        part = _part(self.short, names_S[self.context_X[~lent_X]])
        if part is None:
            return
        runs_X = torch.isin(names_S[self.context_X], names_of(part))
        self.lent_L = shared_S[self.context_X[~runs_X]]
        self.context_X = torch.cat([self.context_X[~runs_X], self.context_X[runs_X]])
        self.part, self._lender = part, lender
        computed_M = names_S[self.context_X[len(self.lent_L) :]]
        place = torch.empty(int(names_S.max()) + 1, dtype=torch.long, device=names_S.device)
        place[names_of(part)] = torch.arange(len(part.counts_S), device=names_S.device)
        self.computed_M = place[computed_M]  # their places among the part's tokens

    def _places(self, names_S: Tensor, rows_BSD: Tensor, other: Context) -> Tensor:
        """Where each token is in another's context; -1 where it is not, or was something else."""
        names_X, rows_BXD = other.names_X.to(names_S.device), other.rows_BXD.to(rows_BSD.device)
        size = int(torch.cat([names_S, names_X]).max()) + 1
        place = names_S.new_full((size,), -1)
        place[names_X] = torch.arange(len(names_X), device=names_S.device)
        at_S = place[names_S]
        if self.lending.variations:
            return at_S
        now, then = rows_BSD, rows_BXD[:, at_S.clamp_min(0)]
        spread = rows_BSD.square().mean().sqrt()
        moved_S = (now - then).square().mean(-1).sqrt().amax(0)
        return at_S.where(moved_S <= SAME * spread, -1)


def names_of(short: ShortCall) -> Tensor:
    """Which tokens those of a short sequence are: numbers, the same in every plan, [S].

    From twice the start of its span on, a native token's place, or the grid's tokens and its cell.
    """
    plan = short.plan
    short_S = torch.cat([plan.keep_K, plan.tokens_full + plan.cells_M])
    whole = lambda span: torch.arange(span.length, device=short_S.device)  # noqa: E731
    return torch.cat([2 * s.start + (short_S if s.short else whole(s)) for s in short.spans])


def _part(short: ShortCall, names_M: Tensor) -> ShortCall | None:
    """The short call in which the edit tokens run, and these; None where that is not possible."""
    if not len(names_M):
        return short.edit_alone()
    runs_N, left = short.plan.edit_N.clone(), len(names_M)
    for span in short.spans:
        place_M = names_M - 2 * span.start
        native_M = (place_M >= 0) & (place_M < short.plan.tokens_full)
        if span.short:
            runs_N[place_M[native_M]] = True
            left -= int(native_M.sum())
    part = short.part(runs_N) if not left else None  # else some are coarse, or of another picture
    return part if part and len(part.counts_S) < len(short.counts_S) else None


def _beginning(short: ShortCall, call: Call, sigma: float) -> Tensor:
    """The short sequence, and beside each of the target's tokens the clean one: [B, S, D]."""
    rows_BSD = short.tokens(call, sigma).float()
    clean_BSC = short.rows(short.source.for_batch(len(rows_BSD)).float())
    return torch.cat(
        [rows_BSD, F.pad(clean_BSC, (0, 0, 0, rows_BSD.shape[1] - clean_BSC.shape[1]))], -1
    )


def _words(call: Call) -> bytes | None:
    """Stands for all that is in a call besides the image: prompt, guidance, time, places."""
    return fingerprint({name: value for name, value in call.items() if name not in IMAGE})
