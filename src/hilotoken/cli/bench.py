"""The commands of `hilo bench`, and `hilo bench speed` itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bench_evidence import COMMANDS
from .bench_fill import fill
from .shared import Device, Methods, Model, Output, Steps

if TYPE_CHECKING:
    from ..bench.measure.arch import Subject
    from ..bench.measure.speed import Case, SpeedRow
    from ..methods import Method

DTYPES = ("float32", "bfloat16", "float16")

app = typer.Typer(help="Measure: quality and speed, as commands that anyone can repeat.")
for _command in (fill, *COMMANDS):
    app.command()(_command)


@app.command()
def speed(
    method: Methods = None,
    arch: Annotated[
        str, typer.Option(help="`embedded` for --model; or `flux-fill` ..., with random weights.")
    ] = "embedded",
    scale: Annotated[
        str, typer.Option(help="Of an arch: `full`, `small`, `tiny`, or a share of its depth.")
    ] = "full",
    model: Model = "embedded",
    size: Annotated[
        int | None, typer.Option(help="Pixels a side; unless given 512, and 1024 for an arch.")
    ] = None,
    steps: Steps = 8,
    masks: Annotated[
        str, typer.Option(help="`small`, `medium`, `large`, or shares such as 0.2.")
    ] = "small,medium,large",
    text: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 512,
    repeats: Annotated[int, typer.Option(help="Timed rounds.", min=1)] = 5,
    device: Device = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="Unless given float32 on a CPU, else bfloat16.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the transformer's repeated blocks.")
    ] = False,
    curve: Annotated[
        str | None,
        typer.Option(help="`size`, under the first of --masks up to --size; or `mask`, at --size."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Where a curve is drawn; unless given speed-CURVE.svg.")
    ] = None,
    output: Output = None,
) -> None:
    """Time edits under small, medium and large masks: dense and compressed in turn, medians.

    Rows are written as they come, so that a run that is stopped keeps what it measured.
    """
    if plot and not curve:
        raise ValueError("--plot says where a curve is drawn: give --curve, or leave it out")

    from ..bench.measure.speed import SpeedRow, cases
    from ..bench.results.rows import check_rows
    from ..bench.show import tables
    from ..bench.show.plots import pyplot

    methods = _methods(method)
    wanted = cases(masks, size or (512 if arch == "embedded" else 1024))
    if output:
        check_rows(output, SpeedRow)
    if curve:
        wanted = tables.curve_cases(curve, wanted[0])
        methods[tables.LIMIT] = tables.LIMIT_METHOD
        pyplot()  # which may be missing: before anything is measured
    subject = _subject(arch, scale, model, device, dtype, text)
    if compiled:
        subject.compile()
    rows = _timed(subject, methods, wanted, steps, repeats, output)
    if curve:
        path = plot or Path(f"speed-{curve}.svg")
        tables.plot_curve(rows, curve, path)
        print(f"drawn: {path}")


@app.command()
def memory(
    models: Annotated[
        str, typer.Option(help="Of flux, flux2, qwen-image, sd3.5; between commas.")
    ] = "flux,flux2,qwen-image,sd3.5",
    presets: Annotated[str, typer.Option(help="Presets, between commas.")] = "balanced,fast",
    sizes: Annotated[str, typer.Option(help="Pixels a side, between commas.")] = "1024,2048",
    output: Output = None,
) -> None:
    """Predict the GPU memory of an edit at full size, and which cards it fits, without a GPU.

    Prints a Markdown table. GB are 10^9 bytes.
    """
    from ..bench.measure.memory import bench_memory
    from ..bench.results.rows import append_rows
    from ..bench.show.tables import memory_table

    chosen = [part.split(",") for part in (models, presets, sizes)]
    rows = list(bench_memory(chosen[0], chosen[1], [int(size) for size in chosen[2]]))
    if output:
        append_rows(output, rows)
    print(memory_table(rows), end="")


def _subject(
    arch: str, scale: str, model: str, device: str, dtype: str | None, text: int
) -> "Subject":
    import torch

    from ..bench.measure.arch import build, scale_from, subject_of
    from ..model import find_device, load_model

    target = find_device(device)
    if dtype not in (None, *DTYPES):
        raise ValueError(f"unknown dtype {dtype!r}; choose from {list(DTYPES)}")
    if arch == "embedded":
        if scale != "full":
            raise ValueError(f"the embedded model has one scale: omit --scale {scale}")
        pipe = load_model(model, device=target)
        return subject_of(pipe.to(getattr(torch, dtype)) if dtype else pipe, text)
    if model != "embedded":
        raise ValueError(f"--model {model} has its own architecture: omit --arch {arch}")
    kind = getattr(torch, dtype or ("float32" if target.type == "cpu" else "bfloat16"))
    return build(arch, scale_from(scale), device=target, dtype=kind, text=text)


def _timed(
    subject: "Subject",
    methods: "dict[str, Method | str]",
    wanted: "list[Case]",
    steps: int,
    repeats: int,
    output: Path | None,
) -> "list[SpeedRow]":
    """The rows, written as they come; the tables are printed also when the run is stopped."""
    from rich.console import Console
    from rich.progress import track

    from ..bench.measure.speed import bench_speed
    from ..bench.results.rows import append_rows
    from ..bench.show.tables import parts_table, speed_table

    rows = []
    timed = bench_speed(subject, methods, wanted, steps=steps, repeats=repeats)
    total = len(wanted) * repeats * (1 + len(methods))
    try:
        for row in track(timed, "warm-up, then timing", total=total, console=Console(stderr=True)):
            rows.append(row)
            if output:
                append_rows(output, [row])
    finally:
        if rows:
            Console().print(speed_table(rows))
            Console().print(parts_table(rows))
    return rows


def _methods(texts: list[str] | None) -> "dict[str, Method | str]":
    from ..methods.parse import read_method

    return {text: read_method(text) for text in texts or ["hilo"]}
