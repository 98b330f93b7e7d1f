"""FLUX.1: Fill, Inpaint, Image-to-Image, Kontext, Control and ControlNet."""

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from diffusers.utils import logging
from family import Family
from tiny import SIZE, TEXT, basics, make_mask, make_photo, make_vae, widen
from torch import Tensor

BESIDE = {"FluxFillPipeline": 4 * 4 + 8 * 8 * 4, "FluxControlInpaintPipeline": 4 * 4}  # channels
SHAPE = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "vae": make_vae("kl"),
            "transformer": FluxTransformer2DModel(
                in_channels=16 + BESIDE.get(name, 0),
                out_channels=16,
                guidance_embeds=True,
                **SHAPE,
            ),
        }
        if "ControlNet" in name:
            parts["controlnet"] = FluxControlNetModel(in_channels=16, guidance_embeds=True, **SHAPE)
        for part in parts.values():
            widen(part)
    texts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    if name in ("FluxInpaintPipeline", "FluxKontextPipeline", "FluxKontextInpaintPipeline"):
        texts += ("image_encoder", "feature_extractor")
    pipe = getattr(diffusers, name)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **dict.fromkeys(texts),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def embeds(count: int, dtype: torch.dtype, seed: int = 1, prefix: str = "") -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}prompt_embeds": 3 * torch.randn(count, TEXT, 16, generator=random).to(dtype),
        f"{prefix}pooled_prompt_embeds": torch.randn(count, 16, generator=random).to(dtype),
    }


def arguments(
    name: str, *, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    given = basics()
    if "Img2Img" in name or name.endswith("InpaintPipeline"):
        given["strength"] = 0.6 if "Img2Img" in name else 1.0
    if "Kontext" in name:
        given |= {"_auto_resize": False, "max_area": SIZE * SIZE}
    if "Control" in name:
        given["control_image"] = make_photo(seed=5)
    return embeds(count, dtype) | given | changes


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    photo = pipe.image_processor.preprocess(given["image"], SIZE, SIZE).to(pipe.dtype)
    generator = given["generator"]
    if "Control" in type(pipe).__name__:  # what it encodes before is random too
        control = pipe.image_processor.preprocess(given["control_image"], SIZE, SIZE)
        mask = pipe.mask_processor.preprocess(given["mask_image"], SIZE, SIZE)
        if "ControlNet" not in type(pipe).__name__:
            pipe.vae.encode((photo * (mask < 0.5)).to(pipe.dtype)).latent_dist.sample(generator)
        control = control.repeat(given.get("num_images_per_prompt", 1), 1, 1, 1)
        pipe.vae.encode(control.to(pipe.dtype)).latent_dist.sample(generator)
    latents = pipe._encode_vae_image(image=photo, generator=generator)
    return pipe._pack_latents(latents, *latents.shape)


STRENGTH = {"strength": lambda: {"strength": 0.6, "num_inference_steps": 5}}
GUIDED = {
    "true CFG": lambda: {"true_cfg_scale": 3.0, **embeds(1, torch.float32, 2, "negative_")},
}
PHOTOS = {
    "two photos, two masks": lambda: {
        "count": 2,
        "image": [make_photo(), make_photo(seed=1)],
        "mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))],
    }
}
PIPELINES = {
    "FluxFillPipeline": STRENGTH | PHOTOS,
    "FluxInpaintPipeline": STRENGTH | GUIDED | PHOTOS,
    "FluxImg2ImgPipeline": STRENGTH | GUIDED | PHOTOS,
    "FluxKontextPipeline": GUIDED | PHOTOS,
    "FluxKontextInpaintPipeline": STRENGTH | GUIDED | PHOTOS,
    "FluxControlInpaintPipeline": STRENGTH,
    "FluxControlNetInpaintPipeline": STRENGTH,
}
FAMILIES = [
    Family(
        name,
        partial(make, name),
        partial(arguments, name),
        source,
        lambda pipe, latents: latents,
        calls,
    )
    for name, calls in PIPELINES.items()
]
