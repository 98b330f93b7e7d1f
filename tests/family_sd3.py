"""Stable Diffusion 3 and 3.5: Inpaint, by blending and by channels, and Image-to-Image."""

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.utils import logging
from family import Family, Lack
from tiny import TEXT, basics, make_mask, make_photo, make_vae, private, widen
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3")
NO_TEXT = dict.fromkeys((*PARTS, "tokenizer_3", "image_encoder", "feature_extractor"))


def make(name: str, dtype: torch.dtype = torch.float32, channels: int = 16) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae: Any = make_vae("kl")
        parts = {
            "vae": AutoencoderKL.from_config(dict(vae.config, latent_channels=16)),
            "transformer": SD3Transformer2DModel(
                sample_size=32,
                in_channels=channels,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                caption_projection_dim=16,
                pooled_projection_dim=16,
                pos_embed_max_size=20,  # the grid is cropped from its middle
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
        }
        for part in parts.values():
            widen(part)
    pipe = getattr(diffusers, name)(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **NO_TEXT, **parts
    )
    pipe.encode_prompt = partial(repeating, pipe.encode_prompt)
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def repeating(encode: Any, num_images_per_prompt: int = 1, **given: Any) -> tuple[Any, ...]:
    """For every image, as the pipeline does with words; embeddings it leaves as they are."""
    found = encode(num_images_per_prompt=num_images_per_prompt, **given)
    return tuple(x if x is None else x.repeat_interleave(num_images_per_prompt, 0) for x in found)


def embeds(count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random, made = torch.Generator().manual_seed(1), {}
    for prefix in ("", "negative_"):
        made[f"{prefix}prompt_embeds"] = 3 * torch.randn(count, TEXT, 16, generator=random)
        made[f"{prefix}pooled_prompt_embeds"] = torch.randn(count, 16, generator=random)
    return {name: value.to(dtype) for name, value in made.items()}


def arguments(
    name: str, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    given = basics() | {
        "strength": 1.0,
        "guidance_scale": 3.0,
    }
    if "Img2Img" in name:  # at full strength it starts from noise alone
        given |= {"strength": 0.6, "num_inference_steps": 5}
    return embeds(count, dtype) | given | changes


def tokens(pipe: Any, latents: Tensor) -> Tensor:
    return pixel_unshuffle(latents, 2).flatten(2).mT


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    generator = given["generator"]
    photo = pipe.image_processor.preprocess(given["image"], given["height"], given["width"])
    if pipe.transformer.config.in_channels == 33 and given["strength"] == 1:
        generator = private(photo)  # it encodes no photo; the wrapper does
    latents = pipe.vae.encode(photo.to(pipe.dtype)).latent_dist.sample(generator)
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    return tokens(pipe, latents)


TWO = {
    "two photos": lambda: {
        "image": [make_photo(), make_photo(seed=1)],
        "mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))],
        "count": 2,
    },
}
CALLS = TWO | {
    "strength": lambda: {"strength": 0.5, "num_inference_steps": 4},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "photo of another size": lambda: {"image": make_photo(300, 200)},
}
LACKS = {
    Lack.ALIGNED: "SD3 adds its positions to the tokens once, at the start: "
    "there is nothing that coarse queries could see on another stride",
    Lack.COMPILED: "diffusers names no repeated blocks of SD3's transformer to compile",
    Lack.STEP_CACHE: "diffusers has no step cache for SD3's transformer",
}
GENERATORS = {Lack.GENERATORS: "the pipeline itself fails on one with a single photo"}
FAMILIES = [
    Family(
        f"{name}{suffix}",
        partial(make, name, channels=channels),
        partial(arguments, name),
        source,
        tokens,
        {call: CALLS[call] for call in calls},
        image_first=True,
        lacks=LACKS | (GENERATORS if "Img2Img" in name else {}),
    )
    for name, suffix, channels, calls in (
        ("StableDiffusion3InpaintPipeline", "", 16, CALLS),
        ("StableDiffusion3InpaintPipeline", ", 33 channels", 33, ["two photos", "strength"]),
        ("StableDiffusion3Img2ImgPipeline", "", 16, ["two photos", "no guidance"]),
    )
]
