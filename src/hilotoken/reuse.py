"""Context computed seldom, its keys and values (a KV cache) reused between.

The photo outside the mask does not change during an edit, and its keys and values drift little from
step to step. At a *refresh* the whole plan runs and every attention module keeps the keys and
values of the context: of all tokens that are not edited, references included. At the steps between,
the edit tokens run alone and attend to what was kept. LazyDiffusion (arXiv 2404.12382) trained a
model for this; here any model does it, from the first step.

B batch, S image tokens of the short sequence, X of them context, L text tokens, H heads, D channels
a head.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters.base import ShortCall
from .attention import Weighted, rerouted
from .hooks import Call, any_compiled, compiling
from .kv_store import Kept, check_fits, in_blocks, into, kept_bytes, restored, stored, taken
from .lending import Loan
from .methods.refresh import Refresh, check_shown, refresh_steps
from .replay import Replay, recorder_for


@dataclass(eq=False)
class Branch:
    """What was kept from one branch of guidance, for each attention module by its id."""

    signature: tuple[Any, ...]
    kept: dict[int, Kept] = field(default_factory=dict)


class Reuse:
    """Two short calls of one run, in turn: the whole plan at a refresh, its edit alone between.

    refreshed: the steps that were refreshes
    start:     the step from which they are counted

    Raises:
        ValueError: what the family or the pipeline cannot do with it.
        MemoryError: less memory free on the device than the keys and values will take.
    """

    def __init__(
        self, run: Any, refresh: Refresh, short: ShortCall, loan: Loan | None = None
    ) -> None:
        transformer = run.transformer
        if cache := _step_cache_of(transformer):
            raise ValueError(
                "refresh changes the sequence from step to step, which a step cache cannot follow: "
                f"call {cache}, or give a method without it, such as HiLo()"
            )
        self.run, self.refresh, self.family = run, refresh, run.family
        # The others attend as ever: at the steps between, edit tokens to themselves and to text.
        self.attentions = self.family.attentions()
        self.modules = in_blocks(self.family.model, self.attentions, refresh.blocks)
        # Compiled code finds what was kept on the module: one graph then serves all blocks.
        self.compiled = any_compiled(transformer)
        self.branches: dict[int, Branch] = {}
        device = short.source.latents_BNC.device
        self.recorder = recorder_for(transformer, device) if refresh.capture else None
        self.replays: dict[int, Replay] = {}  # by branch
        self.refreshed: list[int] = []
        self.start = 0
        self.refreshing, self.due = True, True
        self.kept: dict[int, Kept] = {}  # of the branch under way
        self.rows_X = torch.arange(0)  # of the refresh under way, see `_rows_kept`
        self.lent: dict[int, Kept] | None = None  # of the refresh under way, by another edit
        self.take(short)
        if loan:
            self.loan, self.context_X = loan, loan.context_X
            self.counts_X = self.counts_S[self.context_X]

    def take(self, whole: ShortCall, carry: bool = False) -> None:
        """Another plan: what was kept under the one before is of no use, unless it is carried over.

        Args:
            carry: keep the keys and values of what is context still, where that is all the context
        """
        before_X = (
            self.whole.places_S[self.context_X]
            if carry and self.branches and not self.loan
            else None
        )
        self.whole, self.alone = whole, whole.edit_alone(self.refresh.bucket)
        self.weighted = whole.weighted
        self.context_X = (~whole.edited_S).nonzero().flatten()
        self.counts_S = whole.counts_S  # its length, as a tensor's, is no constant to a compiler
        self.counts_X = self.counts_S[self.context_X]
        # Of no filler and of one token a compiler would make constants.
        self.filler_R = self.counts_S.new_empty(2 + self.alone.filler)
        for x in (self.counts_S, self.alone.counts_S, self.counts_X, self.filler_R):
            _of_any_length(x)
        plan = whole.plan
        self.context_K = plan.keep_K[~plan.edit_N[plan.keep_K]]
        self._keys: dict[tuple[int, int, bool], Weighted] = {}
        if before_X is None or not self._carry(before_X, whole.places_S[self.context_X]):
            self.branches.clear()
        self.replays.clear()
        self.loan: Loan | None = None
        self.seen_BXC: Tensor | None = None  # the context at the last refresh, for "auto"

    def _carry(self, before_X: Tensor, now_X: Tensor) -> bool:
        """Keep the rows of a context that only became smaller; False where it did not."""
        left_X = torch.isin(before_X, now_X).nonzero().flatten()
        if (before_X < 0).any() or not 0 < len(left_X) == len(now_X):
            return False
        for branch in self.branches.values():
            for module, kept in branch.kept.items():
                text = kept[0].shape[1] - len(before_X)
                rows = torch.cat([torch.arange(text, device=left_X.device), text + left_X])
                branch.kept[module] = taken(kept, rows)
        return True

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Reroute the attention for this context; what was left on modules goes."""
        others = [module for module in self.attentions if module not in self.modules]
        try:
            with (
                rerouted(self.family.model, self.attend, self.modules),
                rerouted(self.family.model, self.attend_alone, others),
            ):
                yield
        finally:
            self._clear()

    # Around every call of the transformer.

    def before(self, call: Call) -> Call:
        """Choose the short call, and lay out what was kept. Returns the call, without its text
        where that was kept too."""
        clock = self.run.clock
        if clock.branch == 0:
            self.due = self._due(clock.step, call)
        signature = _signature(call)
        known = self.branches.get(clock.branch)
        self.refreshing = self.due or known is None or known.signature != signature
        self.lent = None
        if self.refreshing and self.loan:
            self.lent = self.loan.lend(clock.step, clock.branch, call)
        self.run.short = self._short()
        if self.refreshing:
            self._check_memory(call)
            kept = known.kept if known and self.recorder else {}  # where a recording reads it
            known = self.branches[clock.branch] = Branch(signature, kept)
            if not self.refreshed or self.refreshed[-1] != clock.step:
                self.refreshed.append(clock.step)
        assert known is not None
        self.kept = known.kept
        if self.refreshing and self.lent is None:
            self.rows_X = self._rows_kept(call)
            return call
        for module in self.modules if self.compiled else ():
            kept = self.kept.get(id(module))
            module.kept_context = kept and tuple(map(_of_any_length, kept))
        return self.family.without_text(call) if self.refresh.text else call

    def after(self) -> None:
        """Take up what compiled modules kept."""
        if self.compiled and self.refreshing:
            for module in self.modules:
                if (kept := vars(module).get("kept_context")) is not None:
                    self.kept[id(module)] = kept
        if self.refreshing and self.loan:
            self.loan.keep(self.kept)
        self._clear()

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's own pass; at steps between, its recording."""
        if self.recorder is None or self.run.short is not self.alone:
            return original(*args, **kwargs)
        branch = self.run.clock.branch
        if branch not in self.replays:
            self.replays[branch] = Replay(self.family.model, self.recorder)
        output = self.replays[branch](original, *args, **kwargs)
        if self.replays[branch].recorded:  # of calls that were seen to run on as many
            self.alone.ran = len(self.alone.counts_S)
        return output

    def _short(self) -> ShortCall:
        """All that the plan runs at a refresh, but for what is lent; between, the edit alone."""
        if not self.refreshing:
            return self.alone
        part = self.loan.part if self.loan and self.lent is not None else None
        return part or self.whole

    def _clear(self) -> None:
        for module in self.modules if self.compiled else ():
            vars(module).pop("kept_context", None)

    @property
    def bytes(self) -> int:
        """Memory that what is kept takes now."""
        parts = [t for b in self.branches.values() for kept in b.kept.values() for t in kept]
        return sum(t.numel() * t.element_size() for t in parts)

    # Inside the attention.

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """Keep keys and values at a refresh; between, attend to what was kept too."""
        if self.refreshing and self.lent is None:
            rows = self._rows(key.shape[1])
            if rows is not None:
                pair = key.index_select(1, rows), value.index_select(1, rows)
                kept = tuple(part for x in pair for part in stored(x, self.refresh.store))
                if compiling():
                    module.kept_context = kept
                else:
                    self._keep(module, kept)
            return original(query, key, value, **kw)
        if self.refreshing:
            kept = self._borrowed(module, key, value)
        else:
            kept = module.kept_context if compiling() else self.kept.get(id(module))
        key, value, kw = self._without_filler(key, value, kw)
        if kept is None:
            return original(query, key, value, **kw)
        half = len(kept) // 2
        kept_key, kept_value = (restored(part, key) for part in (kept[:half], kept[half:]))
        own = key.shape[1]
        key, value = torch.cat([key, kept_key], 1), torch.cat([value, kept_value], 1)
        if kw.get("attn_mask") is not None:
            # What is kept is of the image, and masked as the image's own keys are.
            mask = kw["attn_mask"]
            column = mask[..., :1] if self.family.image_first else mask[..., -1:]
            extra = column.expand(*mask.shape[:-1], key.shape[1] - own)
            kw["attn_mask"] = torch.cat([mask, extra], -1)
        if not self.weighted:
            return original(query, key, value, **kw)
        keys = self._weighted(own, kept_key.shape[1])
        return keys(module, query, key, value, original, **kw)

    def _keep(self, module: Any, kept: Kept) -> None:
        """In the memory of the refresh before, if it is still there: a recording reads it there."""
        before = self.kept.get(id(module))
        self.kept[id(module)] = into(before, kept)
        if before is not None and self.kept[id(module)] is not before:
            self.replays.pop(self.run.clock.branch, None)

    def attend_alone(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """In the blocks of which nothing is kept: as ever, but for what fills up the length."""
        key, value, kw = self._without_filler(key, value, kw)
        return original(query, key, value, **kw)

    def _without_filler(self, key: Tensor, value: Tensor, kw: Call) -> tuple[Tensor, Tensor, Call]:
        """The keys that tokens attend to: not of those that fill up the length, the image's last.

        So the edit is the same as if they had not run.
        """
        short = self.run.short
        if short is not self.alone:
            return key, value, kw
        if not compiling() and not self.alone.filler:  # compiled code is one for both
            return key, value, kw
        filler, image = self.filler_R.shape[0] - 2, short.counts_S.shape[0]
        if key.shape[1] < image:  # other keys than the image's
            return key, value, kw
        stop = image if self.family.image_first else key.shape[1]
        mask = kw.get("attn_mask")
        if mask is not None and mask.shape[-1] == key.shape[1]:
            kept = torch.cat([mask[..., : stop - filler], mask[..., stop:]], -1)
            kw = kw | {"attn_mask": kept}
        key, value = (torch.cat([x[:, : stop - filler], x[:, stop:]], 1) for x in (key, value))
        return key, value, kw

    def _weighted(self, own: int, kept: int) -> Weighted:
        """Made once for all attentions that have as many keys of either kind."""
        if compiling():
            return Weighted(self._counts(own, kept))
        wanted = own, kept, self.refreshing
        if wanted not in self._keys:
            self._keys[wanted] = Weighted(self._counts(own, kept))
        return self._keys[wanted]

    def _counts(self, own: int, kept: int) -> Tensor:
        """How many tokens each key stands for: those that run, text of any, and what was kept."""
        counts_X = self.counts_X
        if not self.refreshing:
            text = kept - counts_X.shape[0]
            return torch.cat([counts_X.new_ones(own + text), counts_X])
        assert self.loan is not None
        part_P, lent_L = self.run.short.counts_S, counts_X[: len(self.loan.lent_L)]
        text = own - len(part_P)
        own_P = F.pad(part_P, (0, text) if self.family.image_first else (text, 0), value=1.0)
        return torch.cat([own_P, counts_X.new_ones(kept - len(lent_L)), lent_L])

    def _borrowed(self, module: Any, key: Tensor, value: Tensor) -> Kept | None:
        """What is lent to a module; kept with what it computes of the context itself."""
        if self.lent is None or self.loan is None or id(module) not in self.lent:
            return None
        lent = self.loan.rows(self.lent[id(module)], key.device)
        text = key.shape[1] - len(self.run.short.counts_S)
        rows = self.loan.computed_M + (0 if self.family.image_first else text)
        half = len(lent) // 2
        pairs = ((lent[:half], key), (lent[half:], value))
        own = [torch.cat([restored(part, x), x.index_select(1, rows)], 1) for part, x in pairs]
        self.kept[id(module)] = tuple(part for x in own for part in stored(x, self.refresh.store))
        return lent

    def _rows_kept(self, call: Call) -> Tensor:
        """Which keys are kept: of the text where that is not run at each step, and of the context.

        Counted from the image's first, so that those of text, which is before it, are below 0.
        """
        text = 0
        if self.refresh.text:
            self.family.without_text(call)  # refused now rather than at the next step
            text = call["encoder_hidden_states"].shape[1]
        text_L = torch.arange(-text, 0, device=self.context_X.device)
        return _of_any_length(torch.cat([text_L, self.context_X]))

    def _rows(self, keys: int) -> Tensor | None:
        """Those of so many keys; None where they are not those of the image."""
        text = keys - self.counts_S.shape[0]
        if text < 0:
            return None
        return self.rows_X if self.family.image_first else self.rows_X + text

    # When to refresh.

    def _due(self, step: int, call: Call) -> bool:
        if self.refresh.at == "auto":
            return step == self.start or self._drifted(call)
        return step - self.start in self.steps

    @cached_property
    def steps(self) -> set[int]:
        """Those at which context is computed, counted from `start`; asked for at the first."""
        sigmas = self.run.clock.sigmas[self.start :]
        chosen = refresh_steps(self.refresh.at, sigmas)
        if not self.family.shown_photo:
            check_shown(chosen, sigmas)
        return chosen

    def _drifted(self, call: Call) -> bool:
        """Whether the context's x_t has moved by more than the bound since it was last computed."""
        source = self.whole.source
        x_BNC = self.whole.x_t(call, source.latents_BNC.shape[-1]).float()
        now_BXC = x_BNC.index_select(1, self.context_K)
        if self.seen_BXC is None or self.seen_BXC.shape != now_BXC.shape:
            self.seen_BXC = now_BXC
            return False
        moved = (now_BXC - self.seen_BXC).norm() / self.seen_BXC.norm().clamp_min(1e-12)
        if moved.item() <= (self.refresh.drift or 0):
            return False
        self.seen_BXC = now_BXC
        return True

    def _check_memory(self, call: Call) -> None:
        """Before the first refresh of each branch of guidance, rather than in the middle of it."""
        config = getattr(self.family.model, "config", {})
        heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
        if self.run.clock.branch in self.branches or not heads or not width:
            return
        tokens = self.family.tokens(call)
        size = {"float8": 1, "bfloat16": 2, None: tokens.element_size()}[self.refresh.store]
        text = call["encoder_hidden_states"].shape[1] if self.refresh.text else 0
        context = len(self.context_X) + text
        needed = kept_bytes(len(tokens), context, heads * width, len(self.modules), size)
        check_fits(needed, self.family.model, tokens.device)


def _step_cache_of(transformer: Any) -> str:
    """How to switch off the step cache that is on, diffusers' own or cache-dit's; else nothing."""
    if getattr(transformer, "is_cache_enabled", False):
        return "transformer.disable_cache()"
    return "cache_dit.disable_cache(pipe)" if getattr(transformer, "_is_cached", False) else ""


def _signature(call: Call) -> tuple[Any, ...]:
    """Changes when batch or prompt do: what was kept is then of no use."""
    found: list[Any] = []
    for name in ("encoder_hidden_states", "cap_feats"):
        texts = call.get(name)
        for text in texts if isinstance(texts, list | tuple) else [texts]:
            if isinstance(text, Tensor):  # one made in inference mode keeps no count of changes
                version = None if text.is_inference() else text._version
                found.append((text.data_ptr(), tuple(text.shape), version))
    return tuple(found)


def _of_any_length(x: Tensor) -> Tensor:
    """Tell the compiler, where there is one, that the next mask has another length."""
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.maybe_mark_dynamic(x, min(1, x.ndim - 1))
    return x
