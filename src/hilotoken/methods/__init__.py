"""The methods, one file each, side by side; `METHODS` is the registry."""

from typing import Protocol

from torch import Tensor

from ..plan import TokenPlan
from .dense import Dense
from .hilo import HiLo


class Method(Protocol):
    """What shortens a run: a frozen dataclass of its options that plans from photo and mask."""

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan: ...


METHODS: dict[str, type[Method]] = {"hilo": HiLo, "dense": Dense}


def build(name: str, **options: object) -> Method:
    """The method of that name with those options. Raises ValueError for an unknown name."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose from {sorted(METHODS)}")
    return METHODS[name](**options)


__all__ = ["METHODS", "Dense", "HiLo", "Method", "build"]
