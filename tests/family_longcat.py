"""LongCat-Image-Edit and Fibo Edit."""

import inspect
import types
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
)
from diffusers.pipelines.bria_fibo.pipeline_bria_fibo_edit import paste_mask_on_image
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat
from diffusers.utils import logging
from family import Family, Lack
from tiny import SIZE, TEXT, make_mask, make_photo, widen
from torch import Tensor
from transformers import SmolLM3Config, SmolLM3ForCausalLM


def smaller(call: Any) -> Any:
    """The pipeline's own call, which knows no other size than a megapixel, at 256 px."""
    own: Any = inspect.unwrap(call)
    small = {"calculate_dimensions": lambda _, ratio: longcat.calculate_dimensions(SIZE**2, ratio)}
    made = types.FunctionType(own.__code__, own.__globals__ | small, argdefs=own.__defaults__)
    return torch.no_grad()(made)


class Processor:
    """Of the text encoder's pictures, which no tiny pipeline looks at."""

    image_processor = None


class TinyLongCat(LongCatImageEditPipeline):
    """The prompt is a tensor: the pipeline takes no `prompt_embeds`."""

    __call__ = smaller(LongCatImageEditPipeline.__call__)

    def _encode_prompt(self, prompt: Any, image: Any) -> Tensor:
        return prompt[0]


def make_longcat(dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=0,
            norm_num_groups=4,
            latent_channels=16,  # the pipeline counts on it
            scaling_factor=0.5,
            shift_factor=0.1,
        )
        transformer = LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=[4, 6, 6],
        )
        for part in (vae, transformer):
            widen(part)
    return ready(
        TinyLongCat(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=vae,
            text_encoder=None,  # type: ignore[arg-type]
            tokenizer=None,  # type: ignore[arg-type]
            text_processor=Processor(),  # type: ignore[arg-type]
            transformer=transformer,
        ),
        dtype,
    )


def ready(pipe: Any, dtype: torch.dtype) -> Any:
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def embeds(length: int = TEXT, seed: int = 1) -> Tensor:
    return 3 * torch.randn(1, length, 16, generator=torch.Generator().manual_seed(seed))


def longcat_arguments(*, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    given = {
        "image": make_photo(),
        "mask_image": make_mask(),
        "prompt": [embeds().to(dtype)],
        "negative_prompt_embeds": embeds(TEXT - 2, 2).to(dtype),
        "guidance_scale": 2.0,
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "latent",
    }
    return given | changes


def longcat_source(pipe: Any, given: dict[str, Any]) -> Tensor:
    photo = pipe.image_processor.preprocess(given["image"], SIZE, SIZE).to(pipe.dtype)
    latents = pipe._encode_vae_image(image=photo, generator=given["generator"])
    return pipe._pack_latents(latents, *latents.shape)


class Letters:
    """A tokenizer: each letter a token."""

    def __call__(self, texts: list[str], **options: Any) -> Any:
        length = max(len(text) for text in texts)
        ids = [[ord(letter) % 64 for letter in text.ljust(length)] for text in texts]
        mask = [[1] * len(text) + [0] * (length - len(text)) for text in texts]
        return types.SimpleNamespace(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))


def make_fibo(dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "vae": AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, False, False],
                is_residual=True,
                in_channels=12,
                out_channels=12,
                patch_size=2,
                scale_factor_spatial=16,
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[0.5, 0.2, 0.1, 0.7],
            ),
            "transformer": BriaFiboTransformer2DModel(
                in_channels=4,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                text_encoder_dim=16,
                axes_dims_rope=[4, 6, 6],
            ),
            "text_encoder": SmolLM3ForCausalLM(
                SmolLM3Config(
                    vocab_size=64,
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                )
            ),
        }
        for part in parts.values():
            widen(part)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = BriaFiboEditPipeline(scheduler=scheduler, tokenizer=Letters(), **parts)  # type: ignore[arg-type]
    return ready(pipe, dtype)


def fibo_arguments(*, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    given = {
        "image": make_photo(),
        "mask_image": make_mask(),
        "prompt": '{"edit_instruction": "a cup"}',
        "negative_prompt": "blur",  # shorter, so that its padding is masked
        "guidance_scale": 2.0,
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "latent",
    }
    return given | changes


def fibo_source(pipe: Any, given: dict[str, Any]) -> Tensor:
    photo, dtype = given["image"], pipe.dtype
    photo = photo[0] if isinstance(photo, list) else photo
    if given.get("mask"):
        photo = paste_mask_on_image(given["mask"], photo)
    return pipe.prepare_reference_latents(photo, 4, dtype, torch.device("cpu"))[0]


TWO_MASKS = {"mask_image": [make_mask(), make_mask(box=(0, 200, 40, 256))]}
BLOCKS = {Lack.BLOCKS: "its blocks are not among those that such methods know"}
SMALLER = make_photo(112, 160, seed=5)
FAMILIES = [
    Family(
        "LongCatImageEditPipeline",
        make_longcat,
        longcat_arguments,
        longcat_source,
        lambda pipe, latents: latents,
        {
            "unguided": lambda: {"guidance_scale": 1.0},
            "two images, two masks": lambda: {"num_images_per_prompt": 2, **TWO_MASKS},
        },
        lacks=BLOCKS | {Lack.STEP_CACHE: "diffusers' step cache does not know LongCat's blocks"},
    ),
    Family(
        "BriaFiboEditPipeline",
        make_fibo,
        fibo_arguments,
        fibo_source,
        lambda pipe, latents: latents,
        {
            "unguided": lambda: {"guidance_scale": 1.0},
            "photo greyed": lambda: {"mask": make_mask()},
            "another picture besides": lambda: {"image": [make_photo(), SMALLER]},
        },
        lacks=BLOCKS | {Lack.STEP_CACHE: "diffusers has no step cache for Fibo's transformer"},
    ),
]
