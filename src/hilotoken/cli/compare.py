"""The command `hilo compare`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .edit import Runner, load, picture, read, say
from .shared import (
    AsJson,
    Cfg,
    Context,
    Control,
    Device,
    Dtype,
    Grow,
    Guidance,
    Invert,
    Label,
    Loras,
    MaskFrom,
    MaskPath,
    Model,
    NegativePrompt,
    Offload,
    PhotoPath,
    Prompt,
    Quantize,
    References,
    Seed,
    Size,
    StepsOrOwn,
    Strength,
    check_apart,
    print_json,
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
    mask_from: MaskFrom = "auto",
    invert: Invert = False,
    grow: Grow = 0,
    prompt: Prompt = "",
    negative_prompt: NegativePrompt = "",
    label: Label = "",
    guidance: Guidance = None,
    cfg: Cfg = None,
    strength: Strength = None,
    reference: References = None,
    control: Control = None,
    model: Model = "embedded",
    lora: Loras = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    offload: Offload = "none",
    quantize: Quantize = None,
    steps: StepsOrOwn = None,
    seed: Seed = 0,
    size: Size = None,
    context: Context = 0.5,
    as_json: AsJson = False,
) -> None:
    """Edit a photo by every method: results, differences from dense, tokens and time on a sheet.

    Seconds are of one run each after a warm-up; for figures to rely on, see `hilo bench speed`.
    """
    check_apart([output, csv], [photo, mask, control, *(reference or [])])

    from .output import check_picture, write_picture

    original, found = read(photo, mask, mask_from, invert, grow)
    request = {"references": [picture(path) for path in reference or []]}
    request |= {"control": picture(control) if control else None}
    check_picture(output)

    from rich.console import Console

    from ..bench.results.rows import append_rows, check_rows
    from ..compare import CompareRow, compare_sheet, compare_table
    from ..compare import compare as compare_all
    from ..methods import METHODS
    from ..methods.parse import method_from, method_names

    names = method_names(methods) if methods else [name for name in METHODS if name != "dense"]
    chosen = {name: method_from(*name.split()) for name in names if name != "dense"}
    if csv:
        check_rows(csv, CompareRow)
    pipe = load(
        model, device=device, dtype=dtype, offload=offload, quantize=quantize, loras=lora or []
    )
    request |= {"prompt": prompt, "negative_prompt": negative_prompt, "label": label}
    request |= {"guidance": guidance, "cfg": cfg, "strength": strength, "seed": seed}
    request |= {"size": size, "context": context, "match": False}
    run = Runner(pipe, original, found.pixels, request)
    refused: dict[str, str] = {}
    made = compare_all(
        run, chosen, photo=photo.name, steps=steps, seed=seed, warm_up=run.warm_up, refused=refused
    )
    compared = list(made)
    rows = [one.row for one in compared]
    write_picture(compare_sheet(compared), output)
    if csv:
        append_rows(csv, rows)
    written = [output, *([csv] if csv else [])]
    if as_json:
        told = {"rows": [asdict(row) for row in rows], "refused": refused, "notes": found.notes}
        print_json(told, written)
        return
    say(found.notes)
    Console().print(compare_table(rows))
    for name, reason in refused.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
