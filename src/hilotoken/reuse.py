"""Context computed seldom, its keys and values reused between.

The photo outside the mask does not change during an edit, and its keys and values drift little from
step to step. At a *refresh* the whole plan runs and every attention module keeps the keys and
values of the context: of all tokens that are not edited, references included. At the steps between,
the edit tokens run alone and attend to what was kept. LazyDiffusion (arXiv 2404.12382) trained a
model for this; here any model does it, from the first step.

B batch, S image tokens of the short sequence, X of them context, L text tokens, H heads, D channels
a head.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.base import Adapter, Span
from .attention import rerouted, weighted
from .kv_store import in_blocks, restored, stored
from .methods.hilo import HiLo


def refresh_steps(refresh: int | Sequence[int], sigmas: Sequence[float]) -> set[int]:
    """The steps of a run at which context is computed, 0 the first.

    A count is spread by sigma: refresh i of n at the first step whose noise has fallen to
    1 - i/n of the first step's, each a step of its own.
    """
    if not isinstance(refresh, int):
        return {step for step in refresh if step < len(sigmas)}
    chosen: list[int] = []
    count = min(refresh, len(sigmas))
    for i in range(count):
        level = sigmas[0] * (1 - i / refresh) + 1e-6
        fallen = next((k for k, sigma in enumerate(sigmas) if sigma <= level), len(sigmas))
        after_the_last, room = (chosen[-1] + 1 if chosen else 0), len(sigmas) - count + i
        chosen.append(min(max(fallen, after_the_last), room))
    return set(chosen)


@dataclass(eq=False)
class Branch:
    """What was kept from one branch of guidance: a pair of tensors for each attention module."""

    signature: tuple[Any, ...]
    kept: list[Any]


class Reuse:
    """Made for one run, beside the adapter, whose two faces it turns: whole plan, and edit alone.

    Raises:
        ValueError: what the adapter or the pipeline cannot do with it.
        MemoryError: less memory free on the device than the keys and values will take.
    """

    def __init__(self, adapter: Adapter, method: HiLo, pipe: Any, transformer: nn.Module) -> None:
        if getattr(transformer, "is_cache_enabled", False):
            raise ValueError(
                "refresh changes the sequence from step to step, which a step cache cannot follow: "
                "call transformer.disable_cache(), or leave refresh out"
            )
        self.adapter, self.method, self.pipe = adapter, method, pipe
        self.owner = threading.get_ident()
        model: Any = getattr(transformer, "_orig_mod", transformer)
        self.model = model
        # The others attend as ever: at the steps between, edit tokens to themselves and to text.
        self.modules = in_blocks(model, adapter.attentions(model), method.reuse_blocks)
        self.faces = {True: dict(vars(adapter)), False: _edit_face(adapter)}
        self.context_X = (~_edited(adapter)).nonzero().flatten()
        self.counts_S = adapter.counts_S  # its length, as a tensor's, is no constant to a compiler
        self.counts_X = self.counts_S[self.context_X]
        _of_any_length((self.counts_S, self.counts_X, self.context_X))
        self.step, self.branch, self.first_step = -1, 0, -1
        self.due, self.refreshing = True, True
        self.branches: dict[int, Branch] = {}
        self.refreshed: list[int] = []
        self.seen_BXC: Tensor | None = None  # the context at the last refresh, for "auto"

    def attach(self) -> Any:
        """Reroute the attention; returns what undoes it and forgets everything."""
        context = rerouted(self.model, self.attend, self.modules)
        context.__enter__()
        return _Handle(self, context)

    # Around every call of the transformer.

    def before(self, call: dict[str, Any], step: int) -> dict[str, Any]:
        """Turn the adapter's face, and lay out what was kept. Returns the call, without its text
        where that was kept too."""
        self.branch = self.branch + 1 if step == self.step else 0
        if step != self.step:
            self.first_step = step if self.first_step < 0 else self.first_step
            self.step, self.due = step, self._due(step - self.first_step, call)
        signature = _signature(call)
        known = self.branches.get(self.branch)
        self.refreshing = self.due or known is None or known.signature != signature
        _put_on(self.adapter, self.faces[self.refreshing])
        if self.refreshing:
            self._check_memory(call)
            self.branches[self.branch] = Branch(signature, [])
            if not self.refreshed or self.refreshed[-1] != step - self.first_step:
                self.refreshed.append(step - self.first_step)
        else:
            assert known is not None
            for module, kept in zip(self.modules, known.kept, strict=True):
                module.kept_context = _of_any_length(kept)
            if self.method.refresh_text:
                call = self.adapter.without_text(call)
        return call

    def after(self) -> None:
        """Take up what the modules kept."""
        if self.refreshing:
            branch = self.branches[self.branch]
            branch.kept = [vars(module).get("kept_context") for module in self.modules]
        self.faces[self.refreshing] = dict(vars(self.adapter))  # tables that it made on the way
        self.clear()

    def clear(self) -> None:
        for module in self.modules:
            vars(module).pop("kept_context", None)

    @property
    def bytes(self) -> int:
        """Memory that what is kept takes now."""
        parts = [t for b in self.branches.values() for kept in b.kept for t in kept or ()]
        return sum(t.numel() * t.element_size() for t in parts)

    # Inside the attention.

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        # Another thread may share the transformer; compiled code cannot ask.
        if not torch.compiler.is_compiling() and threading.get_ident() != self.owner:
            return original(query, key, value, **kw)
        if self.refreshing:
            rows = self._rows(key.shape[1])
            if rows is not None:
                pair = key.index_select(1, rows), value.index_select(1, rows)
                module.kept_context = tuple(
                    part for x in pair for part in stored(x, self.method.store)
                )
            return original(query, key, value, **kw)
        kept = module.kept_context
        if kept is None:
            return original(query, key, value, **kw)
        half = len(kept) // 2
        kept_key, kept_value = (restored(part, key) for part in (kept[:half], kept[half:]))
        own = key.shape[1]
        key, value = torch.cat([key, kept_key], 1), torch.cat([value, kept_value], 1)
        if kw.get("attn_mask") is not None:
            # What is kept is of the image, and masked as the image's own keys are.
            mask = kw["attn_mask"]
            column = mask[..., :1] if self.adapter.image_first else mask[..., -1:]
            extra = column.expand(*mask.shape[:-1], key.shape[1] - own)
            kw["attn_mask"] = torch.cat([mask, extra], -1)
        if not self.faces[True]["plan"].weighted:
            return original(query, key, value, **kw)
        text = kept_key.shape[1] - self.counts_X.shape[0]
        ones = self.counts_X.new_ones(own + text)
        counts = torch.cat([ones, self.counts_X])
        return weighted(counts)(module, query, key, value, original, **kw)

    def _rows(self, keys: int) -> Tensor | None:
        """Which keys are kept: of the text where that is not run at each step, and of the context.

        Keys that are not those of the image are passed over.
        """
        text = keys - self.counts_S.shape[0]
        if text < 0:
            return None
        start = 0 if self.adapter.image_first else text
        rows = self.context_X + start
        if not self.method.refresh_text:
            return rows
        begin = self.counts_S.shape[0] if self.adapter.image_first else 0
        return torch.cat([torch.arange(begin, begin + text, device=rows.device), rows])

    # When to refresh.

    def _due(self, step: int, call: dict[str, Any]) -> bool:
        if step == 0:
            return True
        if self.method.refresh == "auto":
            return self._drifted(call)
        sigmas = self.pipe.scheduler.sigmas[self.first_step : -1].tolist()
        return step in refresh_steps(self.method.refresh, sigmas)  # type: ignore[arg-type]

    def _drifted(self, call: dict[str, Any]) -> bool:
        """Whether the context's x_t has moved by more than the bound since it was last computed."""
        face = self.faces[True]
        keep_K, edit_N = face["plan"].keep_K, face["plan"].edit_N
        x_BNC = self.adapter.x_t(call, face["source"].latents_BNC.shape[-1]).float()
        now_BXC = x_BNC.index_select(1, keep_K[~edit_N.to(keep_K.device)[keep_K]])
        if self.seen_BXC is None or self.seen_BXC.shape != now_BXC.shape:
            self.seen_BXC = now_BXC
            return False
        moved = (now_BXC - self.seen_BXC).norm() / self.seen_BXC.norm().clamp_min(1e-12)
        if moved.item() <= self.method.drift:
            return False
        self.seen_BXC = now_BXC
        return True

    def _check_memory(self, call: dict[str, Any]) -> None:
        """Before the first refresh, rather than in the middle of it."""
        tokens = self.adapter.tokens(call)
        config = getattr(self.model, "config", {})
        heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
        free = _free_memory(tokens.device)
        if self.branches or free is None or not heads or not width:
            return
        size = {"float8": 1, "bfloat16": 2}.get(self.method.store or "", tokens.element_size())
        needed = 2 * len(tokens) * len(self.context_X) * heads * width * size * len(self.modules)
        if needed > free:
            raise MemoryError(
                f"the context's keys and values take {needed / 2**30:.1f} GiB and "
                f"{free / 2**30:.1f} GiB are free: use store='float8', reuse_blocks, a smaller "
                "context, or leave refresh out"
            )


def _free_memory(device: torch.device) -> int | None:
    """Bytes free on a GPU; None elsewhere."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


class _Handle:
    """Undoes a rerouting, as the handle of a hook does."""

    def __init__(self, reuse: Reuse, context: Any) -> None:
        self.reuse, self.context = reuse, context

    def remove(self) -> None:
        self.context.__exit__(None, None, None)
        self.reuse.clear()


def _edited(adapter: Adapter) -> Tensor:
    """bool: which tokens of the short sequence are edited."""
    plan, length = adapter.plan, len(adapter.counts_S)
    edited_S = torch.zeros(length, dtype=torch.bool, device=plan.keep_K.device)
    edited_S[: len(plan.keep_K)] = plan.edit_N[plan.keep_K]
    return edited_S


def _edit_face(adapter: Adapter) -> dict[str, Any]:
    """The adapter's state with edit tokens alone, without context, coarse tokens or references."""
    plan, device = adapter.plan, adapter.plan.keep_K.device
    keep_K = plan.keep_K[plan.edit_N[plan.keep_K]]
    alone = replace(
        plan,
        keep_K=keep_K,
        cells_M=torch.arange(0, device=device),
        count_S=torch.ones(len(keep_K), device=device),
        weighted=False,
    )
    spans = [adapter.spans[0], *(Span(s.stop, s.stop, (0, 0), False) for s in adapter.spans[1:])]
    fresh = dict.fromkeys(adapter.made_on_the_way)
    return vars(adapter) | {"plan": alone, "spans": spans, "coarse": None} | fresh


def _put_on(adapter: Adapter, face: dict[str, Any]) -> None:
    vars(adapter).clear()
    vars(adapter).update(face)


def _signature(call: dict[str, Any]) -> tuple[Any, ...]:
    """Changes when batch or prompt do: what was kept is then of no use."""
    found: list[Any] = []
    for name in ("encoder_hidden_states", "cap_feats"):
        texts = call.get(name)
        for text in texts if isinstance(texts, list | tuple) else [texts]:
            if isinstance(text, Tensor):
                found.append((text.data_ptr(), tuple(text.shape), text._version))
    return tuple(found)


def _of_any_length(tensors: Any) -> Any:
    """Tell the compiler, where there is one, that the next mask has other lengths."""
    dynamo = sys.modules.get("torch._dynamo")
    for x in tensors if dynamo and tensors else ():
        dynamo.maybe_mark_dynamic(x, min(1, x.ndim - 1))  # pyright: ignore[reportOptionalMemberAccess]
    return tensors
