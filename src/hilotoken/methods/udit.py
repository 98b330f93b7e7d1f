"""U-DiT's attention: tokens attend within their own phase of the grid (arXiv 2405.02730).

No token is dropped or merged: queries, keys and values stay as many, only who sees whom changes, so
that QK^T and AV cost 1 / factor^2. It is an architecture to be trained with, and no way to speed up
a model that was not. B batch, N grid tokens (row-major), P = factor^2 phases, L of the joint
sequence, H heads, D channels a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..blocks.attach import placed
from ..blocks.method import BlockMethod, Session, Site, Tokens
from ..checks import settle, whole
from ..method import Method


@dataclass(frozen=True, kw_only=True)
class UDiTAttention(BlockMethod):
    """Image tokens attend to those whose row and column are theirs modulo `factor`, and to text.

    Text attends to all, as ever. To train a transformer with it, wrap the steps:

        with placed(transformer, UDiTAttention(), scheduler):
            loss(transformer(...)).backward()

    Of the paper's block this is the attention alone: its depthwise convolutions, cosine attention
    and U-shape are not here, the projections, norms and rotary places are the transformer's own.

    factor: phases a side; 1 is the transformer as it is
    """

    takes_parts: ClassVar[bool] = False
    factor: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, factor=whole(1))
        if self.weights:
            raise ValueError("weights has no meaning here: no key stands for another")

    def session(self) -> "UDiTSession":
        return UDiTSession(self)

    def check(self, tokens: Tokens, text: bool) -> None:
        h, w = tokens.grid
        if h % self.factor or w % self.factor:
            raise ValueError(
                f"factor must divide the grid of {h}x{w}, got {self.factor}: phases would differ"
            )


class UDiTSession(Session):
    def __init__(self, method: UDiTAttention) -> None:
        self.factor = method.factor

    def route(
        self, at: Site, query: Tensor, key: Tensor, value: Tensor, image: slice, original: Any,
        **kwargs: Any,
    ) -> Tensor | None:  # fmt: skip
        if self.factor == 1:
            return None
        grid, f, mask = at.tokens.grid, self.factor, kwargs.pop("attn_mask", None)
        joint = [_joint(x, image, grid, f) for x in (query, key, value)]
        own = _phases(query[:, image], grid, f)
        short = None if mask is None else _short_mask(mask, image, own.shape[1], f * f)
        within = original(own, joint[1], joint[2], attn_mask=short, **kwargs)
        seen = _together(within, grid, f)
        before, after = query[:, : image.start], query[:, image.stop :]
        if not (before.shape[1] + after.shape[1]):
            return seen
        others = torch.cat([before, after], 1)
        others = original(others, key, value, attn_mask=mask, **kwargs)
        first, last = others.split([before.shape[1], after.shape[1]], 1)
        return torch.cat([first, seen, last], 1)


def phases_of(transformer: nn.Module) -> int:
    """Phases a side that the transformer was trained with, as its config says; 1: all to all."""
    config: Any = getattr(transformer, "config", {})
    return config.get("phases", 1)


@contextmanager
def as_trained(transformer: nn.Module, scheduler: Any) -> Iterator[None]:
    """For this context, attention within the phases that the transformer was trained with."""
    factor = phases_of(transformer)
    if factor == 1:
        yield
        return
    with placed(transformer, UDiTAttention(factor=factor), scheduler):
        yield


def check_phases(transformer: nn.Module, method: Method) -> None:
    """Raise ValueError for a method that a transformer trained within phases cannot take."""
    if phases_of(transformer) > 1 and (method.shortens or method.inner):
        raise ValueError(
            "this transformer was trained with attention within phases of the whole grid, which "
            f"{type(method.inner or method).__name__} would break: use Dense(), as in "
            "--method dense"
        )


def _joint(x_BLHD: Tensor, image: slice, grid: tuple[int, int], factor: int) -> Tensor:
    """What each phase sees: its own tokens, and all that are not of the grid, [B P, ...]."""
    around = (x_BLHD[:, : image.start], x_BLHD[:, image.stop :])
    before, after = (part.repeat_interleave(factor**2, 0) for part in around)
    return torch.cat([before, _phases(x_BLHD[:, image], grid, factor), after], 1)


def _short_mask(mask: Tensor, image: slice, left: int, phases: int) -> Tensor:
    """A mask on keys, of which the image's are all alike, for `left` of those."""
    kept = torch.cat([mask[..., : image.start + left], mask[..., image.stop :]], -1)
    return kept.repeat_interleave(phases, 0)


def _phases(x_BNHD: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Space to batch: phase (i, j) holds tokens (i + factor y, j + factor x): [B P, M, H, D]."""
    h, w = grid
    x = x_BNHD.unflatten(1, (h // factor, factor, w // factor, factor))
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(3, 4).flatten(0, 2)


def _together(x_PMHD: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Batch to space, the way back: [B, N, H, D]."""
    h, w = grid
    x = x_PMHD.unflatten(0, (-1, factor, factor)).unflatten(3, (h // factor, w // factor))
    return x.permute(0, 3, 1, 4, 2, 5, 6).flatten(1, 4)
