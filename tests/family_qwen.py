"""Qwen-Image: Inpaint, Image-to-Image, Edit, Edit Inpaint, Edit Plus and ControlNet Inpaint."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)
from diffusers.utils import logging
from family import Family, Lack
from PIL import Image
from tiny import SIZE, TEXT, TOKENS, make_mask, make_photo, widen
from torch import Tensor, nn

EDITS = 1024  # the side of a square photo in the Edit pipelines, which nobody can change
SHAPE: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,  # the fewest that a step cache takes
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


class Patches(nn.Module):
    """In place of the VAE's encoder or decoder: no more than a picture of 1024 px can bear."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, **cache: Any) -> Tensor:
        return self.conv(x)


def make_vae(downs: int, patches: bool) -> nn.Module:
    """Of 2 ** downs pixels a side of a latent."""
    vae: Any = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * (downs + 1),
        num_res_blocks=0,
        temperal_downsample=[False] * downs,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.6, 0.7, 0.8],
    )
    if patches:
        side = 2**downs
        kernel = (1, side, side)
        vae.encoder = Patches(nn.Conv3d(3, 8, kernel, kernel))
        vae.decoder = Patches(nn.ConvTranspose3d(4, 3, kernel, kernel))
    return vae


def make(name: str, dtype: torch.dtype = torch.float32, patches: bool = True) -> Any:
    edits = "Edit" in name
    downs = 5 if edits and patches else 3  # 16x16 tokens of 1024 px, or of 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "vae": make_vae(downs, patches),
            "transformer": QwenImageTransformer2DModel(zero_cond_t="Plus" in name, **SHAPE),
        }
        if "ControlNet" in name:
            parts["controlnet"] = QwenImageControlNetModel(
                extra_condition_channels=4, **{**SHAPE, "num_layers": 1}
            )
        for part in parts.values():
            widen(part)
    texts = ["text_encoder", "tokenizer", *(["processor"] if edits else [])]
    pipe = getattr(diffusers, name)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **dict.fromkeys(texts),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def embeds(count: int, dtype: torch.dtype, seed: int = 1, prefix: str = "") -> dict[str, Tensor]:
    """The last two tokens are padding."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, TEXT, dtype=torch.long)
    mask[:, -2:] = 0
    return {
        f"{prefix}prompt_embeds": 3 * torch.randn(count, TEXT, 16, generator=random).to(dtype),
        f"{prefix}prompt_embeds_mask": mask,
    }


def arguments(
    name: str, *, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    side = EDITS if "Edit" in name else SIZE
    photo, mask = make_photo(), make_mask()
    if "Edit" in name:
        photo, mask = (x.resize((side, side), Image.Resampling.NEAREST) for x in (photo, mask))
    images = {"image": photo, "mask_image": mask}
    if "ControlNet" in name:
        images = {"control_image": photo, "control_mask": mask}
    given = {
        "height": side,
        "width": side,
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "latent",
    }
    if "Img2Img" in name:
        given["strength"] = 0.6  # of 3 steps; 0.8 would begin with pure noise
    elif "Inpaint" in name and "ControlNet" not in name:
        given["strength"] = 1.0
    return embeds(count, dtype) | images | given | changes


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    name, generator, encodes = type(pipe).__name__, given["generator"], type(pipe)
    images = given["control_image" if "ControlNet" in name else "image"]
    if "Plus" in name and isinstance(images, list):  # the first is the photo
        images = images[0]
    if "ControlNet" in name:
        encodes = diffusers.QwenImageInpaintPipeline
    if "ControlNet" in name or ("Img2Img" in name and "latents" in given):  # it encodes no photo
        generator = torch.Generator().manual_seed(0)
    photo = pipe.image_processor.preprocess(images, given["height"], given["width"])
    photo = photo[:, :, None].to(pipe.dtype)
    latents = encodes._encode_vae_image(pipe, image=photo, generator=generator)
    return pipe._pack_latents(latents, *latents[:, :, 0].shape)


def two(name: str = "image") -> dict[str, Any]:
    """Two photos, each with a mask of its own."""
    masks = "mask_image" if name == "image" else "control_mask"
    return {
        "count": 2,
        name: [make_photo(), make_photo(seed=1)],
        masks: [make_mask(), make_mask(box=(0, 200, 40, 256))],
    }


Calls = dict[str, Callable[[], dict[str, Any]]]
STRENGTH: Calls = {"strength": lambda: {"strength": 0.6, "num_inference_steps": 5}}
GUIDED: Calls = {
    "true CFG": lambda: {"true_cfg_scale": 3.0, **embeds(1, torch.float32, 2, "negative_")},
}
LATENTS: Calls = {"latents": lambda: {"latents": torch.randn(1, TOKENS, 16)}}
PHOTOS: Calls = {"two photos": two}
PIPELINES: dict[str, Calls] = {
    "QwenImageInpaintPipeline": STRENGTH | GUIDED | LATENTS | PHOTOS,
    "QwenImageImg2ImgPipeline": STRENGTH | GUIDED | LATENTS | PHOTOS,
    "QwenImageEditPipeline": GUIDED | LATENTS | PHOTOS,
    "QwenImageEditInpaintPipeline": STRENGTH | GUIDED | LATENTS | PHOTOS,
    "QwenImageEditPlusPipeline": GUIDED
    | LATENTS
    | PHOTOS
    | {"two pictures": lambda: {"image": [make_photo(), make_photo(seed=1)]}},
    "QwenImageControlNetInpaintPipeline": GUIDED
    | LATENTS
    | {"two photos": partial(two, "control_image")},
}
UNPACKED = {
    Lack.LATENTS: "the pipeline itself fails on latents: its prepare_latents returns one value, "
    "and its call unpacks three"
}
LACKS = {
    "QwenImageInpaintPipeline": UNPACKED,
    "QwenImageEditInpaintPipeline": UNPACKED,
    "QwenImageEditPlusPipeline": {
        Lack.TWO_PHOTOS: "the pipeline itself takes one prompt at a time"
    },
}
FAMILIES = [
    Family(
        name,
        partial(make, name, patches=name != "QwenImageInpaintPipeline"),
        partial(arguments, name),
        source,
        lambda pipe, latents: latents,
        calls,
        lacks=LACKS.get(name, {}),
    )
    for name, calls in PIPELINES.items()
]
