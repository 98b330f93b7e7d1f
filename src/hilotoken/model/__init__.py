"""The embedded model, a small `FluxFillPipeline` that ships with the package; loading others."""

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxTransformer2DModel,
    configuration_utils,
)
from huggingface_hub import model_info
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError

from ..methods.udit import as_trained

WEIGHTS = Path(__file__).parent / "weights"
REGISTERS = 8  # learned vectors in place of a text
BLOCKS = 18  # single blocks of the transformer, after one double block
SHIFT = -3.0  # of sigma, as `mu` of FLUX's scheduler: 8 steps begin at 1, 0.26, 0.13, 0.08 ...
QUIET = 1 / 8  # cycles a latent, of 8 pixels: the noise has little below
LABELS = 32  # room for a kind of thing, one-hot, through the pooled projection


class EmbeddedFillPipeline(FluxFillPipeline):
    """A `FluxFillPipeline` without text encoders, which needs no prompt.

    The prompt is the identity matrix: row i picks column i of the transformer's text embedding, so
    the empty prompt is learned, and lies in the transformer's own weights. The pooled projection
    takes a kind of thing, one of `labels`, or none. Noise is `quiet`. In all else this is the
    pipeline that it derives from, and the saved folder loads as one, given None for the text
    encoders and tokenizers; its own noise is white, so give such `latents`.
    """

    labels: tuple[str, ...] = ()  # kinds of things that it was trained to tell apart

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        transformer: Any,
    ) -> None:
        super().__init__(
            scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer
        )
        self.default_sample_size = 64  # latents: 512 pixels a side

    def prompt(self, count: int = 1, label: str = "") -> dict[str, torch.Tensor]:
        """The empty prompt, or a label, `count` times: the two arguments that stand for it.

        Raises ValueError for a label that the model was not trained on.
        """
        weight = self.transformer.context_embedder.weight
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        pooled = torch.zeros(count, self.transformer.config.pooled_projection_dim)
        if label:
            pooled[:, self._index(label)] = 1
        return {
            "prompt_embeds": eye.expand(count, -1, -1),
            "pooled_prompt_embeds": pooled.to(eye),
        }

    def _index(self, label: str) -> int:
        if label not in self.labels:
            known = f"choose from {list(self.labels)}" if self.labels else "this model has none"
            raise ValueError(f"unknown label {label!r}: {known}")
        return self.labels.index(label)

    @wraps(FluxFillPipeline.__call__)
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> Any:
        given = inspect.signature(FluxFillPipeline.__call__).bind(self, *args, **kwargs).arguments
        if given.pop("prompt", None):
            raise ValueError(
                "the embedded model does not read a prompt: omit it, or give "
                f"**pipe.prompt(label=...) one of {list(self.labels)}"
            )
        if "prompt_embeds" not in given:
            given |= self.prompt(_batch(given.get("image")))
        given.setdefault("num_inference_steps", 8)
        del given["self"]
        with as_trained(self.transformer, self.scheduler):
            return super().__call__(**given)

    @wraps(FluxFillPipeline.prepare_latents)
    def prepare_latents(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> Any:
        add = self.scheduler.scale_noise

        def add_quiet(clean: Any, timestep: Any, noise: torch.Tensor) -> Any:
            return add(clean, timestep, quiet(noise))

        # The noise is drawn in the middle of the method, and this is where it goes by.
        with patch.object(self.scheduler, "scale_noise", add_quiet):
            return super().prepare_latents(*args, **kwargs)


def quiet(noise_BCHW: torch.Tensor) -> torch.Tensor:
    """White noise without its lowest frequencies: what the embedded model's pictures begin as.

    Texture is left to chance, and the colours of large shapes are not: the photograph around the
    mask tells them better. Of the amplitude of a wave as long as 32 latents (256 pixels) 6 % is
    left, of 8 latents 63 %, of 4 latents 98 %. Shape and type are those of what is given.
    """
    y, x = (torch.fft.fftfreq(side, device=noise_BCHW.device) for side in noise_BCHW.shape[-2:])
    kept_HW = 1 - torch.exp(-(y[:, None].square() + x.square()) / QUIET**2)
    return torch.fft.ifft2(torch.fft.fft2(noise_BCHW.float()) * kept_HW).real.to(noise_BCHW)


def _batch(image: Any) -> int:
    if isinstance(image, list | tuple):
        return max(1, len(image))
    return image.shape[0] if getattr(image, "ndim", 0) == 4 else 1


def new_transformer(blocks: int = BLOCKS) -> FluxTransformer2DModel:
    """An untrained transformer of the embedded model's shape, 20.5 M parameters."""
    latent = 8
    return FluxTransformer2DModel(
        in_channels=2 * 4 * latent + 4 * 64,  # x_t, masked latents, and 8x8 mask pixels a latent
        out_channels=4 * latent,
        num_layers=1,
        num_single_layers=blocks,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=REGISTERS,
        pooled_projection_dim=LABELS,
        axes_dims_rope=(8, 28, 28),
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The sampler of the embedded model: FLUX's, with one shift for all lengths.

    It spends its steps late: the first answer of a refined model is most of the picture, and what
    is left is to be worked out at little noise.
    """
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=SHIFT, max_shift=SHIFT
    )


def load_model(
    name_or_path: str | Path | None = None, *, device: str | torch.device | None = None
) -> FluxFillPipeline:
    """The embedded model, offline; or a Fill pipeline from a folder or, by its id, from the hub.

    Args:
        name_or_path: None or "embedded" for the model in this package
        device: where to put it; unless given, the CPU. The embedded model runs in float32 there and
            in bfloat16 elsewhere, others in bfloat16

    Raises:
        FileNotFoundError: no such folder, and nothing by that id.
        ValueError: a device that is not there, or weights that do not match their checksums.
    """
    target = find_device(device)
    if name_or_path in (None, "embedded"):
        verify(WEIGHTS)
        return _load_embedded(WEIGHTS, target)
    name = str(name_or_path)
    try:
        if _is_like_embedded(Path(name)):
            return _load_embedded(Path(name), target)
        cached = not Path(name).is_dir() and not _hub_answers(name)
        return FluxFillPipeline.from_pretrained(
            name, dtype=torch.bfloat16, local_files_only=cached
        ).to(target)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FileNotFoundError(
            f"no Fill pipeline at {name!r}: give a folder in diffusers format, "
            f"a hub id, or 'embedded' ({_first_line(error)})"
        ) from error


def _load_embedded(folder: Path, device: torch.device) -> EmbeddedFillPipeline:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    here: dict[str, Any] = {"local_files_only": True}  # a part that is missing is no hub id
    weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": True} | here
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    with _phases_expected():
        transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer", **weights)
    pipe = EmbeddedFillPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", **here),
        vae=AutoencoderTiny.from_pretrained(folder / "vae", **weights),
        transformer=transformer,
        **none,
    )
    if (folder / "labels.json").is_file():  # which models of before have not
        pipe.labels = tuple(json.loads((folder / "labels.json").read_text()))
    # Channels last: the convolutions of the autoencoder take two thirds of the time on a CPU.
    pipe.vae.to(memory_format=torch.channels_last)
    return pipe.to(device)


@contextmanager
def _phases_expected() -> Iterator[None]:
    """Diffusers warns that it ignores `phases`, which the pipeline here sees to."""
    others = lambda record: "{'phases': " not in record.getMessage()  # noqa: E731
    configuration_utils.logger.addFilter(others)
    try:
        yield
    finally:
        configuration_utils.logger.removeFilter(others)


def _hub_answers(name: str) -> bool:
    """Diffusers waits for the hub without end; so ask first, and wait ten seconds."""
    try:
        model_info(name, timeout=10)
    except (HfHubHTTPError, ValueError):  # an answer; or no id, as diffusers says better
        return True
    except Exception:  # whatever this version's transport raises
        return False
    return True


def verify(folder: Path) -> None:
    """Compare each file with its sum in `checksums.json`; ValueError names one that differs."""
    listed = folder / "checksums.json"
    if not listed.is_file():
        raise FileNotFoundError(f"no weights in {folder}: install the package anew")
    for name, expected in json.loads(listed.read_text()).items():
        file = folder / name
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "nothing"
        if found != expected:
            raise ValueError(f"{file} is damaged (sha256 {found[:12]}): install the package anew")


def _is_like_embedded(folder: Path) -> bool:
    """Whether the folder holds a Fill pipeline with a tiny autoencoder and no text encoders."""
    listed = folder / "model_index.json"
    index = json.loads(listed.read_text()) if listed.is_file() else {}
    parts = [(index.get(name) or [None, None])[1] for name in ("text_encoder", "vae")]
    return parts == [None, "AutoencoderTiny"] and index["_class_name"] == "FluxFillPipeline"


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, the CPU for None. Raises ValueError if it is not there."""
    try:
        target = torch.device(device or "cpu")
        torch.zeros(1, device=target).item()  # what is no real device holds no number
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"no device {str(device)!r} here: use 'cpu' ({_first_line(error)})"
        ) from error
    return target


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
