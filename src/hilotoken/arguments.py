"""What a pipeline is given: photo and mask among its arguments, and whether they can be used."""

import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .grid import as_batch

# What pipelines call the photo and its mask.
PHOTOS = ("image", "images", "control_image")
MASKS = ("mask_image", "mask", "control_mask")


def makes_from_text(pipe: Any) -> bool:
    """Whether the pipeline takes neither photo nor mask."""
    return hasattr(pipe, "transformer") and not {"image", "images", *MASKS} & _parameters(pipe)


def first_of(given: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((given[name] for name in names if given.get(name) is not None), None)


def takes_mask(pipe: Any) -> bool:
    return "mask_image" in _parameters(pipe)


def photo_name(pipe: Any) -> str:
    """What the pipeline calls the photo.

    Raises TypeError if it takes none.
    """
    for name in PHOTOS:
        if name in _parameters(pipe):
            return name
    raise TypeError(f"{type(pipe).__name__} takes no photo: there is none to open")


def mask_name(pipe: Any) -> str:
    """What the pipeline, or else `compress`, calls the mask."""
    return next((name for name in MASKS if name in _parameters(pipe)), "mask_image")


def _parameters(pipe: Any) -> set[str]:
    """Of the call, those that a subclass takes by **kwargs and hands on included."""
    calls = [vars(cls)["__call__"] for cls in type(pipe).__mro__ if "__call__" in vars(cls)]
    return {name for call in calls for name in inspect.signature(call).parameters}


def named(pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names; a mask too that only `compress` takes."""
    own = {name: value for name, value in kwargs.items() if name != "mask_image"}
    given = inspect.signature(pipe.__call__).bind_partial(*args, **own).arguments
    return {name: value for name, value in given.items() if name not in ("args", "kwargs")} | kwargs


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


def read_mask(mask_image: Any) -> Tensor:
    """A mask in any of the forms that diffusers documents, as float [B, 1, H, W] in [0, 1].

    Args:
        mask_image: a picture; an array [H, W], [B, H, W], [H, W, 1] or [B, H, W, 1]; a tensor
            [H, W], [B, H, W] or [B, 1, H, W]; or a list of these. Three channels are the brightest
            of them. Values are bool, whole from 0 to 255 in uint8, or floats in [0, 1].

    Raises:
        ValueError: another shape, or values out of range; the message names them.
    """
    if isinstance(mask_image, list | tuple):
        return torch.cat([read_mask(one) for one in mask_image])
    if isinstance(mask_image, Image.Image):
        return as_batch(mask_image, 1)
    mask = torch.as_tensor(mask_image)
    mask_BCHW = _mask_with_channels(mask, last=isinstance(mask_image, np.ndarray))
    if mask.dtype == torch.uint8:
        return mask_BCHW.float().amax(1, True) / 255
    check_pixels("mask_image", mask_BCHW, lowest=0)
    return mask_BCHW.float().amax(1, True)


def _mask_with_channels(mask: Tensor, last: bool) -> Tensor:
    """A mask as [B, 1 or 3, H, W]; `last`: whether channels come last, as in arrays."""
    shape = list(mask.shape)
    if mask.ndim == 2:
        return mask[None, None]
    if mask.ndim == 3 and shape[-1] > 4:
        return mask[:, None]
    if mask.ndim == 3 and (shape[-1] == 1 or (last and shape[-1] == 3)):
        return mask.movedim(-1, 0)[None]
    if mask.ndim == 4:
        mask_BCHW = mask.movedim(-1, 1) if last else mask
        if mask_BCHW.shape[1] in (1, 3):
            return mask_BCHW
    raise ValueError(
        f"mask_image has shape {shape}: give [H, W], [B, H, W] or one channel beside them, as "
        "[H, W, 1] in an array or [B, 1, H, W] in a tensor; of a picture with alpha, that alone"
    )


def with_plain_masks(
    pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments, masks of whole numbers and truth values as floats in [0, 1]."""
    names = list(inspect.signature(pipe.__call__).parameters)
    plain = [_plain(v) if n in MASKS else v for n, v in zip(names, args, strict=False)]
    return tuple(plain), {n: _plain(v) if n in MASKS else v for n, v in kwargs.items()}


def _plain(mask_image: Any) -> Any:
    if isinstance(mask_image, list | tuple):
        return [_plain(one) for one in mask_image]
    if isinstance(mask_image, Tensor) and mask_image.dtype in (torch.bool, torch.uint8):
        return read_mask(mask_image)
    if isinstance(mask_image, np.ndarray) and mask_image.dtype in (np.bool_, np.uint8):
        return read_mask(mask_image)[:, 0].numpy()
    return mask_image


# Of the pipelines with `padding_mask_crop`, those that paste the crop back into the photo.
PASTES_BACK = (
    "FluxInpaintPipeline",
    "Flux2KleinInpaintPipeline",
    "QwenImageInpaintPipeline",
    "QwenImageEditInpaintPipeline",
    "StableDiffusion3InpaintPipeline",
)


def check_crop(pipe: Any, given: dict[str, Any]) -> bool:
    """Whether the pipeline is to edit a crop of the photo that it chooses by `padding_mask_crop`.

    Raises:
        ValueError: it would hand over the crop, with no photo around it.
    """
    if given.get("padding_mask_crop") is None:
        return False
    if not {base.__name__ for base in type(pipe).__mro__} & set(PASTES_BACK):
        raise ValueError(
            f"padding_mask_crop: {type(pipe).__name__} edits the crop and does not paste it back "
            "into the photo; leave it out, or crop the photo and the mask yourself"
        )
    return True


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


def exact_mask(mask_image: Any, resized_B1HW: Tensor) -> Tensor:
    """The mask, 0 or 1: the user's own where it has the size of the result.

    A mask that only `compress` takes goes the way of the photo, which a pipeline may enlarge and
    make smaller again: then its border is a pixel further out.
    """
    given_B1HW = (read_mask(mask_image) >= 0.5).to(resized_B1HW)
    same = given_B1HW.shape[-2:] == resized_B1HW.shape[-2:]
    return given_B1HW if same and len(given_B1HW) == len(resized_B1HW) else resized_B1HW
