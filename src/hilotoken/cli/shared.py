"""What several commands have in common: their options, and the checks that need no library."""

import gc
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

BEGAN = time.perf_counter() - time.process_time()  # the process; Python tells its CPU time alone

# By name, so that help and completion need not load PyTorch; a test holds them to METHODS.
METHOD_NAMES = (
    *("hilo", "dense", "tome", "todo", "sdtm", "bigain_tm", "bigain_td", "pooling"),
    *("random_keep", "downsample", "crop_stitch", "fewer_steps", "step_cache"),
)
METHOD_HELP = (
    'A method and its options, such as "hilo detail=0.2 coarse=0" or "hilo + todo factor=2"; '
    "repeatable."
)


def _complete_method(typed: str) -> list[str]:
    return [name for name in METHOD_NAMES if name.startswith(typed)]


PhotoPath = Annotated[Path, typer.Argument(help="The photo: PNG, JPEG, TIFF, WebP or BMP.")]
MaskPath = Annotated[
    Path, typer.Option("--mask", "-m", help="A picture of the photo's size; white is edited.")
]
MASKS = "The mask"  # a panel of the help
MaskFrom = Annotated[
    str,
    typer.Option(
        help="`white` or `alpha`: what is edited; `auto` takes holes in a picture for it.",
        rich_help_panel=MASKS,
    ),
]
Invert = Annotated[
    bool, typer.Option("--invert", help="Edit the rest instead.", rich_help_panel=MASKS)
]
Grow = Annotated[
    int,
    typer.Option(
        help="Pixels by which the mask is widened: a removed thing leaves its shadow and rim.",
        min=0,
        rich_help_panel=MASKS,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        autocompletion=_complete_method,
        show_default="hilo, where an option of it is given; else the preset balanced",
        help="What shortens the run, of `hilo methods`; `dense` for nothing.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="A method with all its options, of `hilo methods`, by its name."),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option of the method, such as detail=0.2; repeatable.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", autocompletion=_complete_method, help=METHOD_HELP),
]
Model = Annotated[str, typer.Option(help="`embedded`, a folder in diffusers format, or a hub id.")]
WORDS, LOADING = "What to make", "How to load"  # panels of the help
Prompt = Annotated[
    str,
    typer.Option(help="What to fill in; the embedded model reads none.", rich_help_panel=WORDS),
]
NegativePrompt = Annotated[
    str, typer.Option(help="What not to show; needs guidance.", rich_help_panel=WORDS)
]
Label = Annotated[
    str,
    typer.Option(
        help="A kind of thing to fill with, of those that the model knows.", rich_help_panel=WORDS
    ),
]
Guidance = Annotated[
    float | None, typer.Option(help="How closely to follow the prompt.", rich_help_panel=WORDS)
]
Cfg = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance of a distilled model, beside --guidance.",
        rich_help_panel=WORDS,
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How much of what is under the mask goes; 1 leaves nothing.", rich_help_panel=WORDS
    ),
]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference",
        help="A picture that the prompt speaks of; repeatable.",
        rich_help_panel=WORDS,
    ),
]
Control = Annotated[
    Path | None,
    typer.Option(
        help="The control picture of a control pipeline, of the photo's size.",
        rich_help_panel=WORDS,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="`float32`, `bfloat16` or `float16`.",
        show_default="bfloat16; for the embedded model on a CPU float32",
        rich_help_panel=LOADING,
    ),
]
Offload = Annotated[
    str,
    typer.Option(
        help="`model` or `group`: on the device is only the part, or the layers, that run.",
        rich_help_panel=LOADING,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="The transformer in fewer bits: `4bit`, `8bit` or `int8`.", rich_help_panel=LOADING
    ),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:SCALE]",
        help="LoRA weights, .safetensors; repeatable.",
        rich_help_panel=LOADING,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Longer side of the working picture, in pixels.",
        show_default="the model's own",
        min=128,
    ),
]
Context = Annotated[
    float,
    typer.Option(
        help="Share of the mask's longer side that the model is shown all around it.", min=0
    ),
]
StepsOrOwn = Annotated[
    int | None, typer.Option(help="Denoising steps.", show_default="the model's own", min=1)
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A CSV that the rows are appended to.")
]
Steps = Annotated[int, typer.Option(help="Denoising steps.", min=1)]
Seed = Annotated[int, typer.Option(help="Same seed, same result.", min=0, max=2**32 - 1)]
Device = Annotated[
    str, typer.Option(help="`cpu`, `cuda`, `cuda:1`, `mps` ...", rich_help_panel=LOADING)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def presets() -> dict[str, Any]:
    """Methods with their options set, by name."""
    from ..methods import PRESETS

    return dict(PRESETS)


def chosen_method(
    method: str | None, options: list[str] | None, preset: str | None
) -> tuple[str, Any]:
    """What shortens the run, and its name: of a preset the name alone, which `compress` makes the
    method of that fits the pipeline. Raises ValueError for what does not go together.
    """
    with importing():
        from ..methods.parse import method_from
        from ..methods.presets import DEFAULT

    if preset is None and not (method or options):
        return DEFAULT, DEFAULT
    if preset is None:
        return method or "hilo", method_from(method or "hilo", *options or [])
    if method or options:
        raise ValueError("--preset sets a method and all its options: omit --method and --set")
    if preset not in presets():
        raise ValueError(f"unknown preset {preset!r}; choose from {sorted(presets())}")
    return preset, preset


def print_json(found: dict[str, Any], written: Iterable[Path]) -> None:
    """Print the one object of --json: figures, and the files that were written."""
    print(json.dumps(found | {"written": [str(path) for path in written]}))


def check_apart(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Raise ValueError if a file that will be written is one that is read, or is named twice.

    Files are compared, not names: another spelling, a link and a hard link are found too.
    """
    named = [path for path in outputs if path]
    for i, output in enumerate(named):
        for other in (path for path in inputs if path):
            if _same(output, other):
                raise ValueError(f"{output} is {other}, an input: name another file for the output")
        for other in named[:i]:
            if _same(output, other):
                raise ValueError(f"{output} is {other}: two outputs need two names")


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def given(context: typer.Context, *names: str) -> list[str]:
    """Those of the command's parameters that the user gave, as they are typed."""
    found = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            found.append(parameter.opts[0])
    return found


def refuse_given(context: typer.Context, why: str, *names: str) -> None:
    """Raise ValueError if the user gave one of these parameters, which would do nothing."""
    if useless := given(context, *names):
        raise ValueError(f"{why}: leave out {', '.join(useless)}")


@contextmanager
def importing() -> Iterator[None]:
    """No garbage is collected while libraries are imported, nor ever of what is there at the end.

    They leave a million objects and no garbage: to look through them takes a second of CPU on the
    way, and another as the process ends.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def quiet_bars() -> Iterator[None]:
    """No bars while a model's parts are loaded: those of the steps are what a user waits by."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for one in (of_diffusers, of_transformers):
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in (of_diffusers, of_transformers):
            one.enable_progress_bar()
