"""FLUX.1: Fill, Inpaint, Image-to-Image, Kontext, Control and ControlNet."""

from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from family import Family
from tiny import SIZE, TEXT, TOKENS, basics, make_mask, make_photo, make_pipe
from torch import Tensor


def make(name: str, dtype: torch.dtype = torch.float32, vae: str = "kl") -> Any:
    return make_pipe(vae, dtype, cls=getattr(diffusers, name))


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
    size = given["height"], given["width"]
    photo = pipe.image_processor.preprocess(given["image"], *size).to(pipe.dtype)
    generator = given["generator"]
    if "latents" in given and "Fill" in type(pipe).__name__:  # it encodes none; the wrapper does
        generator = torch.Generator().manual_seed(0)
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
TWO = {"image": [make_photo(), make_photo(seed=1)]}
MASKS = {"mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))]}
PHOTOS = {"two photos, two masks": lambda: {"count": 2} | TWO | MASKS}
# Every other way of calling that a pipeline offers and that the wrapper could get wrong.
WAYS = {
    "generators": lambda: {
        "num_images_per_prompt": 2,
        "generator": [torch.Generator().manual_seed(seed) for seed in (7, 8)],
    },
    "one last step": lambda: {"strength": 0.25, "num_inference_steps": 4},
    "sigmas": lambda: {"sigmas": [1.0, 0.8, 0.1]},
    "latents": lambda: {"latents": torch.randn(1, TOKENS, 16)},
    "tensors": lambda: {
        "image": torch.rand(3, SIZE, SIZE), "mask_image": torch.eye(SIZE)[None, None],
    },
    "arrays": lambda: {
        "image": np.random.default_rng(0).random((SIZE, SIZE, 3), np.float32),
        "mask_image": np.eye(SIZE, dtype=np.float32),
    },
    "two tensors": lambda: {
        "count": 2, "image": torch.rand(2, 3, SIZE, SIZE),
        "mask_image": torch.stack([torch.eye(SIZE), torch.eye(SIZE).flip(0)])[:, None],
    },
    "two photos, one mask": lambda: {"count": 2} | TWO,
    "one photo, two masks": lambda: {"count": 2} | MASKS,
    "two photos, four prompts": lambda: {"count": 4} | TWO | MASKS,
    "photo of another size": lambda: {"image": make_photo(300, 200)},
    "rounded size": lambda: {
        "image": make_photo(231, 250), "mask_image": make_mask(231, 250),
        "height": 231, "width": 250,
    },
}  # fmt: skip
PIPELINES = {
    "FluxFillPipeline": STRENGTH | PHOTOS | WAYS,
    "FluxFillPipeline, AutoencoderTiny": STRENGTH | PHOTOS | WAYS,
    "FluxInpaintPipeline": STRENGTH | GUIDED | PHOTOS | WAYS,
    "FluxImg2ImgPipeline": STRENGTH | GUIDED | PHOTOS,
    "FluxKontextPipeline": GUIDED | PHOTOS,
    "FluxKontextInpaintPipeline": STRENGTH | GUIDED | PHOTOS,
    "FluxControlInpaintPipeline": STRENGTH,
    "FluxControlNetInpaintPipeline": STRENGTH,
}
FAMILIES = [
    Family(
        name,
        partial(make, name.split(",")[0], vae="tiny" if "Tiny" in name else "kl"),
        partial(arguments, name.split(",")[0]),
        source,
        lambda pipe, latents: latents,
        calls,
    )
    for name, calls in PIPELINES.items()
]
