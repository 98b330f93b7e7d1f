"""The model in hilotoken's package as ComfyUI's own Flux, to try the nodes with no download.

Its weights are converted by ComfyUI itself. It takes no prompt, and its noise is `quiet`.
"""

import json
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.ldm.flux.model
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor, nn

import hilotoken
from hilotoken.noise import quiet

WEIGHTS = Path(hilotoken.__file__).parent / "model" / "weights"
LATENT = 8  # pixels a side, and channels


def load() -> tuple[Any, "EmbeddedVAE", list[Any]]:
    """The model in a ModelPatcher, its autoencoder, and its one conditioning."""
    given = _config("transformer")
    width, pooled = given["joint_attention_dim"], torch.zeros(1, given["pooled_projection_dim"])
    # Row i of an identity picks column i of the text embedding: the prompt lies in the weights.
    conditioning = [[torch.eye(width)[None], {"pooled_output": pooled}]]
    return _patcher(given), EmbeddedVAE(), conditioning


class EmbeddedLatent(comfy.latent_formats.LatentFormat):
    latent_channels = LATENT

    def __init__(self) -> None:
        self.scale_factor = _config("vae")["scaling_factor"]


class EmbeddedConfig(comfy.supported_models.Flux):
    latent_format = EmbeddedLatent
    memory_usage_factor = 1.0


class EmbeddedVAE:
    """As much of ComfyUI's VAE as its nodes VAE Encode, VAE Decode and Inpaint ask for."""

    latent_channels = downscale_ratio = upscale_ratio = LATENT

    def __init__(self) -> None:
        self.device = comfy.model_management.vae_device()
        self.model = _autoencoder(_config("vae")).eval().to(self.device)
        self.model.load_state_dict(_weights("vae"))

    def spacial_compression_encode(self) -> int:
        return LATENT

    def spacial_compression_decode(self) -> int:
        return LATENT

    def temporal_compression_decode(self) -> None:
        return None

    @torch.no_grad()
    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] in [0, 1], cut in their middle, as latents [B, 8, H/8, W/8]."""
        height, width = (side // LATENT * LATENT for side in pixel_samples.shape[1:3])
        top, left = (side % LATENT // 2 for side in pixel_samples.shape[1:3])
        cut = pixel_samples[:, top : top + height, left : left + width, :3]
        latents = self.model["encoder"](cut.movedim(-1, 1).float().to(self.device))
        return latents.to(comfy.model_management.intermediate_device())

    @torch.no_grad()
    def decode(self, samples_in: Tensor, **options: Any) -> Tensor:
        """Latents as pictures."""
        bounded = (samples_in.float().to(self.device) / 3).tanh() * 3
        pictures = self.model["decoder"](bounded).clamp(0, 1).movedim(1, -1)
        return pictures.to(comfy.model_management.intermediate_device())

    def decode_tiled(self, samples: Tensor, **options: Any) -> Tensor:
        """It is small enough for any picture as a whole."""
        return self.decode(samples)


def _patcher(given: dict[str, Any]) -> Any:
    config = EmbeddedConfig(_flux_params(given))
    config.sampling_settings = {"shift": _config("scheduler")["base_shift"]}
    config.set_inference_dtype(torch.float32, None)
    weights = comfy.model_detection.convert_diffusers_mmdit(_weights("transformer"), "")
    weights = config.process_unet_state_dict(weights)
    model = config.get_model(weights, "")
    model.diffusion_model.load_state_dict(weights)
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    patcher.add_wrapper_with_key(kind, "hilotoken_quiet", _quietly)
    return patcher


def _quietly(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return executor(quiet(noise), *args, **kwargs)


def _flux_params(given: dict[str, Any]) -> dict[str, Any]:
    """The config of diffusers in ComfyUI's words."""
    params = {
        "image_model": "flux",
        "in_channels": given["in_channels"] // 4,  # of a latent, not of a token of 2 x 2
        "out_channels": given["out_channels"] // 4,
        "vec_in_dim": given["pooled_projection_dim"],
        "context_in_dim": given["joint_attention_dim"],
        "hidden_size": given["num_attention_heads"] * given["attention_head_dim"],
        "num_heads": given["num_attention_heads"],
        "depth": given["num_layers"],
        "depth_single_blocks": given["num_single_layers"],
        "axes_dim": given["axes_dims_rope"],
        "guidance_embed": given["guidance_embeds"],
        "patch_size": 2,
        "theta": 10000,
        "qkv_bias": True,
        "mlp_ratio": 4.0,
    }
    known = comfy.ldm.flux.model.FluxParams.__dataclass_fields__
    return params | ({"txt_ids_dims": []} if "txt_ids_dims" in known else {})  # since 0.3.76


def _config(part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return json.loads((WEIGHTS / part / name).read_text())


def _weights(part: str) -> dict[str, Tensor]:
    file = WEIGHTS / part / "diffusion_pytorch_model.safetensors"
    return {name: w.float() for name, w in comfy.utils.load_torch_file(str(file)).items()}


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second, third = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu()


class _Layers(nn.Sequential):
    """Layers named as diffusers' AutoencoderTiny names them: in an attribute `layers`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)


def _autoencoder(given: dict[str, Any]) -> nn.ModuleDict:
    """The architecture of diffusers' AutoencoderTiny, for pictures in [0, 1]."""
    width, latent = given["encoder_block_out_channels"][0], given["latent_channels"]
    down: list[nn.Module] = []
    for i, blocks in enumerate(given["num_encoder_blocks"]):
        half: dict[str, Any] = {"stride": 2, "bias": False} if i else {}
        down.append(nn.Conv2d(width if i else 3, width, 3, padding=1, **half))
        down += [_Block(width) for _ in range(blocks)]
    up: list[nn.Module] = [nn.Conv2d(latent, width, 3, padding=1), nn.ReLU()]
    for i, blocks in enumerate(given["num_decoder_blocks"], 1):
        last = i == len(given["num_decoder_blocks"])
        up += [_Block(width) for _ in range(blocks)]
        up += [] if last else [nn.Upsample(scale_factor=2)]
        up.append(nn.Conv2d(width, 3 if last else width, 3, padding=1, bias=last))
    encoder = _Layers(*down, nn.Conv2d(width, latent, 3, padding=1))
    return nn.ModuleDict({"encoder": encoder, "decoder": _Layers(*up)})
