"""`hilo bench speed`: what a method saves, dense and compressed in turn, as a ratio in one run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from rich.table import Table

from ..compress import compress
from ..methods import Dense, Method
from .fill import CLASSES
from .rows import grouped


@dataclass(frozen=True)
class SpeedRow:
    """One edit, timed. Ratios are over the dense edit of the same repeat."""

    mask_class: str
    mask_share: float
    method: str
    repeat: int
    size: int
    steps: int
    tokens_full: int
    tokens_run: int
    dit_seconds: float
    vae_seconds: float
    plan_seconds: float
    total_seconds: float
    dit_speedup: float
    speedup: float


def disc(size: int, share: float) -> np.ndarray:
    """A disc in the middle that covers that share of a square: bool [size, size]."""
    row, column = np.ogrid[:size, :size]
    middle = (size - 1) / 2
    return (row - middle) ** 2 + (column - middle) ** 2 <= share * size**2 / np.pi


def bench_speed(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Method],
    *,
    size: int,
    steps: int,
    repeats: int,
) -> Iterator[SpeedRow]:
    """Edit noise under a disc of each class; the first round of each class only warms up.

    Speed depends on lengths alone, so neither photo nor weights matter to it.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    for mask_class, share in CLASSES.items():
        mask = disc(size, share)
        arguments: dict[str, Any] = {
            "image": Image.fromarray(pixels),
            "mask_image": Image.fromarray(mask.astype(np.uint8) * 255),
            "height": size,
            "width": size,
        }
        for repeat in range(-1, repeats):
            dense = None
            for name, method in {"dense": Dense(), **methods}.items():
                fast = compress(pipe, method)
                generator = torch.Generator().manual_seed(0)
                fast(
                    **arguments,
                    num_inference_steps=steps if repeat >= 0 else 1,
                    generator=generator,
                )
                run = fast.last_run
                assert run is not None
                dense = dense or run
                if repeat >= 0:
                    yield SpeedRow(
                        mask_class,
                        float(mask.mean()),
                        name,
                        repeat,
                        size,
                        steps,
                        run.tokens_full,
                        run.tokens_run,
                        run.dit_seconds,
                        run.vae_seconds,
                        run.plan_seconds,
                        run.total_seconds,
                        dense.dit_seconds / run.dit_seconds,
                        dense.total_seconds / run.total_seconds,
                    )


def speed_table(rows: Sequence[SpeedRow]) -> Table:
    """Medians over the repeats, with the least and the greatest speed-up."""
    table = Table("mask", "method", "tokens", "DiT s", "whole s", "DiT", "whole")
    for (mask_class, method), group in grouped(rows, "mask_class", "method").items():
        ratios = []
        for name in ("dit_speedup", "speedup"):
            values = [getattr(row, name) for row in group]
            ratios.append(f"{median(values):.2f}x [{min(values):.2f}, {max(values):.2f}]")
        table.add_row(
            str(mask_class),
            str(method),
            f"{group[0].tokens_run} of {group[0].tokens_full}",
            f"{median(row.dit_seconds for row in group):.2f}",
            f"{median(row.total_seconds for row in group):.2f}",
            *(ratios if method != "dense" else ["", ""]),
        )
    return table
