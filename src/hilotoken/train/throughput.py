"""How fast a training runs: pictures a second, and the share of what its hardware can do (MFU).

What it can do is the rate of one large bfloat16 matrix product, measured as it begins. What it does
are FLOPs, two for each multiply-add, forwards and backwards, counted in a batch now and then.
Counting takes other ways to round, so when to count follows from the pictures done, and a run that
resumes ends with the same weights.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .checkpoint import note, read_note

COUNTED, OF = 64, 4096  # batches that begin within the first so many of every so many pictures


class Throughput:
    """Of one stage since it was last begun; all its processes run as this one does."""

    def __init__(self, device: torch.device, processes: int) -> None:
        self.matrix_rate, self.processes = matrix_rate(device), processes
        self.begun, self.pictures = time.monotonic(), 0
        self.counted_pictures, self.flops = 0, 0

    def count(self, gradients: Callable[[int], tuple[int, Any]], done: int) -> tuple[int, Any]:
        """What `gradients(done)` returns: how many pictures it was of, and anything."""
        if done % OF >= COUNTED:
            return gradients(done)
        with FlopCounterMode(display=False) as counter:
            pictures, result = gradients(done)
        self.flops += counter.get_total_flops()
        self.counted_pictures += pictures
        return pictures, result

    def figures(self) -> dict[str, float]:
        """Of all processes: pictures and FLOPs a second, and their share of the matrix rate."""
        each = self.flops / max(1, self.counted_pictures)
        speed = self.pictures / max(time.monotonic() - self.begun, 1e-9)
        return {
            "pictures_per_second": speed,
            "flops_per_picture": each,
            "matrix_rate": self.matrix_rate,
            "processes": self.processes,
            "share_of_matrix_rate": speed * each / (self.matrix_rate * self.processes),
        }

    def keep(self, path: Path, stage: str) -> None:
        """Write the figures into the file at `path`, beside those of other stages; if there are."""
        if not self.counted_pictures:
            return
        known = read_note(path, {})
        note(json.dumps(known | {stage: self.figures()}, indent=2), path)


def matrix_rate(device: torch.device) -> float:
    """FLOPs a second of a bfloat16 matrix product, the best of ten."""
    side = 1024 if device.type == "cpu" else 8192
    matrix, best = torch.ones(side, side, dtype=torch.bfloat16, device=device), float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # who reads a number waits for it
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
