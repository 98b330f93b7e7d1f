"""Start from a pipeline of this kind, made deeper: blocks are added that begin as the identity.

A block that adds nothing to what comes through it leaves the model computing what it computed, and
learns from there (depth up-scaling, as in LLaMA Pro, arXiv 2401.02415): cheaper than a larger model
from nothing. In the transformer that is a copy of the block before it with its gate shut, in the
decoder one whose last convolution is nothing.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

from ..model import load_model


class Start(NamedTuple):
    """Both models of a pipeline in float32, and the kinds of things that it knows by number."""

    autoencoder: AutoencoderTiny
    transformer: FluxTransformer2DModel
    labels: tuple[str, ...]


def start_from(name_or_path: str | Path, blocks: int, decoder_blocks: Sequence[int]) -> Start:
    """A pipeline, made as deep as is asked.

    Raises:
        FileNotFoundError: no pipeline there.
        ValueError: its parts are of another kind, or deeper than asked.
    """
    pipe = load_model(name_or_path)
    autoencoder, transformer = pipe.vae, pipe.transformer
    if not isinstance(autoencoder, AutoencoderTiny):
        raise ValueError(
            f"{name_or_path} has a {type(autoencoder).__name__}: start from a pipeline of "
            "`hilo train`, or 'embedded'"
        )
    deepen_decoder(autoencoder, decoder_blocks)
    deepen_transformer(transformer, blocks)
    return Start(
        autoencoder.float().requires_grad_(False).eval(),
        transformer.float().train(),
        getattr(pipe, "labels", ()),
    )


def deepen_transformer(model: FluxTransformer2DModel, blocks: int) -> None:
    """Add single blocks between those there are, in place, to `blocks` of them.

    Raises ValueError for fewer than there are.
    """
    old: list[Any] = list(model.single_transformer_blocks)
    _check("single blocks of the transformer", len(old), blocks)
    sources = [i * len(old) // blocks for i in range(blocks)]
    deeper = [old[0]]
    for before, source in pairwise(sources):
        deeper.append(_shut(old[source]) if source == before else old[source])
    model.single_transformer_blocks = nn.ModuleList(deeper)
    model.register_to_config(num_single_layers=blocks)


@torch.no_grad()
def _shut(block: Any) -> Any:
    """A copy that adds nothing: of shift, scale and gate, the rows of the last are zero."""
    copied = copy.deepcopy(block)
    for rows in (copied.norm.linear.weight, copied.norm.linear.bias):
        rows.chunk(3)[2].zero_()
    return copied


def deepen_decoder(autoencoder: AutoencoderTiny, blocks: Sequence[int]) -> None:
    """Add blocks to the decoder at the end of each of its sizes, in place.

    `blocks` are in the order of the config's `num_decoder_blocks`, the smallest size first. Raises
    ValueError for fewer than there are, or another number of sizes.
    """
    old = list(autoencoder.config["num_decoder_blocks"])
    if len(old) != len(blocks):
        raise ValueError(f"the decoder has {len(old)} sizes, got blocks for {len(blocks)}")
    for count, wanted in zip(old, blocks, strict=True):
        _check("blocks of the decoder", count, wanted)
    more = [wanted - count for count, wanted in zip(old, blocks, strict=True)]
    layers: list[nn.Module] = []
    for layer, following in pairwise([*autoencoder.decoder.layers, nn.Identity()]):
        layers.append(layer)
        ends_size = not isinstance(following, AutoencoderTinyBlock)
        if isinstance(layer, AutoencoderTinyBlock) and ends_size:
            layers += [_idle(layer) for _ in range(more.pop(0))]
    autoencoder.decoder.layers = nn.Sequential(*layers)
    autoencoder.register_to_config(num_decoder_blocks=tuple(blocks))


@torch.no_grad()
def _idle(block: Any) -> Any:
    """A copy that adds nothing; what comes is no less than 0, so its ReLU lets it through."""
    copied = copy.deepcopy(block)
    for rows in (copied.conv[-1].weight, copied.conv[-1].bias):
        rows.zero_()
    return copied


def _check(what: str, there: int, wanted: int) -> None:
    if wanted < there:
        raise ValueError(f"the start has {there} {what}, got {wanted}: give {there} or more")
