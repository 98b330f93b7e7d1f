"""One resumable command: photographs to a pipeline in diffusers format.

autoencoder ──► views (latents, encoded once) ──► transformer ──► refine, both ──► export

Each stage resumes from its checkpoint in the run's folder and is passed over once it is done.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from torch import nn

from ..data.manifest import Entry, decode, read_manifest, silhouettes
from ..metrics.lpips import load_lpips
from ..model import new_scheduler
from .autoencoder import DECODER, AutoencoderOptions, new_autoencoder, train_autoencoder
from .checkpoint import load_if_any, note, read_note
from .depth import start_from
from .labels import Labels, find_labels
from .latent_cache import SIZE, LatentCache, ViewOptions, latent_scale, make_views
from .log import plot
from .parallel import own_device, processes
from .refine import RefineOptions, refine
from .sheet import sample_sheet
from .transformer import TransformerOptions, train_transformer


@dataclass(frozen=True)
class TrainOptions:
    """A whole recipe."""

    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    views: ViewOptions = field(default_factory=ViewOptions)
    transformer: TransformerOptions = field(default_factory=TransformerOptions)
    refine: RefineOptions = field(default_factory=RefineOptions)
    labels: str = ""  # the column of the manifest that says what kind of thing is on a photograph
    start: str = ""  # a pipeline to go on from, made deeper where it is not deep enough

    def __post_init__(self) -> None:
        """Raises ValueError for compressed batches with attention that needs a whole grid."""
        elastic = max(self.transformer.elastic, self.refine.elastic)
        if self.transformer.phases > 1 and elastic:
            raise ValueError(
                f"phases={self.transformer.phases} needs a whole grid, and elastic={elastic} runs "
                "parts of it: set elastic to 0"
            )


def train(
    photos: Path, run: Path, options: TrainOptions, device: torch.device, lpips: Path | None
) -> Path:
    """Train, or go on where a run ended, and export; returns the folder of the pipeline.

    Only rows of the manifest whose split is `train` are trained on; those of `val` make the sample
    sheet. Without `lpips` there is nothing to refine by, and that stage is left out.

    Raises:
        FileNotFoundError: no photographs, or none to train on.
        ValueError: a run that was begun with other labels, phases, depth or start; a start that is
            of another kind, of other labels, or deeper than what is asked; a damaged file.
        ImportError: the extra `train` is not installed.
    """
    if not find_spec("matplotlib"):
        raise ImportError("training draws its curves: pip install 'hilotoken[train]'")
    entries = read_manifest(photos, options.labels)
    training = [entry for entry in entries if entry.split == "train"]
    held_out = [entry for entry in entries if entry.split == "val"] or training
    if not training:
        raise FileNotFoundError(f"no photograph in {photos} has the split 'train'")
    if lpips is None:
        print("without --lpips there is no refinement, and fills are blurred", file=sys.stderr)
    device, crew = own_device(device), processes(device)
    perceptual = load_lpips(lpips).to(device) if lpips else None
    blocks = options.transformer.blocks
    start = start_from(options.start, blocks, DECODER) if options.start else None
    _keep_start(run, options.start, blocks)
    autoencoder = (
        start.autoencoder if start else _autoencoder(training, run, options, device, perceptual)
    )
    with crew.main_process_first():
        views = LatentCache.open(
            run / "views", options.views, autoencoder.config["latent_channels"]
        )
        if views.done[0] < len(views.latents):
            make_views(
                views, decode(training, SIZE), silhouettes(training), autoencoder, run, device
            )
    # Who goes on from weights that were trained at a scale must keep it.
    scale = autoencoder.config["scaling_factor"] if start else latent_scale(views)
    labels = find_labels(training, autoencoder, device)
    _keep_labels(run, labels, start.labels if start else ())
    if _done(run / "transformer.pt") < options.transformer.samples:
        (run / "refine.pt").unlink(missing_ok=True)  # of a transformer less trained
    transformer = train_transformer(
        views, scale, run, options.transformer, device, labels, start.transformer if start else None
    )
    if perceptual:
        left = _done(run / "refine.pt") < options.refine.samples
        again = decode(training, SIZE) if left else []
        pictures, tools = (views, again, scale), (perceptual, run, options.refine, device, labels)
        refine(transformer, autoencoder, *pictures, *tools)
    if crew.is_main_process and not _exported(run):
        export(autoencoder, transformer, scale, run / "pipeline", labels)
        plot(run)
        sample_sheet(run / "pipeline", decode(held_out[:8], SIZE), run / "samples.png")
    crew.wait_for_everyone()
    return run / "pipeline"


def _exported(run: Path) -> bool:
    """Whether the pipeline and its pictures are of the checkpoints there are."""
    made = run / "samples.png"  # which is made last
    if not made.is_file() or not (run / "pipeline" / "checksums.json").is_file():
        return False
    return all(path.stat().st_mtime_ns < made.stat().st_mtime_ns for path in run.glob("*.pt"))


def _keep_start(run: Path, start: str, blocks: int) -> None:
    """Note where a run began: views and checkpoints are of that autoencoder and that depth."""
    noted, here = run / "start.json", {"start": start, "blocks": blocks}
    began = read_note(noted, here)
    if began != here:
        raise ValueError(
            f"{run} was begun with --start {began['start'] or 'nothing'} and --blocks "
            f"{began['blocks']}, got {start or 'nothing'} and {blocks}: give the same, or name "
            "another folder"
        )
    note(json.dumps(here), noted)


def _keep_labels(run: Path, labels: Labels | None, known: Sequence[str] = ()) -> None:
    """Note the labels of a run: its weights know them by number. A run may begin without any.

    `known` are those of the pipeline that it started from.
    """
    noted, names = run / "labels.json", list(labels.names) if labels else []
    began = read_note(noted, list(known))
    if began and began != names:
        raise ValueError(
            f"{run} was begun with the labels {began}, its own or its start's, got {names}: give "
            "the same --labels and photographs, or name another folder or start"
        )
    note(json.dumps(names), noted)


def _done(checkpoint: Path) -> int:
    state = load_if_any(checkpoint)
    return state["done"] if state else 0


def _autoencoder(
    training: list[Entry],
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
    sharp = [entry for entry in training if not entry.enlarged] or training
    photos = decode(sharp, SIZE)
    (run / "views" / "done.npy").unlink(missing_ok=True)  # those of an autoencoder less trained
    return train_autoencoder(photos, run, options.autoencoder, device, perceptual)


def export(
    autoencoder: AutoencoderTiny,
    transformer: FluxTransformer2DModel,
    scale: float,
    folder: Path,
    labels: Labels | None = None,
) -> Path:
    """Write a `FluxFillPipeline` in diffusers format: bfloat16 safetensors, with checksums."""
    autoencoder.register_to_config(scaling_factor=scale)
    for name, model in (("vae", autoencoder), ("transformer", transformer)):
        nn.Module.to(model, torch.bfloat16)
        model.save_pretrained(folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        # AutoencoderTiny writes the first, and warns when it reads it; the second is where one
        # was loaded from, a place on this machine.
        for key in ("block_out_channels", "_name_or_path"):
            config.pop(key, None)
        (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
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
    names = labels.names if labels else ()
    (folder / "labels.json").write_text(json.dumps(names, indent=2) + "\n")
    write_checksums(folder)
    return folder


def write_checksums(folder: Path) -> None:
    """sha256 of every file but the list itself, in `checksums.json`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "checksums.json")
    sums = {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    (folder / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")
