"""The nodes."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hilotoken.methods import plan_tokens
from hilotoken.picture import token_map

from . import embedded, example
from .merge import composite
from .method import OPTION_WIDGETS, PRESET_WIDGET, changes, method_from
from .run import Wanted, attach

HINT_PHOTO = "The photo, to find its detail by."
OPTIONS = "HILO_OPTIONS"
OPTIONS_INPUT = {"options": (OPTIONS, {"tooltip": "HiLo Options: what is changed of the preset."})}


class HiLoModel:
    """Before the sampler: MODEL in, MODEL out."""

    CATEGORY = "hilo"
    DESCRIPTION = (
        "Runs a masked edit on the tokens in and near the mask, and a few of the rest. Photo and "
        "mask are the sampler's own (its latent, its noise mask, or the mask of Inpaint Model "
        "Conditioning), unless they are connected here. Put HiLo Composite behind VAE Decode."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model, for the sampler. The one that came in is as it was.",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        model = {"tooltip": "Flux (Fill, Kontext too), FLUX.2, Qwen-Image, Z-Image or Chroma."}
        mask = {"tooltip": "White where the picture may change. Unless given, the sampler's own."}
        image = {"tooltip": HINT_PHOTO + " Unless given, a rough picture of the latent."}
        return {
            "required": {"model": ("MODEL", model), **PRESET_WIDGET},
            "optional": {"image": ("IMAGE", image), "mask": ("MASK", mask), **OPTIONS_INPUT},
        }

    def patch(
        self,
        model: Any,
        preset: str,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any]:
        wanted = Wanted(method_from(preset, options), image, mask)
        model = model.clone()
        attach(model, wanted)
        return (model,)


class HiLoOptions:
    """For HiLo and HiLo Tokens."""

    CATEGORY = "hilo"
    DESCRIPTION = (
        "Changes options of the preset. For HiLo and HiLo Tokens alike, so that the map shows what "
        "will run."
    )
    RETURN_TYPES = (OPTIONS,)
    RETURN_NAMES = ("options",)
    FUNCTION = "change"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": OPTION_WIDGETS}

    def change(self, **widgets: Any) -> tuple[dict[str, Any]]:
        return (changes(**widgets),)


class HiLoComposite:
    """Behind VAE Decode."""

    CATEGORY = "hilo"
    DESCRIPTION = "The photo outside the mask, bit for bit, and the edit inside."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        feather = "Pixels over which the edit fades in, from the mask's border inwards."
        colours = (
            "Lead the edit's colours to the photo's along the mask's border: an autoencoder shifts "
            "them a little, which shows as a seam."
        )
        return {
            "required": {
                "photo": ("IMAGE", {"tooltip": "The photo that was edited."}),
                "edited": ("IMAGE", {"tooltip": "What VAE Decode made."}),
                "mask": ("MASK", {"tooltip": "White (0.5 and above) where the edit goes."}),
                "feather": ("INT", {"default": 0, "min": 0, "max": 256, "tooltip": feather}),
                "match_colours": ("BOOLEAN", {"default": True, "tooltip": colours}),
            }
        }

    def composite(
        self, photo: Tensor, edited: Tensor, mask: Tensor, feather: int, match_colours: bool
    ) -> tuple[Tensor]:
        return (composite(photo, edited, mask, feather, match_colours),)


class HiLoTokens:
    """Without a model."""

    CATEGORY = "hilo"
    DESCRIPTION = "Which tokens would run, drawn over the photo, and how many; needs no model."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("map", "counts")
    OUTPUT_TOOLTIPS = (
        "Edit tokens orange, detail tokens blue, coarse tokens yellow dots; the rest is dimmed.",
        "How many tokens run, and of which kind.",
    )
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        mask = {"tooltip": "White where the picture may change."}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": HINT_PHOTO}),
                "mask": ("MASK", mask),
                **PRESET_WIDGET,
            },
            "optional": OPTIONS_INPUT,
        }

    def show(
        self, image: Tensor, mask: Tensor, preset: str, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, str]:
        photo = image[:1, ..., :3].movedim(-1, 1).float().cpu()
        edited = (mask > 0).float().cpu().reshape(-1, 1, *mask.shape[-2:])[:1]
        # Tokens of 16 pixels, all that the autoencoder's 8 leave of the picture.
        grid = tuple(-(-(side // 8) // 2) for side in photo.shape[-2:])
        method = method_from(preset, options)
        plan = plan_tokens(photo, edited, grid=grid, method=method)  # type: ignore[arg-type]
        counts = ", ".join(f"{count} {kind}" for kind, count in plan.counts.items())
        text = f"{plan.tokens_run} of {plan.tokens_full} tokens run: {counts}"
        drawn = np.asarray(token_map(_picture(image), plan), np.float32) / 255
        return torch.from_numpy(drawn)[None], text


def _picture(image_BHW3: Tensor) -> Image.Image:
    pixels = (image_BHW3[0, ..., :3].cpu().numpy() * 255).round().clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


class HiLoEmbeddedModel:
    """To try the nodes with nothing downloaded."""

    CATEGORY = "hilo/try"
    DESCRIPTION = (
        "The small Fill model of the package (20 M parameters): removes what is under the mask, "
        "takes no prompt, wants 8 steps of euler, scheduler simple, CFG 1. It shows how the nodes "
        "go together; it is no match for a large model."
    )
    RETURN_TYPES = ("MODEL", "VAE", "CONDITIONING")
    OUTPUT_TOOLTIPS = (
        "Its noise is made as it was trained on, whatever the sampler draws.",
        "Its autoencoder.",
        "The one conditioning that it has, for positive and negative.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any, Any, Any]:
        return embedded.load()


class HiLoExample:
    """To try the nodes with nothing uploaded."""

    CATEGORY = "hilo/try"
    DESCRIPTION = "A photo of 512 x 512 pixels and its mask, which covers a party of hikers."
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Tensor, Tensor]:
        return example.load()


NODE_CLASS_MAPPINGS = {
    "HiLoModel": HiLoModel,
    "HiLoOptions": HiLoOptions,
    "HiLoComposite": HiLoComposite,
    "HiLoTokens": HiLoTokens,
    "HiLoEmbeddedModel": HiLoEmbeddedModel,
    "HiLoExample": HiLoExample,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "HiLoModel": "HiLo",
    "HiLoOptions": "HiLo Options",
    "HiLoComposite": "HiLo Composite",
    "HiLoTokens": "HiLo Tokens",
    "HiLoEmbeddedModel": "HiLo Embedded Model",
    "HiLoExample": "HiLo Example Photo",
}
