"""Fibo 2."""

from typing import Any

import torch
from diffusers import (
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils import logging
from family import Family, Lack
from family_flux2 import make_vae
from tiny import SIZE, TEXT, make_mask, make_photo, widen
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle


def make(dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = make_vae()
        transformer = BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=16,
            injection_layer_ids=(0,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=2,
            gist_min_text_len=4,
            gist_max_text_len=16,
            axes_dims=(4, 6, 6),
            axes_lens=(32, 64, 64),
        )
        widen(transformer)
        nn.init.normal_(transformer.perceiver.latent_queries)
        nn.init.ones_(transformer.layers[0].cross_attn_gate)
    pipe = BriaFibo2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=None,  # type: ignore[arg-type]
        processor=None,  # type: ignore[arg-type]
        transformer=transformer,
        vae=vae,
    )
    pipe.default_sample_size = SIZE // 8  # to which several pictures are brought
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def embeds(count: int = 1, length: int = TEXT, seed: int = 1) -> Tensor:
    """Two bundles: that of the gist tokens, and that of the layer."""
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, 2, length, 16, generator=random)


def arguments(*, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    given = {
        "image": make_photo(),
        "mask_image": make_mask(),
        "prompt_embeds": embeds(count).to(dtype),
        "negative_prompt_embeds": embeds(count, TEXT + 3, 2).to(dtype),  # more gist tokens
        "guidance_scale": 2.0,
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "latent",
    }
    return given | changes


def tokens(pipe: Any, latents: Tensor) -> Tensor:
    return pixel_unshuffle(latents, 2).flatten(2).mT


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    photo, sizes = given["image"], {"height": SIZE, "width": SIZE, "area": SIZE**2}
    pixels, _ = pipe.image_processor.preprocess(photo, mask=given.get("mask"), **sizes)
    return tokens(pipe, pipe.prepare_image_latents(pixels[:1], 1, "cpu", pipe.dtype)[0])


OTHER = make_photo(112, 160, seed=5)
FAMILIES = [
    Family(
        "BriaFibo2Pipeline",
        make,
        arguments,
        source,
        tokens,
        {
            "unguided": lambda: {"guidance_scale": 1.0},
            "photo greyed": lambda: {"mask": make_mask()},
            "two prompts": lambda: {"count": 2},
            "another picture besides": lambda: {"image": [make_photo(), OTHER]},
            "latents": lambda: {"latents": torch.randn(1, 4, 32, 32)},
        },
        lacks={
            Lack.BLOCKS: "its blocks are not among those that such methods know",
            Lack.STEP_CACHE: "diffusers has no step cache for Fibo 2's transformer",
        },
    )
]
