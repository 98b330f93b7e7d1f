"""Kandinsky 5 Image-to-Image."""

import sys
import types
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2IPipeline,
    Kandinsky5Transformer3DModel,
)
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5AttnProcessor
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from family import Family, Lack
from tiny import SIZE, TEXT, make_mask, make_photo, make_vae, widen
from torch import Tensor
from torch.nn.functional import pixel_unshuffle


class Exact(Kandinsky5AttnProcessor):
    """The model's own attention, which rounds queries and keys to bfloat16 in any precision,
    without that: rounded, what differs by 1e-7 may come to differ by 1e-2."""

    torch = types.ModuleType("torch")
    vars(torch).update(vars(sys.modules["torch"]) | {"bfloat16": sys.modules["torch"].float32})
    own: Any = Kandinsky5AttnProcessor.__call__
    __call__ = types.FunctionType(
        own.__code__, own.__globals__ | {"torch": torch}, argdefs=own.__defaults__
    )


def make(dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = make_vae("kl")
        transformer = Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=4,
            model_dim=32,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            visual_cond=True,
        )
        for part in (vae, transformer):
            widen(part)
    pipe = Kandinsky5I2IPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,  # type: ignore[arg-type]
        transformer=transformer,
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),  # type: ignore[arg-type]
    )
    pipe.resolutions = [(SIZE, SIZE)]  # it knows no others than a megapixel's
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    transformer.set_attn_processor(Exact())
    pipe.to(dtype)
    for name, module in transformer.named_modules():  # as `from_pretrained` leaves them
        if any(name.endswith(kept) for kept in transformer._keep_in_fp32_modules):
            module.float()
    return pipe


def embeds(count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random, made = torch.Generator().manual_seed(1), {}
    for prefix in ("", "negative_"):
        words = 3 * torch.randn(count, TEXT, 16, generator=random)
        made[f"{prefix}prompt_embeds_qwen"] = words.to(dtype)
        made[f"{prefix}prompt_embeds_clip"] = torch.randn(count, 16, generator=random).to(dtype)
        lengths = torch.arange(count + 1, dtype=torch.int32) * TEXT
        made[f"{prefix}prompt_cu_seqlens"] = lengths
    return made


def arguments(*, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    given = {
        "image": make_photo(),
        "mask_image": make_mask(),
        "height": SIZE,
        "width": SIZE,
        "guidance_scale": 3.0,
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "latent",
    }
    return embeds(count, dtype) | given | changes


def tokens(pipe: Any, latents: Tensor) -> Tensor:
    return pixel_unshuffle(latents[:, 0].movedim(-1, 1), 2).flatten(2).mT


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    generator, dtype = given["generator"], pipe.dtype
    photos = given["image"] if isinstance(given["image"], list) else [given["image"]]
    randn_tensor((len(photos), 1, 32, 32, 4), generator=generator, dtype=dtype)  # it draws first
    pixels = pipe.image_processor.preprocess(photos, SIZE, SIZE).to(dtype)
    latents = pipe.vae.encode(pixels).latent_dist.sample(generator)
    return pixel_unshuffle(latents * pipe.vae.config.scaling_factor, 2).flatten(2).mT


FAMILIES = [
    Family(
        "Kandinsky5I2IPipeline",
        make,
        arguments,
        source,
        tokens,
        {
            "unguided": lambda: {"guidance_scale": 1.0},
            "two photos": lambda: {
                "image": [make_photo(), make_photo(seed=1)],
                "mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))],
                "count": 2,
            },
        },
        image_first=True,
        lacks={
            Lack.TWO_IMAGES: "the pipeline itself fails on several images a prompt: it does not "
            "repeat the photo",
            Lack.STEP_CACHE: "diffusers' step cache does not know Kandinsky's blocks",
            Lack.BLOCKS: "its blocks are not among those that such methods know",
        },
    )
]
