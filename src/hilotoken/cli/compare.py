"""The command `hilo compare`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..methods.parse import method_from, method_names

ALL = "all of them, by their defaults"


def compare(
    photo: Annotated[Path, typer.Argument(help="The photo: PNG, JPEG, TIFF, WebP or BMP.")],
    mask: Annotated[
        Path, typer.Option("--mask", "-m", help="A picture of the photo's size; white is edited.")
    ],
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
    model: Annotated[
        str, typer.Option(help="`embedded`, a folder in diffusers format, or a hub id.")
    ] = "embedded",
    prompt: Annotated[
        str, typer.Option(help="What to fill in; the embedded model reads none.")
    ] = "",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0, max=2**32 - 1)] = 0,
    size: Annotated[
        int | None,
        typer.Option(help="Longer side of the working picture, in pixels.", min=128),
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Edit a photo by every method: results, differences from dense, tokens and time on a sheet.

    Seconds are of one run each after a warm-up; for figures to rely on, see `hilo bench speed`.
    """
    from rich.console import Console

    from ..bench.results.rows import append_rows
    from ..compare import compare as compare_all
    from ..compare import compare_sheet, compare_table
    from ..methods import METHODS
    from ..model import load_model
    from ..photo import load_mask, load_photo
    from . import quiet_libraries, runner
    from .output import check_picture, write_picture

    names = method_names(methods) if methods else [name for name in METHODS if name != "dense"]
    chosen = {name: method_from(*name.split()) for name in names if name != "dense"}
    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_picture(output)
    with quiet_libraries():
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
        print(json.dumps(found | {"written": [str(path) for path in written]}))
        return
    Console().print(compare_table(rows))
    for name, reason in refused.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
