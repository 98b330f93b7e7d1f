"""The commands `hilo edit` and `hilo plan`."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import (
    BEGAN,
    MASKS,
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
    Method,
    MethodOptions,
    Model,
    NegativePrompt,
    Offload,
    PhotoPath,
    Preset,
    Prompt,
    Quantize,
    References,
    Seed,
    Size,
    StepsOrOwn,
    Strength,
    check_apart,
    chosen_method,
    importing,
    print_json,
    quiet_bars,
    refuse_given,
)

if TYPE_CHECKING:
    from PIL import Image

    from ..edit import Edit
    from ..method import Method as AnyMethod
    from ..photo import Mask, Photo
    from ..progress import Told


def edit(
    ctx: typer.Context,
    photo: PhotoPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the edited photo goes.")],
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            "-m",
            help="A picture of the photo's size; white is edited. Without one, what the prompt "
            "changes is found, by a model that edits by instruction.",
        ),
    ] = None,
    mask_from: MaskFrom = "auto",
    invert: Invert = False,
    grow: Grow = 0,
    keep: Annotated[
        str | None,
        typer.Option(
            help="`found`, without --mask: every token runs, and what did not change is put back.",
            rich_help_panel=MASKS,
        ),
    ] = None,
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
    preset: Preset = None,
    method: Method = None,
    options: MethodOptions = None,
    steps: StepsOrOwn = None,
    seed: Seed = 0,
    size: Size = None,
    context: Context = 0.5,
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
    and OUT_sheet.png are written beside OUT, and without --mask OUT_region.png, what was found.
    """
    others = beside(output, found=mask is None) if compare else []
    check_apart([output, *others], [photo, mask, control, *(reference or [])])
    if mask is None:
        refuse_given(ctx, "there is no --mask", "mask_from", "invert", "grow", "context")
        options = finding(method, options, preset, keep)

    from ..photo import is_lossless, load_photo
    from .output import check_outputs, figures, table, write

    if mask is None:
        original, painted, notes = load_photo(photo), None, []
    else:
        original, found = read(photo, mask, mask_from, invert, grow)
        painted, notes = found.pixels, list(found.notes)
    request = {"references": [picture(path) for path in reference or []]}
    request |= {"control": picture(control) if control else None}
    check_outputs(original, output, others)

    from rich.console import Console

    name, chosen = chosen_method(method or ("dense" if keep else None), options, preset)
    console = Console(stderr=True)
    if not is_lossless(output):
        notes.append(f"{output.suffix} loses detail everywhere: .png keeps every pixel")
    if not as_json:
        say(notes)
    pipe = load(
        model, device=device, dtype=dtype, offload=offload, quantize=quantize, loras=lora or []
    )
    seconds = {"start_seconds": time.perf_counter() - BEGAN}
    request |= {"prompt": prompt, "negative_prompt": negative_prompt, "label": label}
    request |= {"guidance": guidance, "cfg": cfg, "strength": strength, "seed": seed}
    request |= {"size": size, "context": context, "feather": feather, "match": match}
    request |= {"keep": keep}
    run = Runner(pipe, original, painted, request)
    dense = _dense(run, chosen, steps) if compare else None
    result = run(chosen, steps, name)
    edited = time.perf_counter()
    written = write(result, dense, output, others, name)
    seconds["write_seconds"] = time.perf_counter() - edited
    if as_json:
        print_json(figures(result, dense) | seconds | {"notes": notes}, written)
        return
    console.print(table(result, dense, name, **seconds))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


def plan(
    photo: PhotoPath,
    mask: MaskPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes.")],
    mask_from: MaskFrom = "auto",
    invert: Invert = False,
    grow: Grow = 0,
    preset: Preset = None,
    method: Method = None,
    options: MethodOptions = None,
    size: Annotated[
        int, typer.Option(help="Longer side of the working picture, in pixels.", min=128)
    ] = 512,
    context: Context = 0.5,
    as_json: AsJson = False,
) -> None:
    """Draw which tokens an edit would run: edit, detail and coarse ones. No model is needed."""
    check_apart([output], [photo, mask])

    from .output import check_picture, plan_figures, write_picture

    original, found = read(photo, mask, mask_from, invert, grow)
    painted = found.pixels
    check_picture(output)

    import numpy as np

    from ..methods import as_method, plan_tokens
    from ..picture import token_map
    from ..region import choose_region

    name, chosen = chosen_method(method or (None if preset else "hilo"), options, preset)
    if as_method(chosen).site != "sequence":
        raise ValueError(f"{name} plans no tokens to draw; see what it does with `hilo compare`")
    region = choose_region(painted, size, context)
    before = region.take_photo(original)
    small = region.take_mask(painted).astype(np.float32)
    tokens = plan_tokens(before, small, grid=region.grid, method=chosen)
    write_picture(token_map(before, tokens), output)
    if as_json:
        print_json(plan_figures(tokens) | {"notes": found.notes}, [output])
        return
    say(found.notes)
    counts = ", ".join(f"{value} {key}" for key, value in tokens.counts.items())
    print(f"{counts}\n{tokens.tokens_run} of {tokens.tokens_full} tokens run", file=sys.stderr)
    print(f"wrote {output}", file=sys.stderr)


def beside(output: Path, found: bool = False) -> list[Path]:
    """What --compare writes besides the edited photo: the dense one, the plan, the sheet, and the
    region that was found."""
    names = (f"dense{output.suffix}", "plan.png", "sheet.png", *(["region.png"] if found else []))
    return [output.with_name(f"{output.stem}_{name}") for name in names]


def finding(
    method: str | None, options: list[str] | None, preset: str | None, keep: str | None
) -> list[str]:
    """The options of a method that runs without a mask: unless it is told otherwise, it finds one.

    Raises:
        ValueError: a preset, which goes by a mask.
    """
    if preset:
        raise ValueError(f"--preset {preset} goes by a mask: give --mask, or leave it out")
    options = list(options or [])
    finds = keep or method not in (None, "hilo") or any(o.startswith("find=") for o in options)
    return options if finds else [*options, "find=True"]


def read(photo: Path, mask: Path, mask_from: str, invert: bool, grow: int) -> "tuple[Photo, Mask]":
    """The photo and its mask."""
    from ..photo import load_photo, read_mask

    original = load_photo(photo)
    return original, read_mask(mask, original, mask_from=mask_from, invert=invert, grow=grow)


def say(notes: Iterable[str]) -> None:
    """What a user should know, and is no error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def picture(path: Path) -> "Image.Image":
    """A picture that is looked at only."""
    from ..photo import load_photo

    return load_photo(path).rgb()


def load(model: str, **given: Any) -> Any:
    """The pipeline."""
    with importing():
        from ..model import load_model

        with quiet_bars():
            return load_model(model, **given)


def _dense(run: "Runner", chosen: "AnyMethod", steps: int | None) -> "Edit":
    """The dense edit to compare with, once both ways have warmed up."""
    from ..methods import Dense

    for method in (chosen, Dense()):
        run.warm_up(method)
    return run(Dense(), steps, "dense")


@contextmanager
def stages(label: str) -> Iterator["Told"]:
    """A bar over a whole edit, with its stage named, on terminals."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda stage: bar.update(
            task, completed=stage.share, description=f"{label}: {stage.name}"
        )


class Runner:
    """Edits one photo by one pipeline, by any method in so many steps, with a bar on terminals."""

    def __init__(self, pipe: Any, photo: Any, mask: Any, request: dict[str, Any]) -> None:
        self.pipe, self.photo, self.mask, self.request = pipe, photo, mask, request

    def __call__(self, method: "AnyMethod", steps: int | None, label: str) -> "Edit":
        from ..edit import edit_photo

        request = dict(self.request)
        if self.mask is None and not method.find:  # a dense edit too puts back what did not change
            request["keep"] = "found"
        self.pipe.set_progress_bar_config(disable=True)
        with stages(label) as told:
            return edit_photo(
                self.pipe, self.photo, self.mask, method, steps=steps, progress=told, **request
            )

    def warm_up(self, method: "AnyMethod") -> None:
        """A step, or as many as the strength needs to leave one."""
        from ..request import Request, fewest_steps

        request = Request(strength=self.request.get("strength"))
        self(method, fewest_steps(self.pipe, request), "warm-up")
