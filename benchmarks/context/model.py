"""A Fill model small enough to train in an hour, in the shape of FLUX.1 Fill.

`compress` runs on it as on FLUX.1 Fill itself: a `FluxFillPipeline` of diffusers, a transformer of
FLUX's class, one double and two single blocks. Two things are its own. The "autoencoder" is the
identity, pixels folded into channels, so that nothing but the transformer can carry context. And
the transformer is trained to say the clean picture; the velocity that it returns follows from that.
The same without the masked picture beside x_t is run by a `FluxInpaintPipeline`.

B pictures, S tokens, C channels of x_t.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxInpaintPipeline,
    ModelMixin,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .pictures import BROAD, KINDS

WEIGHTS = Path(__file__).parent / "weights"
MAIN = "dense_1"  # the weights that solve all six kinds
CHANNELS = 48  # of x_t a token: 4 x 4 pixels of three colours
WORDS, WIDTH = 4, 32  # text tokens that say the kind of picture, and their channels
AXES = (8, 12, 12)
SHIFT = 1.15  # `mu` of FLUX.1 at 1024 px


class FluxTransformer2DModel(diffusers.FluxTransformer2DModel):
    """FLUX's transformer whose last layer says the clean picture; it returns the velocity still.

    v = (x_t - x_0) / sigma, of each token by itself. It bears the name of the class that it is, by
    which `compress` knows it.
    """

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs["return_dict"] = False
        clean_BSC = super().forward(hidden_states, *args, **kwargs)[0].float()
        x_BSC = hidden_states[..., : clean_BSC.shape[-1]]
        return ((x_BSC - clean_BSC) / kwargs["timestep"][:, None, None],)


class Fold(ModelMixin, ConfigMixin):
    """The identity in the place of an autoencoder: 2 x 2 pixels are the channels of a latent."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,
        block_out_channels: tuple[int, ...] = (12, 12),  # their number says the scale: 2
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        # Without a tensor of its own, diffusers could not tell its device and type.
        self.register_buffer("one", torch.ones(1), persistent=False)

    def encode(self, x_B3HW: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=self.encoder(x_B3HW))

    def decode(self, latents: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.decoder(latents),)


class ContextModel(nn.Module):
    """The transformer, with the learned text of each kind of picture.

    shown: whether it is shown the masked picture and the mask beside x_t; else it sees x_t alone
    """

    def __init__(self, shown: bool = True) -> None:
        super().__init__()
        self.shown, self.kinds = shown, list(KINDS if shown else BROAD)
        self.transformer = FluxTransformer2DModel(
            # x_t; masked picture, and 4 x 4 mask pixels
            in_channels=CHANNELS + (CHANNELS + 16) * shown,
            out_channels=CHANNELS,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=sum(AXES),
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=AXES,
        )
        # Wavelengths for 16 tokens a side, not for FLUX's hundreds.
        self.transformer.pos_embed = FluxPosEmbed(theta=1000, axes_dim=list(AXES))
        self.text_KLD = nn.Parameter(torch.randn(len(self.kinds), WORDS, WIDTH))
        self.pooled_KD = nn.Parameter(torch.randn(len(self.kinds), WIDTH))

    def prompt(self, kinds_B: Tensor) -> dict[str, Tensor]:
        """What a pipeline takes in the place of a text: kinds by their number in `kinds`."""
        return {
            "prompt_embeds": self.text_KLD[kinds_B].detach(),
            "pooled_prompt_embeds": self.pooled_KD[kinds_B].detach(),
        }

    def pipeline(self) -> Any:
        """A Fill pipeline, or an Inpaint pipeline, at FLUX.1's schedule."""
        none: dict[str, Any] = dict.fromkeys(
            ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        )
        scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=SHIFT, max_shift=SHIFT
        )
        vae: Any = Fold()
        made = FluxFillPipeline if self.shown else FluxInpaintPipeline
        pipe = made(scheduler=scheduler, vae=vae, transformer=self.transformer, **none)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def tokens_of(x_BCHW: Tensor) -> Tensor:
    """Pixels as the pipeline packs them: folded twice, the channels in the order c, row, column."""
    latents = F.pixel_unshuffle(x_BCHW, 2)
    return F.pixel_unshuffle(latents, 2).flatten(2).mT


def save(model: ContextModel, file: Path) -> None:
    """Weights in bfloat16."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}, file)


def load(name: str = MAIN) -> ContextModel:
    """A trained model in float32, by the name of its weights, or their file.

    Raises FileNotFoundError for a model that is not there.
    """
    file = Path(name) if name.endswith(".safetensors") else WEIGHTS / f"{name}.safetensors"
    if not file.is_file():
        known = sorted(f.stem for f in WEIGHTS.glob("*.safetensors"))
        raise FileNotFoundError(f"no model {name!r}: choose from {known}, or train it")
    state = {k: v.float() for k, v in load_file(file).items()}
    model = ContextModel(state["transformer.x_embedder.weight"].shape[1] > CHANNELS)
    model.load_state_dict(state)
    return model.eval()
