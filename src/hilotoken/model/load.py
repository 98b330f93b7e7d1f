"""Find a model, check what it is, and load it: the embedded one, a folder's, or the hub's.

Weights are read from safetensors files, mapped into memory, and no code that comes with a model is
run: neither pickles nor the hub's custom pipelines.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    configuration_utils,
)
from huggingface_hub import hf_hub_download, model_info
from huggingface_hub.errors import HfHubHTTPError

from ..adapters import ADAPTERS, REFUSED
from .pipeline import EmbeddedFillPipeline

WEIGHTS = Path(__file__).parent / "weights"
DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("model", "group", "none")
LIBRARIES = ("diffusers", "transformers")  # whose classes a model may be made of
# By the name of the option: diffusers' backend, and what it is given.
QUANTIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "4bit": ("bitsandbytes_4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "8bit": ("bitsandbytes_8bit", {"load_in_8bit": True}),
    "int8": ("torchao", {}),
}


def load_model(
    name_or_path: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offload: str = "none",
    quantize: str | None = None,
    loras: Sequence[str] = (),
) -> Any:
    """The embedded model, offline; or any supported pipeline from a folder or, by id, the hub.

    Args:
        name_or_path: None or "embedded" for the model in this package
        device: where to put it; unless given, the CPU
        dtype: of the weights; unless given float32 for the embedded model on a CPU, else bfloat16
        offload: "model" keeps only the part that runs on the device, "group" only the layers;
            slower, for pipelines larger than its memory
        quantize: the transformer's weights in fewer bits: "4bit", "8bit" (bitsandbytes) or "int8"
            (torchao)
        loras: safetensors files of LoRA weights, each with its scale after a colon if it is not 1

    Returns:
        A diffusers pipeline that `compress` takes, of the class that its `model_index.json` names.

    Raises:
        FileNotFoundError: no such folder, nothing by that id, or a folder without a whole model.
        ValueError: a device that is not there, weights that do not match their checksums, an option
            that is unknown or would do nothing.
        TypeError: a pipeline that is not supported.
        ImportError: a library that quantising, LoRA or the model needs is not installed.
    """
    target = find_device(device)
    kind = _dtype(dtype)
    _check_options(target, offload, quantize)
    scales = dict(lora_from(text) for text in loras)
    if name_or_path in (None, "embedded"):
        if quantize:
            raise ValueError("the embedded model is small enough as it is: omit quantize")
        verify(WEIGHTS)
        pipe = _load_embedded(WEIGHTS, target, kind)
    else:
        pipe = _load_other(str(name_or_path), target, kind, quantize)
    _add_loras(pipe, scales)
    return _placed(pipe, target, offload)


def _check_options(target: torch.device, offload: str, quantize: str | None) -> None:
    if offload not in OFFLOADS:
        raise ValueError(f"unknown offload {offload!r}; choose from {list(OFFLOADS)}")
    if offload != "none" and target.type == "cpu":
        raise ValueError(f"offload={offload!r} keeps parts off a device: name one that is no CPU")
    if quantize is not None and quantize not in QUANTIZERS:
        raise ValueError(f"unknown quantize {quantize!r}; choose from {list(QUANTIZERS)}")


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose from {list(DTYPES)}")
    return getattr(torch, dtype)


def _load_other(
    name: str, target: torch.device, dtype: torch.dtype | None, quantize: str | None
) -> Any:
    """A pipeline from a folder or the hub, of the class that it says it is."""
    folder = Path(name).is_dir()
    try:
        local = folder or not _hub_answers(name)
        listed = name if folder else Path(_from_hub(name, local)).parent
        index = _index(Path(listed))
        pipeline = _class_of(index)
        if _is_like_embedded(index) and folder and not quantize:
            return _whole(_load_embedded(Path(name), target, dtype))
        pipe = pipeline.from_pretrained(
            name,
            dtype=dtype or torch.bfloat16,
            local_files_only=local,
            use_safetensors=True,
            **({"quantization_config": _quantizer(quantize)} if quantize else {}),
        )
        return _whole(pipe)
    except (ImportError, NotSupported):
        raise
    except Exception as error:  # libraries raise anything on files that are broken
        raise FileNotFoundError(
            f"no pipeline at {name!r}: give a folder in diffusers format, "
            f"a hub id, or 'embedded' ({_first_line(error)})"
        ) from error


class NotSupported(TypeError):
    """A whole model, of a pipeline that cannot be compressed."""


def _index(folder: Path) -> dict[str, Any]:
    """`model_index.json`: the pipeline's class, and the library and class of each part.

    Raises ValueError if it is none, or lists parts of other libraries than LIBRARIES.
    """
    listed = folder / "model_index.json"
    if not listed.is_file():
        raise ValueError("it has no model_index.json")
    index = json.loads(listed.read_text(encoding="utf-8"))
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ValueError("its model_index.json names no pipeline")
    for part, of in index.items():
        if not isinstance(of, list):
            continue  # an option of the pipeline
        if len(of) != 2 or not all(isinstance(x, str | None) for x in of):
            raise ValueError(f"its model_index.json has {part} as {of}: not a library and a class")
        if of[0] not in (None, *LIBRARIES):
            raise ValueError(f"its {part} is of {of[0]!r}: only {' and '.join(LIBRARIES)} are run")
    return index


def _class_of(index: dict[str, Any]) -> Any:
    name = index["_class_name"]
    supported = sorted({pipeline for pipeline, _ in ADAPTERS})
    if name not in supported:
        reason = f" ({REFUSED[name]})" if name in REFUSED else ""
        raise NotSupported(f"{name} is not supported{reason}; supported: {', '.join(supported)}")
    return getattr(diffusers, name)


def _is_like_embedded(index: dict[str, Any]) -> bool:
    """Whether it is a Fill pipeline with a tiny autoencoder and no text encoders."""
    parts = [(index.get(name) or [None, None])[1] for name in ("text_encoder", "vae")]
    return index["_class_name"] == "FluxFillPipeline" and parts == [None, "AutoencoderTiny"]


def _quantizer(name: str) -> Any:
    from diffusers import PipelineQuantizationConfig

    backend, given = QUANTIZERS[name]
    if backend == "torchao":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        return PipelineQuantizationConfig(
            quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig(version=2))}
        )
    return PipelineQuantizationConfig(
        quant_backend=backend, quant_kwargs=given, components_to_quantize=["transformer"]
    )


def _load_embedded(
    folder: Path, device: torch.device, dtype: torch.dtype | None
) -> EmbeddedFillPipeline:
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
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
    return pipe


@contextmanager
def _phases_expected() -> Iterator[None]:
    """Diffusers warns that it ignores `phases`, which the pipeline here sees to."""
    others = lambda record: "{'phases': " not in record.getMessage()  # noqa: E731
    configuration_utils.logger.addFilter(others)
    try:
        yield
    finally:
        configuration_utils.logger.removeFilter(others)


def lora_from(text: str) -> tuple[Path, float]:
    """FILE or FILE:SCALE. Raises ValueError for a file that is not there or no safetensors."""
    path, colon, scale = text.rpartition(":")
    try:
        file, factor = (Path(path), float(scale)) if colon else (Path(text), 1.0)
    except ValueError:  # a colon in the name
        file, factor = Path(text), 1.0
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"no LoRA at {str(file)!r}: give a .safetensors file, or FILE:SCALE")
    return file, factor


def _add_loras(pipe: Any, scales: dict[Path, float]) -> None:
    if not scales:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRA in diffusers: leave it out")
    names = [f"lora_{i}" for i in range(len(scales))]
    for name, file in zip(names, scales, strict=True):
        try:
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
        except ImportError:
            raise
        except Exception as error:  # as above
            raise ValueError(
                f"{file} is no LoRA for {type(pipe).__name__} ({_first_line(error)})"
            ) from error
    if set(names) - {one for of in pipe.get_list_adapters().values() for one in of}:
        raise ValueError(f"{', '.join(map(str, scales))}: no weights for {type(pipe).__name__}")
    pipe.set_adapters(names, list(scales.values()))


def _placed(pipe: Any, target: torch.device, offload: str) -> Any:
    if offload == "model":
        pipe.enable_model_cpu_offload(device=target)
    elif offload == "group":
        pipe.enable_group_offload(
            target, offload_type="leaf_level", use_stream=target.type == "cuda"
        )
    else:
        pipe.to(target)
    return pipe


def _whole(pipe: Any) -> Any:
    """The pipeline; raises ValueError if weights that it needs were in no file."""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and any(p.is_meta for p in part.parameters()):
            raise ValueError(f"weights are missing for its {name}")
    return pipe


def _from_hub(name: str, local: bool) -> str:
    return hf_hub_download(name, "model_index.json", local_files_only=local)


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
