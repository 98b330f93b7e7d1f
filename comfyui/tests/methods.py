"""What is compared between ComfyUI and diffusers, on the embedded model."""

from pathlib import Path

import torch
from PIL import Image

from hilotoken.methods.hilo import HiLo
from hilotoken.methods.presets import PRESETS, preset
from hilotoken.methods.refresh import Refresh

SIZE, STEPS = 256, 8
EXAMPLE = Path(__file__).resolve().parent.parent / "example"

METHODS = {
    "dense": None,
    "no coarse tokens": HiLo(coarse=0),
    "sampled, weighted": HiLo(context="sampled"),
    "refreshed": HiLo(coarse=0, refresh=3),
    "the whole context, refreshed": HiLo(detail=1.0, coarse=0, refresh=(0, 4)),
    "sampled, weighted, refreshed": HiLo(context="sampled", detail=0.05, refresh=3),
    "kept in eight bits": HiLo(context="sampled", refresh=Refresh(2, store="float8")),
}

# Coarse tokens are made otherwise in ComfyUI, without a VAE.
# As the nodes have them, which here cannot be imported: ComfyUI's stand-ins are not diffusers'.
NODES = {name: preset(name, text_rests=False) for name in PRESETS}
METHODS |= {f"preset {name}": method for name, method in NODES.items() if not method.coarse}


def photo_and_mask() -> tuple[Image.Image, Image.Image]:
    """The example at half its size."""
    photo = Image.open(EXAMPLE / "photo.jpg").resize((SIZE, SIZE), Image.Resampling.BOX)
    mask = Image.open(EXAMPLE / "mask.png").convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
    return photo, mask.point(lambda value: 255 * (value > 0))


def white() -> torch.Tensor:
    """The noise that both draw."""
    side = SIZE // 8
    return torch.randn(1, 8, side, side, generator=torch.Generator().manual_seed(3))
