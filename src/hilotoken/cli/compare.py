"""The command `hilo compare`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .edit import runner
from .shared import (
    AsJson,
    Device,
    MaskPath,
    Model,
    PhotoPath,
    Seed,
    Steps,
    check_apart,
    print_json,
    quiet_bars,
)

ALL = "all of them, by their defaults"


def compare(
    photo: PhotoPath,
    mask: MaskPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the sheet goes.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help=f'Between commas, with options if any: "hilo,tome ratio=0.5,hilo + todo"; {ALL}.'
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="A CSV that the rows are appended to.")
    ] = None,
    model: Model = "embedded",
    prompt: Annotated[
        str, typer.Option(help="What to fill in; the embedded model reads none.")
    ] = "",
    steps: Steps = 8,
    seed: Seed = 0,
    size: Annotated[
        int | None,
        typer.Option(help="Longer side of the working picture, in pixels.", min=128),
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Edit a photo by every method: results, differences from dense, tokens and time on a sheet.

    Seconds are of one run each after a warm-up; for figures to rely on, see `hilo bench speed`.
    """
    check_apart([output, csv], [photo, mask])

    from ..photo import load_mask, load_photo
    from .output import check_picture, write_picture

    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_picture(output)

    from rich.console import Console

    from ..bench.results.rows import append_rows, check_rows
    from ..compare import CompareRow, compare_sheet, compare_table
    from ..compare import compare as compare_all
    from ..methods import METHODS
    from ..methods.parse import method_from, method_names
    from ..model import load_model

    names = method_names(methods) if methods else [name for name in METHODS if name != "dense"]
    chosen = {name: method_from(*name.split()) for name in names if name != "dense"}
    if csv:
        check_rows(csv, CompareRow)
    with quiet_bars():
        pipe = load_model(model, device=device)
        arguments = {"size": size, "prompt": prompt, "seed": seed, "match": False}
        run = runner(pipe, original, painted, arguments)
        refused: dict[str, str] = {}
        made = compare_all(run, chosen, photo=photo.name, steps=steps, seed=seed, refused=refused)
        compared = list(made)
    rows = [one.row for one in compared]
    write_picture(compare_sheet(compared), output)
    if csv:
        append_rows(csv, rows)
    written = [output, *([csv] if csv else [])]
    if as_json:
        found = {"rows": [asdict(row) for row in rows], "refused": refused}
        print_json(found, written)
        return
    Console().print(compare_table(rows))
    for name, reason in refused.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
