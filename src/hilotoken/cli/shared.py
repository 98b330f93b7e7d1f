"""What several commands have in common: their options, and the checks that need no library."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

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
Method = Annotated[
    str | None,
    typer.Option(
        autocompletion=_complete_method,
        show_default="hilo",
        help="What shortens the run, of `hilo methods`; `dense` for nothing.",
    ),
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
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A CSV that the rows are appended to.")
]
Steps = Annotated[int, typer.Option(help="Denoising steps.", min=1)]
Seed = Annotated[int, typer.Option(help="Same seed, same result.", min=0, max=2**32 - 1)]
Device = Annotated[str, typer.Option(help="`cpu`, `cuda`, `cuda:1`, `mps` ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


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
