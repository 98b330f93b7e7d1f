"""Where tokens sit: the model's own places of the whole picture, of which those that run are taken.

A ribbon's tokens would sit in a row. What the model itself says of the whole picture is asked, once
a run and kind of call, by a call that goes no further than its places (`Asked`). So whatever a
version of ComfyUI does about places (offsets of references, options for rotary places, a grid
centred on zero) is followed here, not repeated.

ComfyUI's transformers hand their places, [B, L, A] with row and column at axes 1 and 2, to one
module that turns them into rotations. A hook on it asks, and gives, for the length of one call.

L tokens of text and image, T those of the image (the target, then references), N of the target's
grid, S of the short sequence, A axes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hilotoken.plan import TokenPlan, token_positions


class Asked(Exception):
    """Not an error: carries the places out of a call that was begun only to ask for them."""


@dataclass(frozen=True)
class Span:
    """Tokens of a picture: the target, or a reference."""

    tokens: int
    short: bool  # whether the plan shortens it

    def run(self, plan: TokenPlan) -> int:
        """How many of them run."""
        return plan.tokens_run if self.short else self.tokens


@dataclass(frozen=True)
class Family:
    """What differs between ComfyUI's transformers.

    embedder:   the name of the module that places go through
    joint:      whether text and image always pass it, and the attention, in one call, text first
    references: whether `ref_latents` are understood here
    """

    embedder: str = "pe_embedder"
    joint: bool = True
    references: bool = True

    def ask(self, model: Any, call: Callable[[], Any]) -> Tensor:
        """The places that the call hands over first, but for a text's own: [B, L, A]."""

        def take(module: Any, args: tuple[Any, ...]) -> None:
            if self._is_image(args[0]):
                raise Asked(args[0])

        with _hooked(getattr(model, self.embedder), take), torch.compiler.set_stance("force_eager"):
            try:
                call()
            except Asked as answer:
                return answer.args[0]
        raise RuntimeError(
            f"HiLo: {type(model).__name__} of this ComfyUI did not say where its tokens sit: "
            "take the HiLo node out, and report this version"
        )

    @contextmanager
    def give(self, model: Any, short_BLA: Tensor, spare: int) -> Iterator[None]:
        """For this context, these places instead of a ribbon's, and `spare` zeros behind."""

        def put(module: Any, args: tuple[Any, ...]) -> Any:
            ids = args[0]
            if not self._is_image(ids):
                return None
            if ids.shape[1] != short_BLA.shape[1] + spare:
                raise RuntimeError(
                    f"HiLo: {ids.shape[1]} tokens run, where {short_BLA.shape[1] + spare} were "
                    "planned: another node adds some; take that node, or HiLo, out"
                )
            return (F.pad(short_BLA, (0, 0, 0, spare)), *args[1:])

        with _hooked(getattr(model, self.embedder), put):
            yield

    def padding(self, model: Any, tokens: int) -> int:
        """How many tokens the model puts behind those of the image, to a multiple of its own."""
        return -tokens % (getattr(model, "pad_tokens_multiple", None) or 1)

    def text_alone(self, model: Any) -> int:
        """How many times the model attends to its text alone, before all else."""
        return 0 if self.joint else len(getattr(model, "context_refiner", ()))

    def _is_image(self, ids: Tensor) -> bool:
        return self.joint or bool((ids[..., 1:] != 0).any())


FAMILIES = {  # by the name of the transformer's class; anything else is refused
    "Flux": Family(),
    "Chroma": Family(references=False),
    "QwenImageTransformer2DModel": Family(),
    "NextDiT": Family("rope_embedder", joint=False, references=False),
}


def short_places(ids_BLA: Tensor, plan: TokenPlan, spans: list[Span], padding: int) -> Tensor:
    """Of the places of text and image, those that run; coarse ones lie between."""
    start = ids_BLA.shape[1] - padding - sum(span.tokens for span in spans)
    parts = [ids_BLA[:, :start]]
    for span in spans:
        part = ids_BLA[:, start : start + span.tokens]
        parts.append(_short(part, plan) if span.short else part)
        start += span.tokens
    exact = torch.float32 if len(plan.cells_M) else ids_BLA.dtype  # whole numbers have no half
    return torch.cat([part.to(exact) for part in parts], 1)


def _short(part_BNA: Tensor, plan: TokenPlan) -> Tensor:
    kept = part_BNA.index_select(1, plan.keep_K)
    if not len(plan.cells_M):
        return kept
    # In the model's own units: from its first place on, by its own steps.
    h, w = plan.grid
    first_BA = part_BNA[:, 0].float()
    step_BA = torch.zeros_like(first_BA)
    if h > 1:
        step_BA[:, 1] = part_BNA[:, w, 1] - part_BNA[:, 0, 1]
    if w > 1:
        step_BA[:, 2] = part_BNA[:, 1, 2] - part_BNA[:, 0, 2]
    place_M2 = token_positions(plan)[len(plan.keep_K) :].to(first_BA)
    coarse_BMA = first_BA[:, None].repeat(1, len(place_M2), 1)
    coarse_BMA[..., 1:3] += place_M2 * step_BA[:, None, 1:3]
    return torch.cat([kept.float(), coarse_BMA], 1)


@contextmanager
def _hooked(module: Any, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
