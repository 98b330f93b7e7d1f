"""The command `hilo lora`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .edit import load
from .shared import (
    Device,
    Dtype,
    Guidance,
    Prompt,
    Size,
    check_apart,
)


def lora(
    model: Annotated[
        str, typer.Argument(help="`embedded`, a folder in diffusers format, or a hub id.")
    ],
    photos: Annotated[
        Path, typer.Argument(help="A folder of photographs, of anything; no captions are read.")
    ],
    run: Annotated[Path, typer.Argument(help="The run's folder: checkpoint, log, LoRA.")],
    samples: Annotated[
        int, typer.Option(help="Photos to train on, each under a mask of its own.", min=1)
    ] = 20_000,
    batch: Annotated[int, typer.Option(help="Photos that make one step.", min=1)] = 4,
    rank: Annotated[int, typer.Option(help="Of the LoRA.", min=1)] = 16,
    rate: Annotated[float, typer.Option(help="Rate of learning.")] = 2e-4,
    identity: Annotated[
        float, typer.Option(help="Weight of staying what it was where every token runs.")
    ] = 1.0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, a third more time.")
    ] = False,
    eight_bit: Annotated[
        bool, typer.Option("--eight-bit", help="The optimiser in eight bits, by bitsandbytes.")
    ] = False,
    prompt: Prompt = "",
    guidance: Guidance = None,
    size: Size = None,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Make your own model robust to short sequences: a LoRA, with the model as its teacher.

    Interrupt it at any moment and give the same command again: it goes on from its checkpoint.
    `hilo edit --lora RUN/pytorch_lora_weights.safetensors` takes what it writes, and so does
    `load_lora_weights` of diffusers.
    """
    check_apart([run], [photos])

    from ..model import find_device
    from ..request import Request, working_size
    from ..train.lora import LoraOptions, check_installed, check_pipeline, photo_draw, train_lora
    from ..train.parallel import own_device

    options = LoraOptions(
        samples, batch, rank, rate, identity=identity, eight_bit=eight_bit,
        checkpointing=checkpointing,
    )  # fmt: skip
    check_installed(options)
    pipe = load(model, device=own_device(find_device(device)), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    check_pipeline(pipe)
    draw = photo_draw(pipe, photos, working_size(pipe, size), Request(prompt, guidance=guidance))
    file = train_lora(pipe, draw, run, options, begun=f"{model}, {photos}, {prompt!r}, {size}")
    print(f"wrote {file}", file=sys.stderr)
