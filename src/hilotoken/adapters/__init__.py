"""One short file a transformer family: how its call is shortened, and its answer put back."""

from typing import Any, Protocol

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..capture import Source
from ..plan import TokenPlan
from .flux import Flux


class Adapter(Protocol):
    """Made for one run; `shorten` and `restore` frame every call of the transformer."""

    def __init__(self, pipe: Any, plan: TokenPlan, source: Source) -> None: ...

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        """The transformer's keyword arguments with only the tokens that run."""
        ...

    def restore(self, velocity_BSC: Tensor, call: dict[str, Any], sigma: float) -> Tensor:
        """The velocity of the whole grid from that of the short sequence."""
        ...

    def inner_hooks(self, transformer: nn.Module) -> list[Any]:
        """Handles of hooks inside the transformer, removed after the run."""
        ...


# By the name of the pipeline's class and its transformer's: what was not tried is refused.
ADAPTERS: dict[tuple[str, str], type[Adapter]] = {
    ("FluxFillPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxInpaintPipeline", "FluxTransformer2DModel"): Flux,
}


def adapter_for(pipe: DiffusionPipeline) -> type[Adapter]:
    """The adapter of a pipeline.

    Raises:
        TypeError: not a pipeline that can be compressed; the message lists those that can.
    """
    supported = ", ".join(sorted(name for name, _ in ADAPTERS))
    transformer = getattr(pipe, "transformer", None)
    if transformer is None:
        raise TypeError(f"{type(pipe).__name__} has no transformer; supported: {supported}")
    model = getattr(transformer, "_orig_mod", transformer)  # what torch.compile wraps
    for base in type(pipe).__mro__:
        if adapter := ADAPTERS.get((base.__name__, type(model).__name__)):
            return adapter
    raise TypeError(
        f"{type(pipe).__name__} with {type(model).__name__} is not supported; "
        f"supported: {supported}"
    )
