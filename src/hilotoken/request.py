"""One vocabulary for what an edit asks for, and each pipeline's own arguments for it.

Pipelines call the same things by other names, take some and not others, and take some that do
nothing there; what would do nothing is refused.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .arguments import MASKS, PHOTOS, first_of

# Transformers of these classes take guidance as a number of their own, where they were distilled to
# (`guidance_embeds`), and classifier-free guidance as `true_cfg_scale`; elsewhere `guidance_scale`
# is classifier-free.
DISTILLED = ("FluxTransformer2DModel", "QwenImageTransformer2DModel")
# They take other pictures in a list that the photo begins.
LISTS = (
    *("Flux2Pipeline", "Flux2KleinPipeline", "QwenImageEditPlusPipeline"),
    "JoyImageEditPlusPipeline",
)
# They work at a megapixel, whatever they are given, and these crop the photo to one of few shapes.
CROPS = ("JoyImageEditPipeline", "JoyImageEditPlusPipeline")
MEGAPIXEL = (
    *("LongCatImageEditPipeline", "QwenImageEditInpaintPipeline", "Kandinsky5I2IPipeline"),
    *CROPS,
)
SIDE = 1024  # pixels of a megapixel's side
# They take a list of photos as a batch of them, each with words, a mask and noise of its own.
BATCHES = (
    *("FluxFillPipeline", "FluxInpaintPipeline", "FluxImg2ImgPipeline"),
    *("FluxKontextPipeline", "FluxKontextInpaintPipeline", "Flux2KleinInpaintPipeline"),
    *("QwenImageInpaintPipeline", "QwenImageImg2ImgPipeline", "QwenImageEditPipeline"),
    *("QwenImageEditInpaintPipeline", "StableDiffusion3InpaintPipeline"),
    *("StableDiffusion3Img2ImgPipeline", "ZImageInpaintPipeline", "ZImageImg2ImgPipeline"),
    *("ChromaInpaintPipeline", "ChromaImg2ImgPipeline"),
)


@dataclass(frozen=True)
class Request:
    """What an edit asks for. None, or nothing, leaves the pipeline its own default.

    prompt:   what the edited part shall show
    negative_prompt: what it shall not show
    label:    the kind of thing to fill with, one of `pipe.labels`, in place of a prompt
    guidance: how closely the prompt is followed: `guidance_scale`, or `true_cfg_scale` for a model
              that was not distilled to be guided
    cfg:      classifier-free guidance of a distilled model (`true_cfg_scale`), which a negative
              prompt needs there
    strength: how much of the photo under the mask goes: 1 leaves nothing of it
    references: other pictures that the prompt may speak of
    control:  the control picture of a control pipeline, of the photo's size
    steps:    denoising steps
    seed:     same seed, same result
    """

    prompt: str = ""
    negative_prompt: str = ""
    label: str = ""
    guidance: float | None = None
    cfg: float | None = None
    strength: float | None = None
    references: tuple[Image.Image, ...] = ()
    control: Image.Image | None = None
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")
        for name in ("guidance", "cfg"):
            scale = getattr(self, name)
            if scale is not None and not 0 <= scale < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {scale}")
        if self.label and self.prompt:
            raise ValueError(f"give a prompt or a label, not both: {self.prompt!r}, {self.label!r}")


def working_size(pipe: Any, size: int | None) -> int:
    """Pixels of the working picture's longer side: `size`, or the pipeline's own."""
    if type(pipe).__name__ in MEGAPIXEL:
        if size is not None:
            raise ValueError(f"{type(pipe).__name__} works at a megapixel always: omit size {size}")
        return SIDE
    return size or int(getattr(pipe, "default_sample_size", 128) * pipe.vae_scale_factor)


def own_steps(pipe: Any) -> int:
    """Denoising steps that the pipeline takes where nobody says how many."""
    default = _parameters(pipe)["num_inference_steps"].default
    return int(getattr(pipe, "default_steps", default))


def needs_control(pipe: Any) -> bool:
    """Whether the pipeline takes a control picture beside the photo."""
    return {"image", "control_image"} <= _parameters(pipe).keys()


def fewest_steps(pipe: Any, request: Request) -> int:
    """The fewest steps of which the strength leaves one to run."""
    own = _parameters(pipe).get("strength")
    strength = request.strength if own is None else request.strength or own.default
    return math.ceil(1 / (strength or 1))


def arguments_for(
    pipe: Any, request: Request, before: Image.Image, mask: np.ndarray | None
) -> dict[str, Any]:
    """The arguments of `compress(pipe, ...)` for an edit of a working picture under its mask.

    Args:
        before: the working picture, whose size is the pipeline's
        mask: bool, of that size; None where the region is to be found

    Raises:
        ValueError: what this pipeline does not take, or takes to no effect; what it needs besides.
    """
    known = _parameters(pipe)
    before, mask = _uncropped(pipe, before, mask)
    if request.steps and request.steps < (fewest := fewest_steps(pipe, request)):
        raise ValueError(f"{request.steps} steps at this strength run none: give {fewest} or more")
    given = _words(pipe, known, request) | _guidance(pipe, known, request)
    given |= _pictures(pipe, known, request, before, mask) | _size(pipe, known, before)
    if request.strength is not None:
        _must_take(pipe, known, "strength", "strength")
        given["strength"] = request.strength
    if request.steps:
        given["num_inference_steps"] = request.steps
    return given | {"generator": torch.Generator().manual_seed(request.seed)}


def takes_together(pipe: Any, request: Request) -> bool:
    """Whether one call of the pipeline may make several pictures of what is asked for."""
    names = {base.__name__ for base in type(pipe).__mro__}
    return bool(names & set(BATCHES)) and not request.references and request.control is None


def in_one_call(given: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The arguments of several edits for one call, each with its photo, mask, words and noise.

    given: by `arguments_for`, of a pipeline that `takes_together`; alike in all else
    """

    def of_all(name: str, value: Any) -> Any:
        values = [one[name] for one in given]
        if name in (*PHOTOS, *MASKS, "prompt", "negative_prompt", "generator"):
            return values
        return torch.cat(values) if isinstance(value, torch.Tensor) else value

    return {name: of_all(name, value) for name, value in given[0].items()}


def _uncropped(
    pipe: Any, before: Image.Image, mask: np.ndarray | None
) -> tuple[Image.Image, np.ndarray | None]:
    """Photo and mask stretched to the shape that the pipeline would else crop them to."""
    if type(pipe).__name__ not in CROPS:
        return before, mask
    processor = getattr(pipe, "vae_image_processor", pipe.image_processor)
    height, width = processor.get_default_height_width(before)
    if mask is not None:
        painted = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        mask = np.asarray(painted)
    return before.resize((width, height), Image.Resampling.LANCZOS), mask


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def _must_take(pipe: Any, known: Mapping[str, Any], argument: str, word: str) -> None:
    if argument not in known:
        raise ValueError(f"{type(pipe).__name__} takes no {word}: leave it out")


def _words(pipe: Any, known: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """What tells the pipeline what to fill in."""
    if request.label:
        if not hasattr(pipe, "labels"):
            raise ValueError(
                f"{type(pipe).__name__} knows no labels: give a prompt, not {request.label!r}"
            )
        return pipe.prompt(label=request.label)
    given = {"prompt": request.prompt}
    if request.negative_prompt:
        _must_take(pipe, known, "negative_prompt", "negative prompt")
        given["negative_prompt"] = request.negative_prompt
    return given


def _guidance(pipe: Any, known: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Scales of guidance; refuses those that do nothing, and a negative prompt without any."""
    model = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    two_kinds = type(model).__name__ in DISTILLED
    free = "true_cfg_scale" if two_kinds else "guidance_scale"  # the classifier-free kind
    given: dict[str, Any] = {}
    if request.guidance is not None:
        name = "guidance_scale" if not two_kinds or model.config.guidance_embeds else free
        if name not in known or dict(pipe.config).get("is_distilled"):
            raise ValueError(f"this {type(pipe).__name__} reads no guidance: leave it out")
        given[name] = float(request.guidance)
    if request.cfg is not None:
        if free in given or free not in known or not two_kinds:
            raise ValueError(
                f"this {type(pipe).__name__} has no second kind of guidance: omit cfg, and see "
                "guidance"
            )
        given[free] = float(request.cfg)
    scale = given.get(free, known[free].default if free in known else 0)
    if request.negative_prompt and scale <= 1:
        word = "cfg" if two_kinds and model.config.guidance_embeds else "guidance"
        raise ValueError(f"a negative prompt does nothing at {word} {scale:g}: give {word} above 1")
    if two_kinds and given.get(free, 0) > 1 and not request.negative_prompt:
        given["negative_prompt"] = " "  # which it is guided away from; without one it is not
    return given


def _pictures(
    pipe: Any,
    known: Mapping[str, Any],
    request: Request,
    before: Image.Image,
    mask: np.ndarray | None,
) -> dict[str, Any]:
    """Photo, mask, references and control picture."""
    mask_name = first_of({name: name for name in MASKS if name in known}, MASKS) or "mask_image"
    photo_name = next(name for name in PHOTOS if name in known)
    given: dict[str, Any] = {photo_name: [before] if photo_name == "images" else before}
    if mask is not None:
        given[mask_name] = Image.fromarray(mask.astype(np.uint8) * 255)
    if request.references:
        _add_references(pipe, known, request.references, given)
    if needs_control(pipe):
        if request.control is None:
            raise ValueError(f"{type(pipe).__name__} needs a control picture: give control")
        given["control_image"] = request.control
    elif request.control is not None:
        raise ValueError(f"{type(pipe).__name__} takes no control picture: leave it out")
    return given


def _add_references(
    pipe: Any, known: Mapping[str, Any], references: tuple[Image.Image, ...], given: dict[str, Any]
) -> None:
    name = type(pipe).__name__
    if name in LISTS:
        photo_name = next(name for name in PHOTOS if name in given)
        photo = given[photo_name]
        given[photo_name] = [*(photo if isinstance(photo, list) else [photo]), *references]
        return
    _must_take(pipe, known, "image_reference", "references")
    if len(references) > 1 and not name.startswith("Flux2"):
        raise ValueError(f"{name} takes one reference, got {len(references)}")
    given["image_reference"] = references[0] if len(references) == 1 else list(references)


def _size(pipe: Any, known: Mapping[str, Any], before: Image.Image) -> dict[str, Any]:
    """The working size, in every way that keeps a pipeline from choosing another."""
    name = type(pipe).__name__
    if name in MEGAPIXEL and name not in CROPS:
        return {}
    given: dict[str, Any] = {"height": before.height, "width": before.width}
    if "_auto_resize" in known:
        given["_auto_resize"] = False
    if "max_area" in known:
        given["max_area"] = before.height * before.width
    return given
