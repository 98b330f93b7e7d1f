"""The commands `hilo edit` and `hilo plan`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import (
    AsJson,
    Device,
    MaskPath,
    Method,
    MethodOptions,
    Model,
    PhotoPath,
    Seed,
    Steps,
    check_apart,
    print_json,
    quiet_bars,
)

if TYPE_CHECKING:
    from ..edit import Edit
    from ..methods import AnyMethod

SIZE_HELP = "Longer side of the working picture, in pixels"


def edit(
    photo: PhotoPath,
    mask: MaskPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the edited photo goes.")],
    model: Model = "embedded",
    prompt: Annotated[
        str, typer.Option(help="What to fill in; the embedded model reads none.")
    ] = "",
    label: Annotated[
        str, typer.Option(help="A kind of thing to fill with, of those that the model knows.")
    ] = "",
    method: Method = None,
    options: MethodOptions = None,
    steps: Steps = 8,
    seed: Seed = 0,
    device: Device = "cpu",
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
    check_apart([output, *(beside(output) if compare else [])], [photo, mask])

    from ..photo import is_lossless, load_mask, load_photo
    from .output import check_outputs, figures, table, write

    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_outputs(original, output, beside(output) if compare else [])

    from rich.console import Console

    from ..methods.parse import method_from
    from ..model import load_model

    name = method or "hilo"
    chosen = method_from(name, *options or [])
    console = Console(stderr=True)
    if not is_lossless(output):
        console.print(f"[yellow]{output.suffix} loses detail everywhere: .png keeps every pixel[/]")
    with quiet_bars():
        pipe = load_model(model, device=device)
        arguments = {"size": size, "prompt": prompt, "label": label, "seed": seed}
        arguments |= {"feather": feather, "match": match}
        run = runner(pipe, original, painted, arguments)
        dense = _dense(run, chosen, steps) if compare else None
        result = run(chosen, steps, name)
    written = write(result, dense, output, beside(output), name)
    if as_json:
        print_json(figures(result, dense), written)
        return
    console.print(table(result, dense, name))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


def plan(
    photo: PhotoPath,
    mask: MaskPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")],
    method: Method = None,
    options: MethodOptions = None,
    size: Annotated[int, typer.Option(help=f"{SIZE_HELP}.", min=128)] = 512,
    as_json: AsJson = False,
) -> None:
    """Draw which tokens an edit would run: edit, detail and coarse ones. No model is needed."""
    check_apart([output], [photo, mask])

    from ..photo import load_mask, load_photo
    from .output import check_picture, plan_figures, write_picture

    original = load_photo(photo)
    painted = load_mask(mask, original)
    check_picture(output)

    import numpy as np

    from ..methods.parse import method_from
    from ..picture import token_map
    from ..plan import plan_tokens
    from ..region import choose_region

    name = method or "hilo"
    chosen: Any = method_from(name, *options or [])
    if not hasattr(chosen, "plan"):
        raise ValueError(f"{name} plans no tokens to draw; see what it does with `hilo compare`")
    region = choose_region(painted, size)
    before = region.take_photo(original)
    small = region.take_mask(painted).astype(np.float32)
    tokens = plan_tokens(before, small, grid=region.grid, method=chosen)
    write_picture(token_map(before, tokens), output)
    if as_json:
        print_json(plan_figures(tokens), [output])
        return
    counts = ", ".join(f"{value} {key}" for key, value in tokens.counts.items())
    print(f"{counts}\n{tokens.tokens_run} of {tokens.tokens_full} tokens run", file=sys.stderr)
    print(f"wrote {output}", file=sys.stderr)


def beside(output: Path) -> list[Path]:
    """What --compare writes besides the edited photo: the dense one, the plan, the sheet."""
    names = (f"dense{output.suffix}", "plan.png", "sheet.png")
    return [output.with_name(f"{output.stem}_{name}") for name in names]


def _dense(run: "Callable[[AnyMethod, int, str], Edit]", chosen: "AnyMethod", steps: int) -> "Edit":
    """The dense edit to compare with, once both ways have warmed up."""
    from ..methods import Dense

    for method in (chosen, Dense()):
        run(method, 1, "warm-up")
    return run(Dense(), steps, "dense")


def runner(
    pipe: Any, photo: Any, mask: Any, arguments: dict[str, Any]
) -> "Callable[[AnyMethod, int, str], Edit]":
    """Edits this photo by any method in so many steps, its progress under a label."""
    from ..edit import edit_photo

    def run(method: "AnyMethod", steps: int, label: str) -> "Edit":
        pipe.set_progress_bar_config(desc=f"{label:>8}", disable=None)  # None: only on a terminal
        return edit_photo(pipe, photo, mask, method, steps=steps, **arguments)

    return run
