"""Z-Image: Inpaint, Image-to-Image and ControlNet Inpaint."""

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImageControlNetModel,
    ZImageTransformer2DModel,
)
from family import Family, Lack
from tiny import basics, make_mask, make_photo, make_vae, widen
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts: dict[str, Any] = {
            "vae": make_vae("kl"),
            "transformer": ZImageTransformer2DModel(
                in_channels=4,
                dim=32,
                n_layers=1,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=16,
                axes_dims=[4, 6, 6],
                axes_lens=[128, 32, 32],
            ),
        }
        if "ControlNet" in name:
            parts["controlnet"] = ZImageControlNetModel(
                control_layers_places=[0],
                control_refiner_layers_places=[0],
                control_in_dim=4 + 1 + 4,
                add_control_noise_refiner="control_noise_refiner",
                dim=32,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
            )
        for part in parts.values():
            widen(part)
        for token in (parts["transformer"].x_pad_token, parts["transformer"].cap_pad_token):
            nn.init.normal_(token)
    pipe = getattr(diffusers, name)(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(dtype)


def embeds(lengths: list[int], dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
    random = torch.Generator().manual_seed(1)
    return {
        name: [3 * torch.randn(n, 16, generator=random).to(dtype) for n in lengths]
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }


def arguments(
    name: str, lengths: tuple[int, ...] = (6,), dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    given = basics() | {
        "strength": 1.0,
        "guidance_scale": 3.0,
    }
    if "ControlNet" in name:
        del given["strength"]
        given["control_image"] = make_photo(seed=3)
    elif "Img2Img" in name:  # at full strength it starts from noise alone
        given |= {"strength": 0.6, "num_inference_steps": 5}
    return embeds(list(lengths), dtype) | given | changes


def tokens(pipe: Any, latents: Tensor) -> Tensor:
    return pixel_unshuffle(latents, 2).flatten(2).mT


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    if "ControlNet" in type(pipe).__name__:  # the photo is encoded by the wrapper
        given = given | {"generator": torch.Generator().manual_seed(0)}
    photo = pipe.image_processor.preprocess(given["image"]).to(pipe.dtype)
    latents = pipe.vae.encode(photo).latent_dist.sample(given["generator"])
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    return tokens(pipe, latents)


CALLS = {
    "two photos": lambda: {
        "image": [make_photo(), make_photo(seed=1)],
        "mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))],
        "lengths": (6, 6),
    },
    "captions of different lengths": lambda: {"lengths": (6, 40)},
    "strength": lambda: {"strength": 0.5, "num_inference_steps": 4},
    "no guidance": lambda: {"guidance_scale": 0.0},
    "guidance cut short": lambda: {"cfg_truncation": 0.5},
}
LACKS = {
    Lack.STEP_CACHE: "diffusers has no step cache for Z-Image's transformer",
    Lack.BLOCKS: "its blocks are not among those that such methods know",
    Lack.OTHER_SIZE: "the pipeline itself fails: it does not resize the photo",
}
ONE_MASK = {
    Lack.TWO_IMAGES: "the pipeline itself fails on several images a prompt: it does not repeat the "
    "mask as it does the photo"
}
FAMILIES = [
    Family(
        name,
        partial(make, name),
        partial(arguments, name),
        source,
        tokens,
        {call: CALLS[call] for call in calls},
        image_first=True,
        lacks=LACKS | (ONE_MASK if "ControlNet" in name else {}),
    )
    for name, calls in (
        ("ZImageInpaintPipeline", CALLS),
        ("ZImageImg2ImgPipeline", ["two photos", "guidance cut short"]),
        (
            "ZImageControlNetInpaintPipeline",
            ["two photos", "no guidance", "guidance cut short"],
        ),
    )
]
