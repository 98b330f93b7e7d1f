"""The table of pipelines, a `family_*.py` each, and how its rows are called."""

import inspect
from collections.abc import Callable
from typing import Any

import family_chroma
import family_fibo2
import family_flux
import family_flux2
import family_joyimage
import family_kandinsky
import family_longcat
import family_qwen
import family_sd3
import family_zimage
import pytest
import torch
from family import Family
from torch import Tensor

FAMILIES: list[Family] = [
    *family_flux.FAMILIES, *family_qwen.FAMILIES, *family_sd3.FAMILIES, *family_zimage.FAMILIES,
    *family_flux2.FAMILIES, *family_chroma.FAMILIES, *family_longcat.FAMILIES,
    *family_fibo2.FAMILIES, *family_joyimage.FAMILIES,
    *family_kandinsky.FAMILIES,
]  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}

# Ways of calling that every pipeline has; a family adds its own.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "two images": lambda: {"num_images_per_prompt": 2},
    "unseeded": lambda: {"generator": None},
}

# One of each transformer class, to run beside diffusers' own machinery.
CLASSES = [
    "FluxInpaintPipeline", "FluxKontextPipeline", "Flux2KleinInpaintPipeline",
    "ChromaInpaintPipeline", "LongCatImageEditPipeline", "BriaFiboEditPipeline",
    "QwenImageEditInpaintPipeline", "StableDiffusion3InpaintPipeline", "ZImageInpaintPipeline",
    "BriaFibo2Pipeline", "JoyImageEditPipeline", "JoyImageEditPlusPipeline",
    "Kandinsky5I2IPipeline",
]  # fmt: skip

# Those on which context computed seldom is tried.
REFRESHED = [
    *CLASSES,
    *("FluxFillPipeline", "QwenImageInpaintPipeline", "ZImageControlNetInpaintPipeline"),
]


def calls_of(family: Family) -> list[str]:
    return list({**CALLS, **family.calls})


def skips(family: Family, *cells: str) -> list[pytest.MarkDecorator]:
    """A skip with the reason that the docs give, where the family lacks one of the cells."""
    return [pytest.mark.skip(reason=family.lacks[c]) for c in cells if c in family.lacks]  # type: ignore[index]


def opens_contexts(family: Family) -> bool:
    """Whether the pipeline names the branches of its guidance to a step cache."""
    return any(word in family.name for word in ("Qwen", "Klein", "LongCat"))


def arguments(
    family: Family, call: str = "plain", dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    """Those of one way of calling, with changes; the same each time."""
    torch.manual_seed(3)
    made = family.arguments(dtype=dtype, **({**CALLS, **family.calls}[call]() | changes))
    cast = lambda name: "embeds" in name or name == "latents"  # noqa: E731
    return {k: v.to(dtype) if cast(k) and isinstance(v, Tensor) else v for k, v in made.items()}


def plain_arguments(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Those that the pipeline itself takes: instruction editing has no mask."""
    takes = "mask_image" in inspect.signature(pipe.__call__).parameters
    return given if takes else {k: v for k, v in given.items() if k != "mask_image"}


def names_of(family: Family) -> tuple[str, str]:
    """What the pipeline calls the photo and its mask."""
    given = family.arguments()
    if "control_mask" in given:
        return "control_image", "control_mask"
    return "images" if "images" in given else "image", "mask_image"
