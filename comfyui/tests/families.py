"""ComfyUI's own transformers with small random weights, and what a sampler is given with them."""

from dataclasses import dataclass, field
from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.flux.model
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.supported_models
import torch
from torch import Tensor

from comfyui.run import KEY, Wanted, attach
from hilotoken.methods.hilo import HiLo

CPU = torch.device("cpu")
H, W = 24, 32  # latents of 8 pixels: a grid of 12 x 16
STEPS = 4
ALL = HiLo(detail=1.0, coarse=0)  # keeps every token
FEW = HiLo(dilate=1, detail=0.1, coarse=0, bucket=1)


@dataclass
class Case:
    """A model and its inputs."""

    name: str
    model: Any
    latent: Tensor
    references: bool = False
    given: dict[str, Any] = field(default_factory=dict)  # what its conditioning has besides

    @property
    def mask(self) -> Tensor:
        mask = torch.zeros(1, H * 8, W * 8)
        mask[:, 40:100, 60:120] = 1
        return mask

    @property
    def inside(self) -> Tensor:
        """The latents that the noise mask touches: bool, as the latent."""
        small = torch.nn.functional.interpolate(
            self.mask[None], self.latent.shape[-2:], mode="bilinear"
        )
        return (small > 0)[0].expand_as(self.latent)

    def cond(self, seed: int = 1, **more: Any) -> list[Any]:
        return conditioning(seed=seed, **self.given, **more)

    def sample(self, model: Any = None, **options: Any) -> Tensor:
        """Latents as ComfyUI's KSampler makes them."""
        given = {"latent": self.latent, "mask": self.mask, "positive": self.cond()}
        given |= {"negative": self.cond(2)} | options
        return sample(self.model if model is None else model, **given)


def conditioning(width: int = 32, length: int = 7, seed: int = 1, **more: Any) -> list[Any]:
    """What a text encoder gives."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, length, width, generator=generator)
    pooled = torch.randn(1, 24, generator=generator)
    return [[text, {"pooled_output": pooled, **more}]]


def sample(
    model: Any, latent: Tensor, mask: Tensor | None, positive: Any, negative: Any,
    cfg: float = 1.0, sampler: str = "euler", denoise: float = 1.0, steps: int = STEPS,
    callback: Any = None,
) -> Tensor:  # fmt: skip
    noise = comfy.sample.prepare_noise(latent, 7)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "simple", positive, negative, latent, denoise=denoise,
        noise_mask=mask, callback=callback, disable_pbar=True, seed=7,
    )  # fmt: skip


def hilo(model: Any, method: HiLo = FEW, image: Tensor | None = None, mask: Tensor | None = None):
    """The model with the node's wrappers, as the node attaches them."""
    model = model.clone()
    attach(model, Wanted(method, image, mask))
    return model


def runs(model: Any) -> list[Any]:
    """A list that fills with every run of this model."""
    kept: list[Any] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append(args[2]["model_options"]["transformer_options"][KEY])
        return executor(*args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
    model.add_wrapper_with_key(kind, "look", look)
    return kept


class Watch:
    """Counts the tokens of each call of the transformer, as its last layer sees them."""

    def __init__(self, model: Any) -> None:
        inner = model.model.diffusion_model
        last = inner.final_layer if hasattr(inner, "final_layer") else inner.norm_out
        self.tokens: list[int] = []
        self.handle = last.register_forward_pre_hook(self._see)

    def _see(self, module: Any, args: tuple[Any, ...]) -> None:
        self.tokens.append(args[0].shape[1])

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: Any) -> None:
        self.handle.remove()


def latent_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def patcher(config_class: Any, unet_config: dict[str, Any], seed: int = 0) -> Any:
    """A model of that class in a ModelPatcher, as a loader node gives it."""
    config = config_class(unet_config)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.diffusion_model.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        of_norm = name.endswith(("scale", "norm.weight", "norm1.weight", "norm2.weight"))
        if of_norm or weight.ndim < 2:
            weight.data = 1 + 0.05 * drawn
        else:
            weight.data = drawn / weight.shape[-1] ** 0.5
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=CPU, offload_device=CPU)


def _known(params: Any, **fields: Any) -> dict[str, Any]:
    """Those of the fields that this version of ComfyUI has."""
    return {name: value for name, value in fields.items() if name in params.__dataclass_fields__}


def flux_model(in_channels: int = 16, hidden: int = 128, heads: int = 2) -> Any:
    side = hidden // heads
    return patcher(comfy.supported_models.Flux, {
        "image_model": "flux", "in_channels": in_channels, "out_channels": 16, "vec_in_dim": 24,
        "context_in_dim": 32, "hidden_size": hidden, "mlp_ratio": 4.0, "num_heads": heads,
        "depth": 1, "depth_single_blocks": 2, "theta": 10000, "patch_size": 2, "qkv_bias": True,
        "axes_dim": [side // 8, side * 7 // 16, side * 7 // 16], "guidance_embed": True,
        **_known(comfy.ldm.flux.model.FluxParams, txt_ids_dims=[]),
    })  # fmt: skip


def flux_case() -> Case:
    return Case("flux", flux_model(), latent_of(1, 16, H, W), references=True)


def kontext_case() -> Case:
    """The photo itself, as a reference."""
    latent = latent_of(1, 16, H, W)
    return Case("kontext", flux_model(), latent, True, {"reference_latents": [latent]})


def fill_case() -> Case:
    """Masked latents and the mask in the channels."""
    case = flux_case()
    given = {"concat_latent_image": case.latent * 0.5, "concat_mask": case.mask[:, None]}
    return Case("fill", flux_model(in_channels=96), case.latent, given=given)


def flux2_case(hidden: int = 128, heads: int = 2) -> Case:
    model = patcher(comfy.supported_models.Flux2, {
        "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None,
        "context_in_dim": 32, "hidden_size": hidden, "mlp_ratio": 3.0, "num_heads": heads,
        "depth": 1, "depth_single_blocks": 2, "axes_dim": [hidden // heads // 4] * 4,
        "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": True,
        "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
        "default_ref_method": "index", "ref_index_scale": 10.0,
        **_known(comfy.ldm.flux.model.FluxParams, txt_ids_dims=[3]),
    })  # fmt: skip
    return Case("flux2", model, latent_of(1, 128, H // 2, W // 2), references=True)


def qwen_case(heads: int = 2, side: int = 64) -> Case:
    model = patcher(comfy.supported_models.QwenImage, {
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2,
        "attention_head_dim": side, "num_attention_heads": heads, "joint_attention_dim": 32,
        "axes_dims_rope": (side // 8, side * 7 // 16, side * 7 // 16),
    })  # fmt: skip
    return Case("qwen", model, latent_of(1, 16, 1, H, W), references=True)


def zimage_case(heads: int = 4, side: int = 64) -> Case:
    model = patcher(comfy.supported_models.ZImage, {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": heads * side,
        "n_layers": 2, "n_refiner_layers": 1, "n_heads": heads, "n_kv_heads": heads,
        "qk_norm": True, "cap_feat_dim": 32, "axes_lens": [512, 512, 512], "rope_theta": 256.0,
        "axes_dims": [side // 4, side * 3 // 8, side * 3 // 8], "ffn_dim_multiplier": 8 / 3,
        "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
    })  # fmt: skip
    return Case("zimage", model, latent_of(1, 16, H, W))


def chroma_case(hidden: int = 128, heads: int = 2) -> Case:
    side = hidden // heads
    model = patcher(comfy.supported_models.Chroma, {
        "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64,
        "out_dim": hidden, "hidden_dim": 64, "n_layers": 2, "context_in_dim": 32,
        "hidden_size": hidden, "mlp_ratio": 4.0, "num_heads": heads, "depth": 1,
        "depth_single_blocks": 2, "patch_size": 2, "theta": 10000, "qkv_bias": True,
        "axes_dim": [side // 8, side * 7 // 16, side * 7 // 16],
        **_known(comfy.ldm.chroma.model.ChromaParams, txt_ids_dims=[], vec_in_dim=None),
    })  # fmt: skip
    return Case("chroma", model, latent_of(1, 16, H, W))


CASES = [flux_case, kontext_case, fill_case, qwen_case, chroma_case]
CASES += [flux2_case] if hasattr(comfy.supported_models, "Flux2") else []
CASES += [zimage_case] if hasattr(comfy.supported_models, "ZImage") else []
FAMILIES = {case.__name__.removesuffix("_case"): case for case in CASES}
