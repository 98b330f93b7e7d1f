"""Make a model robust to short sequences: LoRA on its attention, the model itself as the teacher.

The frozen model runs on every token, the same with the adapter by a random plan of a random budget,
or with context reused, and learns to say the same in the mask. One batch in four runs every token:
there it learns to stay what it was. Nothing of the photos is learned, so any will do, and they need
no words.

Both are asked at one step of the pipeline's own call: see `at_step`.

B pictures, N grid tokens, K native tokens that run, E tokens that the mask touches, C channels.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..adapters import family_of
from ..adapters.family import Family
from ..adapters.pictures import Pictures
from ..checks import settle, share, whole
from ..data.manifest import open_picture, read_manifest, silhouettes
from ..data.masks import random_mask
from ..hooks import Call, any_compiled
from ..lending import Opened
from ..memory import Memory
from ..method import Method
from ..methods import Dense, HiLo, Refresh
from ..request import Request, arguments_for
from .at_step import at_step
from .checkpoint import note, read_note
from .loop import train_loop
from .transformer import draw_method

NAME = "robust"  # of the adapter
FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it
STEPS = (8, 28)  # of the samplers whose noise levels are trained at, from, to
KEPT = 2**28  # bytes of what was encoded: a teacher's photo and words are its pupil's too

Draw = Callable[[int], dict[str, Any]]  # the pipeline's arguments, by a random number


@dataclass(frozen=True)
class LoraOptions:
    """How long, how large. Raises ValueError for an option out of range.

    samples:  photos, each under a mask and a plan of its own
    batch:    calls whose gradients make one step
    rank:     of the two matrices that are added to each projection
    dense:    share of the calls that run every token
    identity: how much more those weigh
    """

    samples: int = 20_000
    batch: int = 4
    rank: int = 16
    rate: float = 2e-4
    dense: float = 0.25
    identity: float = 1.0
    decay: float = 0.995
    eight_bit: bool = False  # the optimiser's moments
    checkpointing: bool = False  # activations are computed again on the way back
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        settle(self, samples=whole(1), batch=whole(1), rank=whole(1), dense=share())
        for name in ("rate", "identity"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")


def train_lora(
    pipe: Any, draw: Draw, run: Path, options: LoraOptions | None = None, begun: str = ""
) -> Path:
    """Train, or go on where a run ended; returns the file of the LoRA, for `load_lora_weights`.

    The adapter is left on the pipeline, by the name "robust".

    Args:
        pipe: of a family whose tokens are rows, on its device and in its dtype; what is trained is
            kept in float32
        draw: what it is given, by a random number; the same for the same number. One call may hold
            several pictures under one mask
        run: the folder of checkpoints, log and LoRA
        begun: what the run's photos and words are: another is refused in the same folder

    Raises:
        TypeError: a pipeline that is not supported.
        ValueError: one with an adapter on it, or compiled; a run that was begun otherwise.
        ImportError: a library is missing.
    """
    options = options or LoraOptions()
    check_installed(options)
    family = check_pipeline(pipe)
    _keep_settings(run, {"rank": options.rank, "begun": begun})
    with torch.random.fork_rng():
        torch.manual_seed(0)  # processes at one training begin alike
        pupil = add_adapter(family, options.rank)
    if options.checkpointing:
        family.model.enable_gradient_checkpointing()
    opened = Opened(Memory(KEPT))

    def gradients(done: int) -> tuple[int, dict[str, float]]:
        return _gradients(pipe, family, draw, options, done, opened)

    train_loop(
        pupil,
        [_optimizer(pupil, options.eight_bit)],
        gradients,
        run,
        "lora",
        samples=options.samples,
        rate=options.rate,
        cooldown=0.4,
        decay=options.decay,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    return save(pipe, run)


def photo_draw(pipe: Any, photos: Path, size: int, request: Request) -> Draw:
    """Squares of the photos in a folder, of any part and scale, each under a random mask.

    Args:
        photos: see `read_manifest`; rows of the split `train`
        size: pixels a side
        request: what else each is asked by; its seed is drawn anew

    Raises:
        FileNotFoundError: no photos.
        ValueError: a size that is no whole number of tokens.
    """
    if size % (token := family_of(pipe).token_pixels):
        raise ValueError(f"size must be a multiple of {token}, the pixels of a token, got {size}")
    entries = [entry for entry in read_manifest(photos) if entry.split == "train"]
    if not entries:
        raise FileNotFoundError(f"no photograph in {photos} has the split 'train'")
    shapes = silhouettes(entries)

    def draw(number: int) -> dict[str, Any]:
        rng = np.random.default_rng((7, number))
        photo = open_picture(entries[int(rng.integers(len(entries)))].file, "RGB")
        short = min(photo.size)
        side = int(rng.integers(min(size, short), short + 1))
        left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
        box = (left, top, left + side, top + side)
        square = photo.crop(box).resize((size, size), Image.Resampling.LANCZOS)
        mask = random_mask(rng, (size, size), shapes)
        own = replace(request, seed=int(rng.integers(1 << 31)))
        return arguments_for(pipe, own, square, mask)

    return draw


def check_installed(options: LoraOptions) -> None:
    """Raise ImportError for a library that is missing, and say how to get it."""
    if not find_spec("peft"):
        raise ImportError("LoRA is trained by peft: pip install 'hilotoken[lora]'")
    if options.eight_bit and not find_spec("bitsandbytes"):
        raise ImportError(
            "an optimiser in eight bits is bitsandbytes': pip install bitsandbytes, or leave it out"
        )


def check_pipeline(pipe: Any) -> Family:
    """The pipeline's family. Raises TypeError or ValueError where it cannot be trained here."""
    family, name = family_of(pipe), type(pipe).__name__
    if isinstance(family, Pictures):
        raise TypeError(f"{name} is not trained here yet: its transformer takes no rows of tokens")
    if not hasattr(pipe, "save_lora_weights"):
        raise TypeError(f"{name} takes no LoRA in diffusers: there is nothing to train")
    if any_compiled(pipe.transformer):
        raise ValueError("the transformer is compiled: train it as it is, and compile it after")
    if getattr(family.model, "peft_config", None):
        raise ValueError(
            f"{', '.join(family.model.peft_config)} is on the transformer: fuse it, or unload it"
        )
    return family


def add_adapter(family: Family, rank: int) -> nn.ParameterDict:
    """Put LoRA on every projection of the family's attentions; returns what is trained of it.

    All else is frozen. As it begins, it changes nothing.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    model, attentions = family.model, {id(module) for module in family.attentions()}
    targets = [
        f"{name}.{part}"
        for name, module in model.named_modules()
        if id(module) in attentions
        for part, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    for part in family.pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), NAME)
    cast_training_params(model)  # bfloat16 would lose small steps
    named = model.named_parameters()
    return nn.ParameterDict({k.replace(".", "/"): w for k, w in named if w.requires_grad})


def save(pipe: Any, folder: Path) -> Path:
    """Write the adapter as `load_lora_weights` reads it."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(family_of(pipe).model, adapter_name=NAME)
    kept = {name: weight.to(pipe.transformer.dtype) for name, weight in weights.items()}
    type(pipe).save_lora_weights(folder, transformer_lora_layers=kept, weight_name=FILE)
    return folder / FILE


def _optimizer(pupil: nn.ParameterDict, eight_bit: bool) -> torch.optim.Optimizer:
    given: dict[str, Any] = {"weight_decay": 0.0, "betas": (0.9, 0.99)}
    if not eight_bit:
        return torch.optim.AdamW(pupil.parameters(), **given)
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    return AdamW8bit(pupil.parameters(), **given)


def _keep_settings(run: Path, settings: dict[str, Any]) -> None:
    noted = run / "lora.json"
    began = read_note(noted, settings)
    if began != settings:
        raise ValueError(
            f"{run} was begun with {began}, got {settings}: give the same, or name another folder"
        )
    note(json.dumps(settings), noted)


def _gradients(
    pipe: Any, family: Family, draw: Draw, options: LoraOptions, done: int, opened: Opened
) -> tuple[int, dict[str, float]]:
    """Gradients of a few calls; what was drawn depends on `done` alone, so a run resumes."""
    rng, count, sums = np.random.default_rng((8, done)), 0, {}
    for _ in range(options.batch):
        number, steps = int(rng.integers(1 << 31)), int(rng.integers(*STEPS)) + 1
        given = draw(number) | {"num_inference_steps": steps}
        dense = rng.random() < options.dense
        method = Dense() if dense else random_method(family, rng)
        pictures, loss = imitate(pipe, method, given, float(rng.random()), opened,
                                 (options.identity if dense else 1.0) / options.batch)  # fmt: skip
        name = "dense" if dense else "reused" if method.refresh else "short"
        sums.setdefault(name, []).append(loss)
        count += pictures
    return count, {name: sum(losses) / len(losses) for name, losses in sums.items()}


def random_method(family: Family, rng: np.random.Generator) -> HiLo:
    """A random budget, at every step or with context computed at a few; or the whole context."""
    method, refresh, every = draw_method(rng), int(rng.integers(1, 4)), rng.random() < 0.4
    text, whole_context = family.text_rests and rng.random() < 0.5, rng.random() < 0.3
    if every:
        return method
    if whole_context:
        method = HiLo(dilate=method.dilate, detail=1.0, coarse=0)
    # What sees the photo in noise alone sees nothing of it at the first step.
    at = refresh if family.shown_photo else refresh + 2
    return replace(method, refresh=Refresh(at, text=bool(text)))


def imitate(
    pipe: Any, method: Method, given: Call, at: float, opened: Opened, weight: float
) -> tuple[int, float]:
    """Add to the gradients of how far the adapter is from the model, by one call of each.

    The distance is the mean squared error of sigma times the velocity, which is that of the clean
    picture that it points to: in the mask, and where every token runs beside it too.

    Args:
        given: the pipeline's arguments
        at: which step, as a share of all
        weight: of the gradients

    Returns:
        how many pictures, and the distance
    """
    model = family_of(pipe).model
    model.disable_adapters()
    try:
        with torch.no_grad(), at_step(pipe, Dense(), given, at, opened) as teacher:
            wanted_BNC = teacher.velocity_BKC
    finally:
        model.enable_adapters()
    with at_step(pipe, method, given, at, opened) as pupil:
        wanted_BKC = wanted_BNC[:, pupil.keep_K]
        error_BK = (pupil.velocity_BKC.float() - wanted_BKC.float()).square().mean(-1)
        loss = error_BK[:, pupil.inside_K].mean()
        if isinstance(method, Dense) and not pupil.inside_K.all():
            loss = loss + error_BK[:, ~pupil.inside_K].mean()
        loss = pupil.sigma**2 * loss
        # In this thread: what is computed again on the way back goes by this thread's stand-ins.
        with torch.autograd.set_multithreading_enabled(False):
            (weight * loss).backward()
    return len(wanted_BNC), float(loss.detach())
