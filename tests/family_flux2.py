"""FLUX.2: dev, Klein, Klein Inpaint."""

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from diffusers.utils import logging
from family import Family, Lack
from tiny import SIZE, TEXT, basics, make_mask, make_photo, widen
from torch import Tensor


def make_vae() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4), layers_per_block=0, norm_num_groups=4, latent_channels=4
    )
    widen(vae)
    vae.bn.running_mean.normal_(0, 0.5)
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = make_vae()
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=name == "Flux2Pipeline",
        )
        widen(transformer)
    pipe = getattr(diffusers, name)(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=vae,
    )
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def embeds(count: int = 1, length: int = TEXT, seed: int = 1) -> Tensor:
    return 3 * torch.randn(count, length, 16, generator=torch.Generator().manual_seed(seed))


def arguments(
    name: str, *, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    given = basics() | {
        "prompt_embeds": embeds(count).to(dtype),
    }
    if "Klein" in name:  # guided: the negative prompt of another length
        given["negative_prompt_embeds"] = embeds(count, TEXT - 2, 2).to(dtype)
        given["guidance_scale"] = 2.0
    if "Inpaint" in name:
        given["strength"] = 1.0
    return given | changes


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    photos = given["image"] if "Inpaint" in type(pipe).__name__ else _first(given["image"])
    photo = pipe.image_processor.preprocess(photos, SIZE, SIZE).to(pipe.dtype)
    return pipe._pack_latents(pipe._encode_vae_image(image=photo, generator=given["generator"]))


def _first(image: Any) -> Any:
    return image[0] if isinstance(image, list) else image


TWO_MASKS = {"mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))]}
OTHER = make_photo(112, 160, seed=5)
REFERENCES = {
    "two prompts, two masks": lambda: {"count": 2, **TWO_MASKS},
    "another picture besides": lambda: {"image": [make_photo(), OTHER]},
}
KLEIN = {
    "unguided": lambda: {"guidance_scale": 1.0},
    "sigmas": lambda: {"sigmas": [1.0, 0.8, 0.1]},
}
INPAINT = {
    "strength": lambda: {"strength": 0.6, "num_inference_steps": 5},
    "two photos, two masks": lambda: {
        "count": 2, "image": [make_photo(), make_photo(seed=1)], **TWO_MASKS,
    },
    "another picture besides": lambda: {"image_reference": OTHER},
}  # fmt: skip
PIPELINES = {
    "Flux2Pipeline": REFERENCES,
    "Flux2KleinPipeline": REFERENCES | KLEIN,
    "Flux2KleinInpaintPipeline": INPAINT,
}
FAMILIES = [
    Family(
        name,
        partial(make, name),
        partial(arguments, name),
        source,
        lambda pipe, latents: latents,
        calls,
        lacks={
            Lack.BLOCKS: "its blocks are not among those that such methods know",
            Lack.STEP_CACHE: "diffusers' step cache itself fails on FLUX.2's blocks",
        },
    )
    for name, calls in PIPELINES.items()
]
