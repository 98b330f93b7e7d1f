"""One resumable command: photographs to a pipeline in diffusers format.

autoencoder ──► views (latents, encoded once) ──► transformer ──► export

Each stage resumes from its checkpoint in the run's folder and is passed over once it is done.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from torch import nn

from ..model import new_scheduler
from .autoencoder import AutoencoderOptions, new_autoencoder, train_autoencoder
from .checkpoint import load_if_any
from .data import decode, read_manifest, silhouettes
from .log import plot
from .lpips import load_lpips
from .sheet import sample_sheet
from .transformer import TransformerOptions, train_transformer
from .views import SIZE, ViewOptions, Views, latent_scale, make_views


@dataclass(frozen=True)
class TrainOptions:
    """A whole recipe."""

    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    transformer: TransformerOptions = field(default_factory=TransformerOptions)


def train(
    photos: Path, run: Path, options: TrainOptions, device: torch.device, lpips: Path | None
) -> Path:
    """Train, or go on where a run ended, and export; returns the folder of the pipeline.

    Only rows of the manifest whose split is `train` are trained on; those of `val` make the sample
    sheet.

    Raises:
        FileNotFoundError: no photographs, or none to train on.
    """
    entries = read_manifest(photos)
    training = [entry for entry in entries if entry.split == "train"]
    held_out = [entry for entry in entries if entry.split == "val"] or training
    if not training:
        raise FileNotFoundError(f"no photograph in {photos} has the split 'train'")
    perceptual = load_lpips(lpips).to(device) if lpips else None
    autoencoder = _autoencoder(training, run, options, device, perceptual)
    views = Views.open(run / "views", options.views, autoencoder.config["latent_channels"])
    if views.done[0] < len(views.latents):
        make_views(views, decode(training, SIZE), silhouettes(training), autoencoder, run, device)
    scale = latent_scale(views)
    transformer = train_transformer(views, scale, run, options.transformer, device)
    pipeline = export(autoencoder, transformer, scale, run / "pipeline")
    plot(run)
    sample_sheet(pipeline, decode(held_out[:8], SIZE), run / "samples.png")
    return pipeline


def _autoencoder(
    training: list,
    run: Path,
    options: TrainOptions,
    device: torch.device,
    perceptual: nn.Module | None,
) -> AutoencoderTiny:
    state = load_if_any(run / "autoencoder.pt")
    if state and state["done"] >= options.autoencoder.samples:
        model = new_autoencoder()
        model.load_state_dict(state["average"]["weights"])
        return model.requires_grad_(False).eval().to(device)  # type: ignore[return-value]
    sharp = decode([entry for entry in training if not entry.enlarged], SIZE)
    return train_autoencoder(sharp, run, options.autoencoder, device, perceptual)


def export(
    autoencoder: AutoencoderTiny, transformer: FluxTransformer2DModel, scale: float, folder: Path
) -> Path:
    """Write a `FluxFillPipeline` in diffusers format: bfloat16 safetensors, with checksums."""
    autoencoder.register_to_config(scaling_factor=scale)
    autoencoder.to(torch.bfloat16).save_pretrained(folder / "vae")  # type: ignore[call-overload]
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")  # type: ignore[call-overload]
    new_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "FluxFillPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": [None, None],
        "text_encoder_2": [None, None],
        "tokenizer": [None, None],
        "tokenizer_2": [None, None],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    write_checksums(folder)
    return folder


def write_checksums(folder: Path) -> None:
    """sha256 of every file but the list itself, in `checksums.json`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "checksums.json")
    sums = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
