"""JoyImage Edit and Edit Plus."""

from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
)
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from family import Family, Lack
from family_qwen import Patches
from PIL import Image
from tiny import TEXT, make_mask, make_photo, widen
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle


class TinyPlus(diffusers.JoyImageEditPlusPipeline):
    """Words are the noise that they seed: the pipeline takes no `prompt_embeds` beside pictures."""

    def encode_prompt_multiple_images(self, prompt: Any, **given: Any) -> tuple[Tensor, Tensor]:
        texts = [prompt] if isinstance(prompt, str) else prompt
        mask = torch.ones(len(texts), TEXT, dtype=torch.long)
        mask[:, TEXT - 1 :] = 0
        made = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        words = torch.stack([3 * torch.randn(TEXT, 16, generator=random) for random in made])
        device = self._execution_device
        return words.to(device, self.transformer.dtype), mask.to(device)


SIDE = 1024  # it knows no other size; 16x16 tokens of 64 px


def make_vae(patches: bool) -> nn.Module:
    """Of 32 pixels a side of a latent, no more than a picture of 1024 px can bear; or of 8."""
    downs = 5 if patches else 3
    vae: Any = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * (downs + 1),
        num_res_blocks=0,
        temperal_downsample=[False] * downs,
        scale_factor_spatial=2**downs,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.6, 0.7, 0.8],
    )
    if patches:
        kernel = (1, 2**downs, 2**downs)
        vae.encoder = Patches(nn.Conv3d(3, 8, kernel, kernel))
        vae.decoder = Patches(nn.ConvTranspose3d(4, 3, kernel, kernel))
    return vae


def make(
    name: str, dtype: torch.dtype = torch.float32, patches: bool = True, words: bool = False
) -> Any:
    """`words`: of the class that reads them by an encoder of its own."""
    plus = "Plus" in name
    kind = JoyImageEditPlusTransformer3DModel if plus else JoyImageEditTransformer3DModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "vae": make_vae(patches),
            "transformer": kind(
                in_channels=4,
                hidden_size=32,
                num_attention_heads=2,
                text_dim=16,
                mlp_width_ratio=2.0,
                num_layers=2,
                rope_dim_list=[4, 6, 6],
                rope_type="mrope",
            ),
        }
        for part in parts.values():
            widen(part)
        for block in parts["transformer"].double_blocks:
            for modulation in (block.img_mod, block.txt_mod):
                nn.init.normal_(modulation.modulate_table, std=0.3)
    pipe = (TinyPlus if plus and not words else getattr(diffusers, name))(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(("text_encoder", "tokenizer", "processor")),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def embeds(count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random, made = torch.Generator().manual_seed(1), {}
    for prefix in ("", "negative_"):
        mask = torch.ones(count, TEXT, dtype=torch.long)
        mask[:, TEXT - 2 :] = 0
        words = 3 * torch.randn(count, TEXT, 16, generator=random)
        made[f"{prefix}prompt_embeds"] = words.to(dtype)
        made[f"{prefix}prompt_embeds_mask"] = mask
    return made


def scaled(picture: Image.Image, side: int = SIDE) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.NEAREST)


def arguments(
    name: str, count: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, Any]:
    photo = "images" if "Plus" in name else "image"
    given = {
        photo: make_photo(),
        "mask_image": make_mask(),
        "height": SIDE,
        "width": SIDE,
        "guidance_scale": 3.0,
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "latent",
    } | changes
    for key in (photo, "mask_image"):
        one = given.get(key)
        given[key] = [*map(scaled, one)] if isinstance(one, list) else scaled(one)  # type: ignore[arg-type]
    if "Plus" in name:
        photos = given["images"]
        given["images"] = photos if isinstance(photos, list) else [photos]
        return {"prompt": "a cup"} | given
    return embeds(count, dtype) | given


def tokens(pipe: Any, latents: Tensor) -> Tensor:
    if "Plus" in type(pipe).__name__:  # the photo's own tokens follow
        return latents.flatten(2)[:, :256]
    return pixel_unshuffle(latents[:, -1, :, 0], 2).flatten(2).mT


def source(pipe: Any, given: dict[str, Any]) -> Tensor:
    plus = "Plus" in type(pipe).__name__
    photos = given["images"][:1] if plus else given["image"]
    photos = photos if isinstance(photos, list) else [photos]
    repeats = given.get("num_images_per_prompt", 1)
    batch, dtype = len(given.get("prompt_embeds", [""])) * repeats, pipe.dtype
    if "latents" not in given and not plus:  # it draws noise, then samples the posterior
        randn_tensor((batch, 1, 4, 1, 32, 32), generator=given["generator"], dtype=dtype)
    if plus:
        pixels = pipe.image_processor.preprocess(photos).to(dtype)
    else:  # in the model's precision, which matters in half
        arrays = [torch.from_numpy(np.array(photo)) for photo in photos]
        pixels = (torch.stack(arrays).to(dtype) / 127.5 - 1).movedim(-1, 1)
    pixels = pixels[:, :, None].repeat(batch // len(photos), 1, 1, 1, 1)
    found = pipe.vae.encode(pixels).latent_dist
    latents = found.mode() if plus else found.sample()
    mean, std = (
        torch.tensor(getattr(pipe.vae.config, name)).view(1, -1, 1, 1, 1).to(dtype)
        for name in ("latents_mean", "latents_std")
    )
    latents = (latents - mean) / std
    return pixel_unshuffle(latents[:, :, 0], 2).flatten(2).mT


ONE_PROMPT = {
    Lack.TWO_IMAGES: "the pipeline itself makes one picture a prompt",
    Lack.TWO_PHOTOS: "pictures of several prompts are padded to one length: one prompt at a time",
}
LACKS = {
    Lack.STEP_CACHE: "diffusers has no step cache for JoyImage's transformer",
    Lack.LOW_RANK: "diffusers' class of this transformer takes no adapters",
    Lack.BLOCKS: "its blocks are not among those that such methods know",
}
FAMILIES = [
    Family(
        "JoyImageEditPipeline",
        partial(make, "JoyImageEditPipeline"),
        partial(arguments, "JoyImageEditPipeline"),
        source,
        tokens,
        {
            "unguided": lambda: {"guidance_scale": 1.0},
            "latents": lambda: {"latents": torch.randn(1, 1, 4, 1, 32, 32)},
            "two photos": lambda: {
                "image": [make_photo(), make_photo(seed=1)],
                "mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))],
                "count": 2,
            },
        },
        image_first=True,
        lacks=LACKS,
    ),
    Family(
        "JoyImageEditPlusPipeline",
        partial(make, "JoyImageEditPlusPipeline"),
        partial(arguments, "JoyImageEditPlusPipeline"),
        source,
        tokens,
        {
            "unguided": lambda: {"guidance_scale": 1.0},
            "another picture besides": lambda: {"images": [make_photo(), make_photo(seed=5)]},
        },
        image_first=True,
        lacks=LACKS | ONE_PROMPT,
    ),
]
