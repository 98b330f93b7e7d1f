"""One short file a transformer family: how its call is shortened, and its answer put back."""

from diffusers import DiffusionPipeline

from .base import Adapter
from .flux import Flux, FluxFill

__all__ = ["ADAPTERS", "Adapter", "adapter_for"]

# By the name of the pipeline's class and its transformer's: what was not tried is refused.
ADAPTERS: dict[tuple[str, str], type[Adapter]] = {
    ("FluxFillPipeline", "FluxTransformer2DModel"): FluxFill,
    ("FluxInpaintPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxKontextPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxKontextInpaintPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxImg2ImgPipeline", "FluxTransformer2DModel"): Flux,
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
