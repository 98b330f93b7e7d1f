"""Chroma: Inpaint and Image-to-Image."""

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging
from family import Family, Lack
from tiny import SIZE, TEXT, basics, make_mask, make_photo, make_vae, widen
from torch import Tensor


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = make_vae("kl")
        transformer = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
        for part in (vae, transformer):
            widen(part)
    transformer.register_to_config(guidance_embeds=False)  # the inpaint pipeline asks for it
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


def embeds(count: int, prefix: str = "", padding: int = 2) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1 + len(prefix))
    mask = torch.ones(count, TEXT)
    mask[:, TEXT - padding :] = 0
    return {
        f"{prefix}prompt_embeds": 3 * torch.randn(count, TEXT, 16, generator=random),
        f"{prefix}prompt_attention_mask": mask,
    }


def arguments(
    name: str, *, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    given = basics() | {
        "strength": 1.0,
        "guidance_scale": 2.0,
        **embeds(count),
        **embeds(count, "negative_", padding=1),
    }
    if "Img2Img" in name:  # of noise alone, the photo says nothing
        given |= {"strength": 0.75, "num_inference_steps": 4}
    return {
        k: v.to(dtype) if isinstance(v, Tensor) and "embeds" in k else v
        for k, v in (given | changes).items()
    }


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    photo = pipe.image_processor.preprocess(given["image"], SIZE, SIZE).to(pipe.dtype)
    latents = pipe._encode_vae_image(image=photo, generator=given["generator"])
    return pipe._pack_latents(latents, *latents.shape)


TWO_MASKS = {"mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))]}
CALLS = {
    "unguided": lambda: {"guidance_scale": 1.0},
    "strength": lambda: {"strength": 0.6, "num_inference_steps": 5},
    "two photos, two masks": lambda: {
        "count": 2, "image": [make_photo(), make_photo(seed=1)], **TWO_MASKS,
    },
}  # fmt: skip
LACKS = {
    Lack.TWO_IMAGES: "several images a prompt fail in the pipeline itself where prompt embeddings "
    "are given: it does not repeat them; with a prompt in words they work",
    Lack.BLOCKS: "its blocks are not among those that such methods know",
    Lack.STEP_CACHE: "diffusers' step cache does not know Chroma's blocks",
}
FAMILIES = [
    Family(
        name,
        partial(make, name),
        partial(arguments, name),
        source,
        lambda pipe, latents: latents,
        CALLS,
        lacks=LACKS,
    )
    for name in ("ChromaInpaintPipeline", "ChromaImg2ImgPipeline")
]
