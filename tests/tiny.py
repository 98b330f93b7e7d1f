"""Real pipelines at tiny size, with random weights, and inputs for them.

Random weights are drawn wide enough that every input counts: `test_the_tiny_pipeline_listens`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxFillPipeline,
    FluxInpaintPipeline,
    FluxTransformer2DModel,
)
from diffusers.utils import logging
from PIL import Image
from torch import Tensor, nn

from hilotoken.methods import Method
from hilotoken.plan import TokenPlan

SIZE, GRID, TOKENS, TEXT = 256, (16, 16), 256, 6  # pixels, tokens a side, tokens, text tokens


@dataclass(frozen=True)
class Fixed(Method):
    """A method whose plan is given."""

    given: TokenPlan

    def plan(self, photo_B3HW: Tensor, mask_B1HW: Tensor, grid: tuple[int, int]) -> TokenPlan:
        return self.given


def fixed(keep_K: Tensor, count_S: Tensor | None = None, weighted: bool = False) -> Fixed:
    """Run exactly these tokens of the 16x16 grid."""
    count_S = torch.ones(len(keep_K)) if count_S is None else count_S
    edit_N = torch.zeros(TOKENS, dtype=torch.bool)
    nothing = torch.arange(0)
    return Fixed(TokenPlan(GRID, keep_K, edit_N, 0, nothing, count_S, weighted=weighted))


def private(photos: Tensor) -> list[torch.Generator]:
    """What the wrapper encodes photos by that the pipeline does not encode: the same for each."""
    return [torch.Generator().manual_seed(0) for _ in photos]


def make_vae(kind: str) -> nn.Module:
    if kind == "tiny":
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=0,  # most of an edit's time would be theirs
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


def widen(model: nn.Module) -> None:
    """Draw weights anew, wide enough that every input counts."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)


# Channels of a token of the transformer besides those of x_t, and its size.
BESIDE = {"FluxFillPipeline": 4 * 4 + 8 * 8 * 4, "FluxControlInpaintPipeline": 4 * 4}
SHAPE: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "guidance_embeds": True,
}


def make_pipe(
    vae: str = "kl",
    dtype: torch.dtype = torch.float32,
    shifting: bool = True,
    cls: type[Any] = FluxFillPipeline,
) -> Any:
    """A FLUX pipeline of the given class, its weights the same every time.

    `vae` is "kl" (samples its posterior) or "tiny" (does not); "inpaint" is a `FluxInpaintPipeline`
    on the former, with nothing but x_t in its channels.
    """
    if vae == "inpaint":
        vae, cls = "kl", FluxInpaintPipeline
    channels = 4 * 4 + sum(BESIDE.get(base.__name__, 0) for base in cls.__mro__)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "transformer": FluxTransformer2DModel(in_channels=channels, out_channels=16, **SHAPE),
            "vae": make_vae(vae),
        }
        if issubclass(cls, FluxControlNetInpaintPipeline):
            parts["controlnet"] = FluxControlNetModel(in_channels=16, **SHAPE)
        for part in parts.values():
            widen(part)
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifting),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    logging.set_verbosity_error()  # a cast by `to` is warned of, and meant
    return pipe.to(dtype)


def make_photo(height: int = SIZE, width: int = SIZE, seed: int = 0) -> Image.Image:
    """Smooth colours, with texture in the left half."""
    return _photo(height, width, seed).copy()


@cache
def _photo(height: int, width: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    smooth = np.stack([rows, columns, 1 - rows * columns], -1) * 200
    texture = random.normal(0, 40, (height, width, 3)) * (columns < 0.5)[..., None]
    return Image.fromarray((smooth + 20 + texture).clip(0, 255).astype(np.uint8))


def make_mask(
    height: int = SIZE, width: int = SIZE, box: tuple[int, int, int, int] = (70, 90, 150, 160)
) -> Image.Image:
    """White in the box of left, top, right and bottom."""
    mask = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = 255
    return Image.fromarray(mask)


def prompt(count: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": 3 * torch.randn(count, TEXT, 16, generator=random).to(dtype),
        "pooled_prompt_embeds": torch.randn(count, 16, generator=random).to(dtype),
    }


def basics() -> dict[str, Any]:
    """What every small edit is given; a fresh generator each time."""
    return {
        "image": make_photo(),
        "mask_image": make_mask(),
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "latent",
    }


def arguments(**changes: Any) -> dict[str, Any]:
    """The arguments of a small edit."""
    return prompt() | basics() | changes


def latents(pipe: Any, **changes: Any) -> Tensor:
    return pipe(**arguments(**changes)).images


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image)


def inside(mask: Image.Image) -> np.ndarray:
    return np.asarray(mask) >= 128
