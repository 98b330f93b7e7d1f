"""What the pipeline itself makes of photo and mask, taken as it makes it.

Resizing, cropping and sampled posteriors are right by construction when they are the pipeline's
own. So for one call the instance's methods are shadowed by others that call them and keep what they
return; the class, and every other instance, stays as it is.

B batch, H W pixels, N grid tokens, C channels.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

TAPPED = ("prepare_latents", "_encode_vae_image", "prepare_mask_latents")


@dataclass
class Source:
    """The edit's given side, on the pipeline's own grid.

    photo_B3HW:  the photo as the pipeline resized it, in [-1, 1]
    mask_B1HW:   its mask, 0 or 1, 1 where it is edited
    latents_BNC: the clean latents of the photo, packed into tokens
    grid:        (h, w), N = h * w
    """

    photo_B3HW: Tensor
    mask_B1HW: Tensor
    latents_BNC: Tensor
    grid: tuple[int, int]

    def for_batch(self, batch: int) -> Tensor:
        """The clean latents of every picture of the batch, in the pipeline's order."""
        return self.latents_BNC.repeat(batch // len(self.latents_BNC), 1, 1)


@contextmanager
def captured(pipe: DiffusionPipeline, ready: Callable[[Source], None]) -> Iterator[None]:
    """Call `ready` with the source once the pipeline has made it, while its VAE is at hand.

    Raises:
        RuntimeError: the pipeline is in a captured call already.
    """
    if "prepare_latents" in vars(pipe):
        raise RuntimeError(
            "this pipeline is in a compressed call already: wait for it, or load a second pipeline"
        )
    tap = _Tap(pipe, ready)
    try:
        for name in TAPPED:
            setattr(pipe, name, partial(getattr(tap, name), getattr(pipe, name)))
        yield
    finally:
        for name in TAPPED:
            vars(pipe).pop(name, None)


class _Tap:
    def __init__(self, pipe: DiffusionPipeline, ready: Callable[[Source], None]) -> None:
        self.pipe, self.ready = pipe, ready
        self.photo: Tensor | None = None
        self.latents: Tensor | None = None

    def prepare_latents(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        self.photo = photo = given["image"]
        result = original(*args, **kwargs)
        if self.latents is None:  # the user's own latents: nothing was encoded
            pixels = photo.to(given["device"], given["dtype"])
            private = torch.Generator().manual_seed(0)
            self.latents = self.pipe._encode_vae_image(image=pixels, generator=private)
        return result

    def _encode_vae_image(self, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
        latents = original(*args, **kwargs)
        if self.latents is None:
            self.latents = latents
        return latents

    def prepare_mask_latents(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        result = original(*args, **kwargs)
        assert self.photo is not None
        assert self.latents is not None
        B, C, height, width = self.latents.shape
        packed = self.pipe._pack_latents(self.latents, B, C, height, width)
        grid = (height // 2, width // 2)
        self.ready(Source(self.photo, given["mask"], packed.to(given["dtype"]), grid))
        return result
