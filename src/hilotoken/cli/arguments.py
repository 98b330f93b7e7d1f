"""Arguments that several of the commands of `hilo bench` take."""

from pathlib import Path
from typing import Annotated

import typer

from ..methods.parse import METHOD_HELP

Model = Annotated[str, typer.Option(help="`embedded`, a folder in diffusers format, or a hub id.")]
Methods = Annotated[list[str] | None, typer.Option("--method", help=METHOD_HELP)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A CSV that the rows are appended to.")
]
Steps = Annotated[int, typer.Option(help="Denoising steps.", min=1)]
Device = Annotated[str, typer.Option(help="`cpu`, `cuda` ...")]
