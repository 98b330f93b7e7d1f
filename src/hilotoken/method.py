"""What every method says of itself, so that nobody has to ask which one it is.

B batch, H W pixels, h w token grid.
"""

from typing import Any, ClassVar

from torch import Tensor

from .grid import touch
from .plan import TokenPlan, whole_plan


class Method:
    """A way to make an edit cost less: a frozen dataclass of its options.

    site:    where it acts: on the "sequence", by a plan of which tokens run; inside the "blocks",
             where tokens become fewer; or on the "call", as a control that runs another edit
    refresh: when context is computed, where that is not at every step: see `methods.refresh`
    find:    how the region is found where no mask is given: see `methods.find`
    """

    site: ClassVar[str] = "sequence"
    refresh: Any = None
    find: Any = None

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        """Which tokens run, from a photo in [0, 1] and its mask: all of them, unless overridden."""
        return whole_plan(grid, touch(mask_B1HW, grid).any(0).flatten().cpu())

    def replan(self, step: int, plan: TokenPlan) -> TokenPlan:
        """The plan to run by from this step on, asked before each: the one in force, or another."""
        return plan

    @property
    def shortens(self) -> bool:
        """Whether the transformer is given the tokens of the plan alone."""
        return self.site == "sequence"

    @property
    def inner(self) -> Any:
        """What acts inside the blocks, a `BlockMethod`; None where nothing does."""
        return None

    @property
    def unnested(self) -> str:
        """Why none can act inside the blocks on what its plan leaves; empty where one can."""
        return ""

    @property
    def alike(self) -> bool:
        """Whether every step of an edit costs the same, so that one stands for all."""
        return True

    @property
    def adaptive(self) -> bool:
        """Whether what it costs follows from the picture as it comes to be."""
        return False

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        """Its options from the dearest to the cheapest, for comparing methods at one cost.

        A ladder is a list of options as `--method` takes them; of several, a later one goes on
        where the one before does not reach. None at all: it has no knob of its own.

        Args:
            steps: of the edit
            side: tokens a side of the grid
        """
        return []
