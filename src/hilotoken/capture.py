"""What the pipeline itself makes of photo and mask, taken as it makes it.

Resizing, cropping and sampled posteriors are right by construction when they are the pipeline's
own. So for one call a few methods of the instance and of its processors are shadowed by others that
call them and keep what they return; the classes, and every other instance, stay as they are.

B batch, H W pixels, C channels.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .arguments import read_mask
from .grid import as_batch
from .hooks import shadowed

Step = Callable[[Any], Any]


@dataclass
class Seen:
    """What went by so far: the first photo and mask made into pixels, the first clean latents."""

    photo_B3HW: Tensor | None = None
    mask_B1HW: Tensor | None = None
    latents: Tensor | None = None
    path: list[Step] = field(default_factory=list)  # what was done to that photo
    size: tuple[int, int] | None = None  # width and height that it had before, as a picture

    def mask_like_photo(self, mask_image: Any) -> Tensor:
        """A mask that the pipeline was not given, taken the way that the photo went: [B, 1, H, W].

        Raises ValueError if no photo went by.
        """
        if self.photo_B3HW is None:
            raise ValueError("a mask_image was given, but no image to edit under it: give image")
        return torch.cat([self._follow(mask_1HW) for mask_1HW in read_mask(mask_image)])

    def _follow(self, mask_1HW: Tensor) -> Tensor:
        image: Any = mask_1HW.expand(3, -1, -1)[None]
        if self.size:  # the photo was a picture, and some steps take nothing else
            pixels = (mask_1HW[0].cpu().numpy() * 255).round().astype(np.uint8)
            image = Image.fromarray(pixels).resize(self.size, Image.Resampling.NEAREST)
            image = image.convert("RGB")
        for step in self.path:
            image = step(image)
        return (image.mean(1, keepdim=True) >= 0).float()  # processors map 0.5 to 0


@contextmanager
def captured(pipe: Any, photo_last: bool = False) -> Iterator[Seen]:
    """Keep what the pipeline makes of photo and mask while in this context.

    Args:
        photo_last: whether the photo is the last picture that is made into pixels, not the first

    Raises:
        RuntimeError: the pipeline is in a captured call already.
    """
    processor = getattr(pipe, "image_processor", None)
    if processor is None:
        raise TypeError(f"{type(pipe).__name__} has no image_processor: it takes no photo to edit")
    if "preprocess" in vars(processor):
        raise RuntimeError(
            "this pipeline is in a compressed call already: wait for it, or load a second pipeline"
        )
    tap, masks = _Tap(photo_last), getattr(pipe, "mask_processor", None)
    # JoyImage Edit's own, beside which it makes the photo into pixels by itself.
    resizer = getattr(pipe, "vae_image_processor", None)
    with ExitStack() as stack:
        for thing, name, keep in (
            (processor, "preprocess", tap.photo),
            (processor, "resize", tap.step),
            (processor, "_resize_to_target_area", tap.step),
            (resizer or processor, "resize_center_crop", tap.step),
            (masks, "preprocess", tap.mask),
            (resizer and pipe.vae, "encode", tap.encoded),
            (pipe, "_encode_vae_image", tap.latents),
            (pipe, "normalize_latents", tap.latents),
            (pipe.scheduler, "scale_noise", tap.noised),
        ):
            if hasattr(thing, name):
                stack.enter_context(shadowed(thing, name, keep))
        yield tap.seen


def _pixels(made: Any) -> Any:
    """The first picture of what a processor made, which may be lists of several kinds."""
    return _pixels(made[0]) if isinstance(made, list | tuple) else made


class _Tap:
    """The shadows: each calls the original, gives back what it gave, and keeps what is new."""

    def __init__(self, photo_last: bool = False) -> None:
        self.seen, self.photo_last = Seen(), photo_last
        self.steps: list[tuple[Any, Step, Any]] = []  # before, what was done, after
        self.inside = False  # a processor's method that another of its methods calls

    def photo(self, original: Callable[..., Any], image: Any, *args: Any, **kwargs: Any) -> Any:
        self.inside = True
        try:
            result = original(image, *args, **kwargs)
        finally:
            self.inside = False
        if self.seen.photo_B3HW is None or self.photo_last:
            self.seen.photo_B3HW = _pixels(result)
            own = {
                name: value for name, value in kwargs.items() if name != "mask"
            }  # greys the photo
            self.seen.path = [lambda other: _pixels(original(other, *args, **own))]
            first = self._trace(image)
            first = first[0] if isinstance(first, list | tuple) else first
            if isinstance(first, Image.Image):
                self.seen.size = first.size
        return result

    def _trace(self, image: Any) -> Any:
        """The image as it was given, the steps from there put before the path."""
        for before, step, after in reversed(self.steps):
            if after is image:
                self.seen.path.insert(0, step)
                image = before
        return image

    def step(self, original: Callable[..., Any], image: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(image, *args, **kwargs)
        if not self.inside and result is not image:
            self.steps.append((image, lambda other: original(other, *args, **kwargs), result))
        return result

    def encoded(self, original: Callable[..., Any], picture: Any, *args: Any, **kw: Any) -> Any:
        """A photo that no processor made into pixels: the pipeline did it by itself."""
        if self.seen.photo_B3HW is None and isinstance(picture, Tensor):
            photo = picture.cpu()  # where processors leave theirs
            self.seen.photo_B3HW = photo if photo.ndim == 4 else photo[:, :, 0]
            self.seen.path = [lambda image: 2 * as_batch(image, 3) - 1]
            first = self._trace(self.steps[-1][2]) if self.steps else None
            first = first[0] if isinstance(first, list | tuple) else first
            self.seen.size = first.size if isinstance(first, Image.Image) else None
        return original(picture, *args, **kw)

    def mask(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if self.seen.mask_B1HW is None:
            self.seen.mask_B1HW = result
        return result

    def latents(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if self.seen.latents is None:
            self.seen.latents = result
        return result

    def noised(self, original: Callable[..., Any], sample: Any, *args: Any, **kwargs: Any) -> Any:
        """Image-to-image pipelines that encode in a function of their own add noise to that."""
        if self.seen.latents is None:
            self.seen.latents = sample
        return original(sample, *args, **kwargs)
