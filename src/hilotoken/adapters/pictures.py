"""Transformers that take pictures and make tokens of them inside: what such families share.

What goes in and what comes out stays whole. Inside, where the model has made tokens and places of
the picture, those that run are gathered, so that both are the model's own; and they are put back
before it makes a picture of them.

B batch, N tokens of the grid, M coarse tokens, S tokens of the short sequence, C channels a token.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_inpaint import (
    retrieve_latents,
)
from torch import Tensor, nn

from ..attention import Attend, rerouted, weighted
from ..plan import gather, scatter
from .base import Adapter


class Pictures(Adapter):
    """Latents [B, C/4, 2h, 2w]; a token is a patch of 2x2. Image tokens come before the text's."""

    image_first: ClassVar[bool] = True
    made_on_the_way: ClassVar[tuple[str, ...]] = ("extra_BMD",)
    extra_BMD: Tensor | None = None  # the coarse tokens of the call under way

    @classmethod
    def pictures(cls, call: dict[str, Any]) -> Tensor:
        """The latents of a call, with whatever else is in their channels."""
        return call["hidden_states"]

    @classmethod
    def grids(cls, pipe: Any, call: dict[str, Any]) -> list[tuple[int, int]]:
        height, width = cls.pictures(call).shape[-2:]
        return [(height // 2, width // 2)]

    @classmethod
    def pack(cls, pipe: Any, latents: Tensor) -> Tensor:
        return F.pixel_unshuffle(latents, 2).flatten(2).mT

    @classmethod
    def encode(cls, pipe: Any, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        latents = retrieve_latents(pipe.vae.encode(photo_B3HW), generator=generator)
        return (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor

    @classmethod
    def tokens(cls, call: dict[str, Any]) -> Tensor:
        return cls.pack(None, cls.pictures(call))

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        """The call as it is; `inner_hooks` shorten it."""
        tokens_BND = self.tokens(call)
        self._check_length(tokens_BND.shape[1])
        self.extra_BMD = None
        if self.coarse:
            x_BNC = tokens_BND[..., : self.source.latents_BNC.shape[-1]]
            self.extra_BMD = self.coarse.tokens(x_BNC, sigma).to(tokens_BND.dtype)
        return call

    def restore(self, velocity_BSC: Tensor, call: dict[str, Any], sigma: float) -> Tensor:
        """A picture, in which those tokens are put that did not run."""
        ran_BKC = gather(self.pack(None, velocity_BSC), self.plan)
        whole_BNC = super().restore(ran_BKC, call, sigma)
        # In the layout that it came in: sums over it are taken in the order of memory.
        return F.pixel_shuffle(whole_BNC.mT.unflatten(-1, self.plan.grid), 2).contiguous()

    def put_back(self, short_BSC: Tensor) -> Tensor:
        """The native tokens in their places, [B, N, C]; nothing at the others."""
        empty_BNC = short_BSC.new_zeros(len(short_BSC), self.plan.tokens_full, short_BSC.shape[-1])
        return scatter(short_BSC, self.plan, empty_BNC)

    def weights(self, transformer: nn.Module, modules: list[nn.Module] | None = None) -> list[Any]:
        """Handles by which the keys of image tokens count for those they stand for."""
        if not self.plan.weighted:
            return []
        counts_S = self.counts_S

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
        ) -> Tensor:
            if not self.plan.weighted:
                return original(query, key, value, **kw)
            counts = F.pad(counts_S, (0, key.shape[1] - counts_S.shape[0]), value=1.0)  # text: 1
            return weighted(counts)(module, query, key, value, original, **kw)

        return [entered(transformer, attend, modules)]


def entered(transformer: nn.Module, attend: Attend, modules: list[nn.Module] | None) -> Any:
    """Reroute attention for calls from this thread; the handle undoes it as that of a hook does."""
    owner, stack = threading.get_ident(), ExitStack()

    def routed(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        if not torch.compiler.is_compiling() and threading.get_ident() != owner:  # it cannot ask
            return original(query, key, value, **kw)
        return attend(module, query, key, value, original, **kw)

    stack.enter_context(rerouted(transformer, routed, modules))
    return SimpleNamespace(remove=stack.close)


def in_this_thread(hook: Callable[..., Any]) -> Any:
    """A hook for calls from this thread alone: another may run a pipeline that shares the model."""
    owner = threading.get_ident()
    untraced: Any = torch.compiler.disable
    return untraced(lambda *args: hook(*args) if threading.get_ident() == owner else None)
