"""Checkpoints that survive a kill at any moment, and the averaged weights that are shipped."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write `state` beside `path` and move it into place: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def note(text: str, path: Path) -> None:
    """Write a line about the run; the processes of one may all do so, and read it, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text + "\n")
    os.replace(partial, path)


def read_note(path: Path, otherwise: Any) -> Any:
    """What was noted at `path` as JSON, or `otherwise` where nothing is.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text()) if path.is_file() else otherwise
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): put back what it held, or name another folder"
        ) from error


def load_if_any(path: Path) -> dict[str, Any] | None:
    """The state at `path`, or None where a run has not begun.

    Raises:
        ValueError: the file is damaged, or no checkpoint.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        state, reason = None, str(error).partition("\n")[0]
    else:
        reason = "no checkpoint of `hilo train`"
    if not isinstance(state, dict) or "done" not in state:
        raise ValueError(f"{path} is damaged ({reason}): remove it, and that stage is trained anew")
    return state


class Average:
    """Exponential moving average of a model's weights (EMA), warmed up from plain averaging."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: w.detach().clone() for name, w in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        rate = 1 - min(self.decay, self.updates / (self.updates + 10))
        for name, weight in model.state_dict().items():
            self.weights[name].lerp_(weight.detach().float(), rate)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, weight in state["weights"].items():
            self.weights[name].copy_(weight)  # which stays on its device
