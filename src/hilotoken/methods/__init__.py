"""The methods, side by side; `METHODS` is the registry, and `plan_tokens` tries one out.

A method has a site: it plans a sequence from photo and mask (HiLo), acts inside the blocks of the
transformer (ToMe), or is a control that changes the whole call (Downsample): see `Method`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..blocks.method import BlockMethod
from ..checks import said
from ..grid import as_batch, check_mask, check_photo
from ..method import Method
from ..plan import TokenPlan
from .bigain import BiGainTD, BiGainTM
from .controls import Control, CropStitch, Downsample, FewerSteps, RandomKeep
from .dense import Dense
from .find import Find
from .hilo import HiLo
from .pooling import TokenPooling
from .presets import DEFAULT, PRESETS, preset
from .refresh import Refresh
from .stages import SDTM
from .step_cache import StepCache
from .todo import ToDo
from .tome import ToMe
from .udit import UDiTAttention
from .within import Within

METHODS: dict[str, Any] = {
    "hilo": HiLo,
    "dense": Dense,
    "tome": ToMe,
    "todo": ToDo,
    "sdtm": SDTM,
    "bigain_tm": BiGainTM,
    "bigain_td": BiGainTD,
    "pooling": TokenPooling,
    "random_keep": RandomKeep,
    "downsample": Downsample,
    "crop_stitch": CropStitch,
    "fewer_steps": FewerSteps,
    "step_cache": StepCache,
}


def build(name: str, **options: object) -> Any:
    """The method of that name with those options. Raises ValueError for an unknown name."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose from {sorted(METHODS)}")
    return METHODS[name](**options)


def as_method(given: Any, preset_of: Callable[[str], Method] = preset) -> Method:
    """The method that is meant: itself, or one by name, of `PRESETS` or `METHODS`.

    Args:
        given: a method, a name, or None for the preset that is the default
        preset_of: makes the preset of a name, which may depend on the pipeline

    Raises:
        TypeError: neither; ValueError: another name. The message lists the choices.
    """
    if isinstance(given, Method):
        return given
    given = DEFAULT if given is None else given
    if not isinstance(given, str):
        raise TypeError(f"method must be one of METHODS or a name, got {said(given)}: give HiLo()")
    if given in PRESETS:
        return preset_of(given)
    if given in METHODS:
        return METHODS[given]()
    raise ValueError(f"unknown method {said(given)}; choose from {[*PRESETS, *METHODS]}")


def plan_tokens(
    photo: Tensor | np.ndarray | Image.Image,
    mask: Tensor | np.ndarray | Image.Image,
    *,
    grid: tuple[int, int],
    method: Method | str | None = None,
) -> TokenPlan:
    """Plan a run without a pipeline.

    Args:
        photo: a picture, or float [B, 3, H, W] or [3, H, W] (tensor) or [H, W, 3] (array) in [0, 1]
        mask: its mask, same height and width; white (0.5 and above) is edited, as pipelines read it
        grid: rows and columns of the DiT's token grid
        method: `HiLo()` unless given, or a name, of `PRESETS` or `METHODS`; one that plans no
            sequence runs every token

    Raises:
        ValueError: shapes, ranges or sizes that do not fit; the message names them.
    """
    photo_B3HW, mask_B1HW = as_batch(photo, 3), as_batch(mask, 1)
    check_photo(photo_B3HW)
    check_mask(mask_B1HW)
    if photo_B3HW.shape[-2:] != mask_B1HW.shape[-2:]:
        (H, W), (h, w) = photo_B3HW.shape[-2:], mask_B1HW.shape[-2:]
        raise ValueError(f"the photo is {W}x{H} but the mask is {w}x{h}: resize one of them")
    return as_method(method or HiLo()).plan(photo_B3HW, (mask_B1HW >= 0.5).float(), grid)


__all__ = [
    "METHODS",
    "PRESETS",
    "SDTM",
    "BiGainTD",
    "BiGainTM",
    "BlockMethod",
    "Control",
    "CropStitch",
    "Dense",
    "Downsample",
    "FewerSteps",
    "Find",
    "HiLo",
    "Method",
    "RandomKeep",
    "Refresh",
    "StepCache",
    "ToDo",
    "ToMe",
    "TokenPooling",
    "UDiTAttention",
    "Within",
    "as_method",
    "build",
    "plan_tokens",
    "preset",
]
