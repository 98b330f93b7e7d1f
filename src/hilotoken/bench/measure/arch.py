"""True architectures with random weights, at any scale: speed depends on shapes, not on weights.

A scale is a share of the depth and of the width. A block's FLOPs go as `S (6 D + S)` for S tokens
of D channels, so a shallower model of the true width has the FLOP ratio of the full one, while a
narrower one gains more from a shorter sequence than the full one would.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from torch import nn

from ...model import REGISTERS, EmbeddedFillPipeline


@dataclass(frozen=True)
class Scale:
    """Shares of the true depth and width; the VAE is narrowed to keep about its share of FLOPs."""

    name: str
    depth: float
    width: float = 1.0

    def of(self, count: int, share: float) -> int:
        """That share of a count, at least 1."""
        return max(1, round(count * share))


# One double and two single blocks of the true width; the same at a quarter of it.
SCALES = {
    scale.name: scale
    for scale in (Scale("full", 1), Scale("small", 1 / 19), Scale("tiny", 1 / 19, 1 / 4))
}


def scale_from(text: str) -> Scale:
    """The scale of that name, or of that share of the depth at the true width.

    Raises:
        ValueError: neither a name nor a share above 0 and up to 1.
    """
    if text in SCALES:
        return SCALES[text]
    try:
        depth = float(text)
    except ValueError:
        depth = 0.0
    if not 0 < depth <= 1:
        raise ValueError(
            f"unknown scale {text!r}; choose from {list(SCALES)}, or a share of the depth above 0 "
            "and up to 1"
        )
    return Scale(text, depth)


def _square(size: int) -> dict[str, Any]:
    return {"height": size, "width": size}


@dataclass
class Subject:
    """What is timed: a pipeline, and its arguments besides the photo, the mask and their size.

    text:     tokens of the prompt, which no method shortens
    square:   from the pixels a side: the arguments that ask for just that size
    compiled: whether its transformer's blocks are
    """

    pipe: Any
    text: int = REGISTERS
    arguments: dict[str, Any] = field(default_factory=dict)
    arch: str = "embedded"
    scale: str = "full"
    square: Callable[[int], dict[str, Any]] = _square
    compiled: bool = False

    def compile(self, **options: Any) -> None:
        """Compile the repeated blocks, once for all lengths."""
        self.pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, **options)
        self.compiled = True

    @property
    def shape(self) -> str:
        """Blocks, heads and parameters, in words."""
        model: nn.Module = self.pipe.transformer
        config: Any = self.pipe.transformer.config
        depths = [config.get(name) for name in ("num_layers", "num_single_layers")]
        blocks = "+".join(str(depth) for depth in depths if depth)
        heads = f"{config.get('num_attention_heads')}x{config.get('attention_head_dim')}"
        return f"{blocks} blocks of {heads}, {_parameters(model) / 1e9:.3g} B"


def build(
    arch: str, scale: Scale, *, device: torch.device, dtype: torch.dtype, text: int = 512
) -> Subject:
    """An architecture at a scale, made on the device itself: no copy of it is on the CPU.

    Raises:
        ValueError: an unknown architecture, or one too large for the device's memory.
    """
    if arch not in ARCHS:
        raise ValueError(f"unknown arch {arch!r}; choose from {['embedded', *sorted(ARCHS)]}")
    with torch.device("meta"):
        _check_memory(arch, scale, sum(map(_parameters, _parts(arch, scale))), device, dtype)
    with torch.random.fork_rng(), _made_on(device, dtype):
        torch.manual_seed(0)
        pipe = ARCHS[arch].pipe(*_parts(arch, scale))
        prompt = ARCHS[arch].prompt(pipe.transformer.config, text)
    pipe.set_progress_bar_config(disable=True)
    return Subject(pipe, text, prompt, arch, scale.name, ARCHS[arch].square)


def subject_of(pipe: Any, text: int) -> Subject:
    """A loaded Fill pipeline; the embedded model brings its own prompt."""
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe, EmbeddedFillPipeline):
        return Subject(pipe)
    with _made_on(pipe.transformer.device, pipe.transformer.dtype):
        return Subject(pipe, text, _flux_prompt(pipe.transformer.config, text), "loaded")


@dataclass(frozen=True)
class Arch:
    """How an architecture is made.

    transformer, vae: from a scale
    pipe:             from those two, without text encoders
    prompt:           from the transformer's config and a number of text tokens: the pipeline's
                      arguments that stand for a text
    square:           from the pixels a side: the arguments that ask for just that size
    """

    transformer: Callable[[Scale], nn.Module]
    vae: Callable[[Scale], nn.Module]
    pipe: Callable[[Any, Any], Any]
    prompt: Callable[[Any, int], dict[str, Any]]
    square: Callable[[int], dict[str, Any]]


def _parts(arch: str, scale: Scale) -> tuple[nn.Module, nn.Module]:
    made = ARCHS[arch].transformer(scale), ARCHS[arch].vae(scale)
    return made[0].eval(), made[1].eval()


def _parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Tensors are made on this device, and of this dtype unless they name their own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _check_memory(
    arch: str, scale: Scale, parameters: int, device: torch.device, dtype: torch.dtype
) -> None:
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu" and hasattr(os, "sysconf"):
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    needed = parameters * dtype.itemsize
    if needed > 0.9 * room:
        raise ValueError(
            f"{arch} at scale {scale.name} has {parameters / 1e9:.1f} B parameters, "
            f"{needed / 2**30:.0f} GiB in {str(dtype).removeprefix('torch.')}, but {device} has "
            f"room for {room / 2**30:.0f}: use --scale small, or another device"
        )


def _flux_transformer(channels: int, scale: Scale) -> nn.Module:
    """FLUX.1 with so many channels a token going in; 12 B parameters at full scale."""
    return FluxTransformer2DModel(
        in_channels=channels,
        out_channels=64,
        num_layers=scale.of(19, scale.depth),
        num_single_layers=scale.of(38, scale.depth),
        num_attention_heads=scale.of(24, scale.width),
        attention_head_dim=128,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
    )


def _flux_vae(scale: Scale) -> nn.Module:
    """FLUX.1's autoencoder: 16 latent channels, 8 pixels a side of a latent."""
    # The FLOPs of both go as the square of their widths, the transformer's also as its depth.
    base = 8 * scale.of(16, scale.width * sqrt(scale.depth))
    kind: Any = AutoencoderKL  # whose own types ask for one block
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(base, 2 * base, 4 * base, 4 * base),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=min(32, base),
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _flux_pipe(pipeline: Callable[..., Any], transformer: Any, vae: Any) -> Any:
    given = inspect.signature(pipeline).parameters
    none = dict.fromkeys(name for name in given if name not in ("scheduler", "transformer", "vae"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return pipeline(scheduler=scheduler, transformer=transformer, vae=vae, **none)


def _flux_prompt(config: Any, text: int) -> dict[str, torch.Tensor]:
    return {
        "prompt_embeds": torch.randn(1, text, config["joint_attention_dim"]),
        "pooled_prompt_embeds": torch.randn(1, config["pooled_projection_dim"]),
    }


def _kontext_square(size: int) -> dict[str, Any]:
    return _square(size) | {"max_area": size * size, "_auto_resize": False}


def _flux(
    pipeline: Callable[..., Any],
    channels: int,
    square: Callable[[int], dict[str, Any]] = _square,
) -> Arch:
    transformer, pipe = partial(_flux_transformer, channels), partial(_flux_pipe, pipeline)
    return Arch(transformer, _flux_vae, pipe, _flux_prompt, square)


# An architecture more is a row here.
ARCHS: dict[str, Arch] = {
    # x_t, masked latents, and 8x8 mask pixels for each of the 2x2 latents of a token
    "flux-fill": _flux(FluxFillPipeline, 64 + 64 + 256),
    "flux-inpaint": _flux(FluxInpaintPipeline, 64),
    "flux-kontext": _flux(FluxKontextPipeline, 64, _kontext_square),
}
