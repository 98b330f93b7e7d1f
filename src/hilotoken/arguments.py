"""What a pipeline is given: photo and mask among its arguments, and whether they can be used."""

import inspect
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .plan import as_batch

# What pipelines call the photo and its mask.
PHOTOS = ("image", "control_image")
MASKS = ("mask_image", "mask", "control_mask")


def makes_from_text(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline takes neither photo nor mask."""
    return hasattr(pipe, "transformer") and not {"image", *MASKS} & _parameters(pipe)


def first_of(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), None)


def takes_mask(pipe: DiffusionPipeline) -> bool:
    return "mask_image" in _parameters(pipe)


def _parameters(pipe: DiffusionPipeline) -> set[str]:
    """Of the call, those that a subclass takes by **kwargs and hands on included."""
    calls = [vars(cls)["__call__"] for cls in type(pipe).__mro__ if "__call__" in vars(cls)]
    return {name for call in calls for name in inspect.signature(call).parameters}


def bound(pipe: DiffusionPipeline, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    given = inspect.signature(pipe.__call__).bind(*args, **kwargs).arguments
    return given | kwargs  # those under **kwargs too, by their own names


def check_pixels(name: str, image: Any, lowest: float) -> None:
    """Refuse arrays and tensors that the pipeline would take and turn into noise."""
    if isinstance(image, list | tuple):
        for one in image:
            check_pixels(name, one, lowest)
        return
    if not isinstance(image, np.ndarray | Tensor) or 0 in image.shape:
        return
    low, high = image.min().item(), image.max().item()
    if not (low >= lowest and high <= 1):  # NaN fails both
        raise ValueError(f"{name} holds values from {low} to {high}: give finite ones in [0, 1]")


def exact_photo(image: Any, resized_B3HW: Tensor) -> Tensor:
    """The photo in [0, 1]: the user's own values where the pipeline did not resize them."""
    given = [as_batch(one, 3) for one in (image if isinstance(image, list | tuple) else [image])]
    resized_B3HW = (resized_B3HW.float().cpu() / 2 + 0.5).clamp(0, 1)
    if sum(len(one) for one in given) != len(resized_B3HW):  # references follow the photo
        given = given[:1]
    if min(one.min() for one in given) < 0:  # the pipeline takes such values to lie in [-1, 1]
        return resized_B3HW
    pairs = zip(given, resized_B3HW.split([len(one) for one in given]), strict=True)
    return torch.cat([a.float().cpu() if a.shape == b.shape else b for a, b in pairs])
