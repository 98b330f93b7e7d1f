"""One method inside another, as one value: what a command line names by `hilo + todo factor=2`."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..method import Method
from ..plan import TokenPlan


@dataclass(frozen=True)
class Within(Method):
    """The outer method plans a sequence, the other acts inside the blocks on what it leaves.

    Raises:
        ValueError, TypeError: the two do not go together, at construction.
    """

    outer: Any
    inside: Any

    def __post_init__(self) -> None:
        outer, inside = self.outer, self.inside
        names = f"{type(outer).__name__} with {type(inside).__name__} inside"
        if not isinstance(inside, Method) or inside.site != "blocks":
            raise TypeError(f"{names}: only a method that acts inside blocks can, such as ToDo()")
        if not isinstance(outer, Method) or outer.site != "sequence":
            raise ValueError(f"{names}: the outer one must plan a sequence, as HiLo does")
        if outer.unnested:
            raise ValueError(f"{names}: {outer.unnested}")
        if outer.shortens and not inside.inner.takes_parts:
            raise ValueError(
                f"{names}: it needs a whole grid, and the other leaves a part: use ToMe, ToDo, "
                "BiGainTD or TokenPooling"
            )

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        return self.outer.plan(photo_B3HW, mask_B1HW, grid)

    def replan(self, step: int, plan: TokenPlan) -> TokenPlan:
        return self.outer.replan(step, plan)

    @property
    def find(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.outer.find

    @property
    def shortens(self) -> bool:
        return self.outer.shortens

    @property
    def inner(self) -> Any:
        return self.inside

    @property
    def unnested(self) -> str:
        return "one method acts inside already"

    @property
    def alike(self) -> bool:
        return self.outer.alike and self.inside.alike
