"""The methods, side by side; `METHODS` is the registry.

A method has a site: it plans a sequence from photo and mask (HiLo), acts inside the blocks of the
transformer (ToMe), or is a control that changes the whole call (Downsample).
"""

from typing import Any, Protocol

from torch import Tensor

from ..blocks.method import BlockMethod
from ..plan import TokenPlan
from .bigain import BiGainTD, BiGainTM
from .controls import Control, CropStitch, Downsample, FewerSteps, RandomKeep
from .dense import Dense
from .hilo import HiLo
from .pooling import TokenPooling
from .stages import SDTM
from .step_cache import StepCache
from .todo import ToDo
from .tome import ToMe
from .udit import UDiTAttention


class Method(Protocol):
    """What shortens a run: a frozen dataclass of its options that plans from photo and mask."""

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan: ...


AnyMethod = Method | BlockMethod | Control

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


def check_inside(method: AnyMethod, inside: BlockMethod | None) -> None:
    """Raise ValueError if the two do not go together, TypeError if `inside` cannot act inside."""
    if inside is None:
        return
    names = f"{type(method).__name__} with {type(inside).__name__} inside"
    if not isinstance(inside, BlockMethod):
        raise TypeError(f"{names}: only a method that acts inside blocks can, such as ToDo()")
    if isinstance(method, BlockMethod | Control):
        raise ValueError(f"{names}: the outer one must plan a sequence, as HiLo does")
    if isinstance(method, Dense):
        return
    if not inside.takes_parts:
        raise ValueError(
            f"{names}: it needs a whole grid, and the other leaves a part: use ToMe, ToDo, "
            "BiGainTD or TokenPooling"
        )
    if getattr(method, "refresh", None) is not None:
        raise ValueError(f"{names}: refresh keeps keys and values of blocks as they are")
    if getattr(method, "weights", False):
        raise ValueError(f"{names}: weights=True is for the inner one alone, where keys merge last")
    if getattr(method, "positions", "") == "aligned":
        raise ValueError(f"{names}: positions='aligned' attends twice: use 'interpolated'")


__all__ = [
    "METHODS",
    "SDTM",
    "AnyMethod",
    "BiGainTD",
    "BiGainTM",
    "BlockMethod",
    "Control",
    "CropStitch",
    "Dense",
    "Downsample",
    "FewerSteps",
    "HiLo",
    "Method",
    "RandomKeep",
    "StepCache",
    "ToDo",
    "ToMe",
    "TokenPooling",
    "UDiTAttention",
    "build",
    "check_inside",
]
