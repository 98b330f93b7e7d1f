"""CPU seconds of `hilo edit` by part, the whole process included.

`python benchmarks/command.py -o FILE.csv`: the bundled photograph by the embedded model, one
thread, each edit in a process of its own. With `--source NAME=FOLDER`, sources of hilotoken by
folder, they take turns; with `--libraries FOLDER`, other packages come from there alone, such as
from `pip install --target FOLDER hilotoken`, which holds nothing that a developer has besides.

With `--imports` it is the libraries' imports instead, each after those above it in the table.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hilotoken.bench.results.rows import append_rows

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTO, MASK = EXAMPLES / "canyon-wren.jpg", EXAMPLES / "canyon-wren_mask.png"
CHILD = """
import json, os, sys, time
from hilotoken.cli import main
from hilotoken.cli import output
spent = {}
def timed(owner, name, part):
    original = getattr(owner, name)
    def stand_in(*args, **kwargs):
        began = time.process_time()
        spent.setdefault("start", began)
        try:
            return original(*args, **kwargs)
        finally:
            spent[part] = time.process_time() - began
    setattr(owner, name, stand_in)
edit = sys.modules["hilotoken.cli.edit"]
timed(edit, "load", "load"), timed(edit.Runner, "__call__", "edit"), timed(output, "write", "write")
try:
    main()
finally:
    print(json.dumps(spent), flush=True)
"""
# What diffusers asks for as it is imported is imported before it, so that it counts by itself.
IMPORTS = {
    "torch": "import torch",
    "torch._dynamo": "import torch._dynamo",
    "transformers": "from transformers import CLIPTextModel, PreTrainedModel, T5EncoderModel",
    "diffusers": "from diffusers import AutoencoderTiny, FluxFillPipeline, FluxTransformer2DModel",
    "hilotoken": "import hilotoken.cli, hilotoken.photo, hilotoken.edit, hilotoken.model",
    "weights": "hilotoken.model.load_model()",
}
IMPORTER = """
import gc, json, sys, time
gc.disable()
spent = {}
for name, code in json.loads(sys.argv[1]).items():
    began = time.process_time()
    exec(code)
    spent[name] = time.process_time() - began
print(json.dumps(spent))
"""


@dataclass(frozen=True)
class ImportRow:
    """CPU seconds of importing a library, in a process that has those of the rows before it."""

    libraries: str
    repeat: int
    library: str
    seconds: float


@dataclass(frozen=True)
class CommandRow:
    """CPU seconds, user and system, of one edit and its process.

    start: the interpreter, the command line, the photo and PyTorch, until the model is asked for
    load:  diffusers and the model
    end:   all that is left of the process's time, most of it after the command has returned
    around: all but the edit
    """

    source: str
    libraries: str
    repeat: int
    start: float
    load: float
    edit: float
    write: float
    end: float
    around: float
    total: float


def ran(source: Path, libraries: Path | None, code: str, *arguments: str) -> dict[str, float]:
    """What a Python process of its own says at its end, of these sources and libraries."""
    paths = [str(source), *([str(libraries)] if libraries else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, *(["-S"] if libraries else []), "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(source: Path, libraries: Path | None, output: Path) -> dict[str, float]:
    """CPU seconds of a process that edits, by part."""
    arguments = ["edit", str(PHOTO), "--mask", str(MASK), "-o", str(output), "--json"]
    before = os.times()
    parts = ran(source, libraries, CHILD, *arguments)
    after = os.times()
    total = after.children_user - before.children_user
    total += after.children_system - before.children_system
    parts["end"] = total - sum(parts.values())
    return parts | {"around": total - parts["edit"], "total": total}


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV.")],
    sources: Annotated[list[str] | None, typer.Option("--source", help="NAME=FOLDER")] = None,
    libraries: Annotated[Path | None, typer.Option(help="Where packages are.")] = None,
    imports: Annotated[bool, typer.Option("--imports", help="The libraries' imports.")] = False,
    repeats: int = 3,
) -> None:
    """Time the command of each source in turn."""
    named: Sequence[str] = sources or ["this=src"]
    kind = "clean" if libraries else "all"
    if imports:
        for repeat in range(repeats + 1):
            found = ran(Path("src"), libraries, IMPORTER, json.dumps(IMPORTS))
            if repeat:  # as below
                append_rows(output, [ImportRow(kind, repeat, *one) for one in found.items()])
        return
    for repeat in range(repeats + 1):
        for text in named:
            name, _, folder = text.partition("=")
            picture = output.with_suffix(".png")
            found = measured(Path(folder), libraries, picture)
            picture.unlink()
            if repeat:  # the first reads files that nobody has read
                row = CommandRow(name, kind, repeat, **found)
                append_rows(output, [row])
            print(name, {part: round(value, 2) for part, value in found.items()}, flush=True)


if __name__ == "__main__":
    typer.run(main)
