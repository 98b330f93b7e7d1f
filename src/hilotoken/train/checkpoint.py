"""Checkpoints that survive a kill at any moment, and the averaged weights that are shipped."""

import os
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


def load_if_any(path: Path) -> dict[str, Any] | None:
    """The state at `path`, or None where a run has not begun."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


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
