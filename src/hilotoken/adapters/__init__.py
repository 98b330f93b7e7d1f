"""One short file a transformer family: how its call is shortened, and its answer put back."""

from typing import Any

from ..hooks import unwrap
from .bria import Fibo
from .chroma import Chroma
from .family import Family
from .fibo2 import Fibo2
from .flux import Flux, FluxFill
from .flux2 import Flux2
from .joyimage import JoyImageEdit, JoyImageEditPlus
from .kandinsky import Kandinsky5
from .longcat import LongCat
from .qwen import QwenImage, QwenImageControlNet
from .sd3 import SD3
from .zimage import ZImage, ZImageControlNet

__all__ = ["ADAPTERS", "Family", "family_of"]

# By the name of the pipeline's class and its transformer's: what was not tried is refused.
ADAPTERS: dict[tuple[str, str], type[Family]] = {
    ("FluxFillPipeline", "FluxTransformer2DModel"): FluxFill,
    ("FluxInpaintPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxKontextPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxKontextInpaintPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxImg2ImgPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxControlInpaintPipeline", "FluxTransformer2DModel"): Flux,
    ("FluxControlNetInpaintPipeline", "FluxTransformer2DModel"): Flux,
    ("Flux2Pipeline", "Flux2Transformer2DModel"): Flux2,
    ("Flux2KleinPipeline", "Flux2Transformer2DModel"): Flux2,
    ("Flux2KleinInpaintPipeline", "Flux2Transformer2DModel"): Flux2,
    ("ChromaInpaintPipeline", "ChromaTransformer2DModel"): Chroma,
    ("ChromaImg2ImgPipeline", "ChromaTransformer2DModel"): Chroma,
    ("LongCatImageEditPipeline", "LongCatImageTransformer2DModel"): LongCat,
    ("BriaFiboEditPipeline", "BriaFiboTransformer2DModel"): Fibo,
    ("BriaFibo2Pipeline", "BriaFibo2Transformer2DModel"): Fibo2,
    ("JoyImageEditPipeline", "JoyImageEditTransformer3DModel"): JoyImageEdit,
    ("JoyImageEditPlusPipeline", "JoyImageEditPlusTransformer3DModel"): JoyImageEditPlus,
    ("Kandinsky5I2IPipeline", "Kandinsky5Transformer3DModel"): Kandinsky5,
    ("StableDiffusion3InpaintPipeline", "SD3Transformer2DModel"): SD3,
    ("StableDiffusion3Img2ImgPipeline", "SD3Transformer2DModel"): SD3,
    ("ZImageInpaintPipeline", "ZImageTransformer2DModel"): ZImage,
    ("ZImageImg2ImgPipeline", "ZImageTransformer2DModel"): ZImage,
    ("ZImageControlNetInpaintPipeline", "ZImageTransformer2DModel"): ZImageControlNet,
    ("QwenImageInpaintPipeline", "QwenImageTransformer2DModel"): QwenImage,
    ("QwenImageImg2ImgPipeline", "QwenImageTransformer2DModel"): QwenImage,
    ("QwenImageEditPipeline", "QwenImageTransformer2DModel"): QwenImage,
    ("QwenImageEditInpaintPipeline", "QwenImageTransformer2DModel"): QwenImage,
    ("QwenImageEditPlusPipeline", "QwenImageTransformer2DModel"): QwenImage,
    ("QwenImageControlNetInpaintPipeline", "QwenImageTransformer2DModel"): QwenImageControlNet,
}

# Known not to work, by the name of the pipeline's class, each with the reason.
REFUSED: dict[str, str] = {
    "SanaSprintImg2ImgPipeline": (
        "Sana mixes neighbours by 3x3 convolutions in every block, which need the whole grid"
    ),
    "Flux2KleinKVPipeline": (
        "it runs references before the target, and once: later steps read their keys from a cache; "
        "use Flux2KleinPipeline"
    ),
    "QwenImageLayeredPipeline": (
        "it makes several pictures in one sequence, a layer each, and a plan is made for one"
    ),
    "QwenImage21Pipeline": (
        "its references stand between the words, in blocks that see only what came before, and run "
        "once: later steps read their keys from a cache"
    ),
    "ZImageOmniPipeline": (
        "it puts several pictures and the features of another encoder in one sequence, and a plan "
        "is made for one; use ZImageInpaintPipeline"
    ),
    "OmniGenPipeline": (
        "it numbers image tokens on, like words, and an attention mask of its own goes with them"
    ),
}


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, and the pipeline as one of it.

    Raises:
        TypeError: not a pipeline that can be compressed; the message lists those that can.
    """
    supported = ", ".join(sorted(name for name, _ in ADAPTERS))
    for base in type(pipe).__mro__:
        if reason := REFUSED.get(base.__name__):
            raise TypeError(f"{base.__name__} is not supported: {reason}; supported: {supported}")
    transformer = getattr(pipe, "transformer", None)
    if transformer is None:
        raise TypeError(f"{type(pipe).__name__} has no transformer; supported: {supported}")
    model = unwrap(transformer)
    for base in type(pipe).__mro__:
        if family := ADAPTERS.get((base.__name__, type(model).__name__)):
            return family(pipe)
    raise TypeError(
        f"{type(pipe).__name__} with {type(model).__name__} is not supported; "
        f"supported: {supported}"
    )
