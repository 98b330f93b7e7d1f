"""A row of the table of pipelines: how to build a tiny one, call it, and read its latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class Lack(StrEnum):
    """What a row may lack: a way of calling, by its name, or a property. The docs print these."""

    TWO_IMAGES = "two images"
    TWO_PHOTOS = "two photos"
    LATENTS = "latents"
    OTHER_SIZE = "photo of another size"
    GENERATORS = "a list of generators"
    ALIGNED = "positions aligned"
    COMPILED = "compiled blocks"
    STEP_CACHE = "a step cache"
    BLOCKS = "methods inside blocks"
    LOW_RANK = "adapters of low rank"


@dataclass(frozen=True, eq=False)  # a row is itself alone
class Family:
    """One pipeline class at tiny size, its random weights the same every time.

    make:      builds it in a dtype. A 256 px edit has a grid of 16x16 tokens
    arguments: a fresh dict of the arguments of a small edit, with changes: image, mask_image, size,
               3 steps, a seeded generator, output_type "latent", prompt embeddings in the dtype
    source:    the pipeline's own source latents for those arguments, as tokens [B, N, C], computed
               without hilotoken; consumes the given generator as the pipeline does
    tokens:    the pipeline's latents (what its scheduler steps) as tokens [B, N, C]
    calls:     further ways of calling, each a name and its changes; see `families.py`
    image_first: whether image tokens come before text in the attention
    lacks:     what does not hold, each with the reason, as the docs print it
    """

    name: str
    make: Callable[[torch.dtype], Any]
    arguments: Callable[..., dict[str, Any]]
    source: Callable[[Any, dict[str, Any]], Tensor]
    tokens: Callable[[Any, Tensor], Tensor]
    calls: Mapping[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)
    image_first: bool = False
    lacks: Mapping[Lack, str] = field(default_factory=dict)
