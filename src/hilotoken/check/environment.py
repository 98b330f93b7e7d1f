"""What a check runs on: versions, device, attention backend, memory; and what is missing there."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..hooks import any_compiled, unwrap

LIBRARIES = ("hilotoken", "torch", "diffusers", "transformers", "accelerate")
GIB = 2**30


@dataclass(frozen=True)
class Environment:
    """facts: by their names; notes: what is missing, or would make the figures mislead."""

    facts: dict[str, str]
    notes: list[str]


def environment(pipe: Any) -> Environment:
    """Look around before anything is run."""
    model, device = unwrap(pipe.transformer), pipe._execution_device
    weights = {name: _bytes(part) for name, part in pipe.components.items() if _bytes(part)}
    free = _free(device)
    facts = {
        "pipeline": f"{type(pipe).__name__}, {type(model).__name__} of "
        f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters",
        "weights": f"{sum(weights.values()) / GIB:.2f} GiB, {_name(model.dtype)}",
        "device": _device(device),
        "free memory": "unknown" if free is None else f"{free / GIB:.1f} GiB",
        "attention backend": attention_backend(model),
        "compiled": "yes" if any_compiled(pipe.transformer) else "no",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }
    return Environment(facts, _notes(model, device, free, sum(weights.values())))


def _notes(model: Any, device: torch.device, free: int | None, weights: int) -> list[str]:
    notes = []
    if device.type == "cpu" and torch.cuda.is_available():
        notes.append("there is a GPU, and it is not used: move the pipeline there (--device cuda)")
    if device.type == "cpu" and model.dtype != torch.float32:
        notes.append(f"{_name(model.dtype)} on a CPU is often slower than float32 (--dtype)")
    if device.type == "cuda" and model.dtype == torch.float32:
        notes.append("float32 on a GPU: bfloat16 takes half the memory and less time (--dtype)")
    if device.type == "cpu" and free is not None and free < weights / 4:
        notes.append(
            f"{free / GIB:.1f} GiB of memory are free beside weights of {weights / GIB:.1f}: the "
            "machine may swap, and seconds then mean nothing"
        )
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if device.type == "cpu" and load > cores / 2:
        notes.append(
            f"other work is running here (load {load:.1f} on {cores} cores): speed-ups are ratios "
            "of neighbouring runs, but seconds are too long"
        )
    return notes


def attention_backend(model: Any) -> str:
    """What `set_attention_backend` chose, for the model or for all."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    processors = [m.processor for m in model.modules() if getattr(m, "processor", None)]
    own = {getattr(processor, "_attention_backend", None) for processor in processors} - {None}
    chosen = own or {_AttentionBackendRegistry._active_backend}
    return ", ".join(sorted(str(getattr(one, "value", one)) for one in chosen))


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device}{threads}"


def _free(device: torch.device) -> int | None:
    """Bytes of memory that are free for the device; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = Path("/proc/meminfo")
    lines = known.read_text().splitlines() if device.type == "cpu" and known.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable")]
    return int(found[0]) * 1024 if found else None


def _bytes(part: Any) -> int:
    if not isinstance(part, torch.nn.Module):
        return 0
    return sum(p.numel() * p.element_size() for p in part.parameters())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
