"""The tables of this project's documents, made anew from their rows.

    python -m benchmarks.documents [README.md ...]

A document holds a table between `<!-- COMMAND -->` and `<!-- end -->`. The command is the one that
prints it: `hilo bench table ROWS ...`, or `python -m MODULE [NAME]` of a module here. Files
are sought from the root of the repository. A test fails where a table differs from its rows.
"""

import re
import shlex
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from hilotoken.cli.bench_evidence import made_tables, table

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "src/hilotoken/model/README.md",
    ROOT / "benchmarks/context/README.md",
]
BEGIN = r"^<!-- (hilo bench table .+?|python -m benchmarks\.\S+(?: \S+)?) -->\n"
_MARKED = re.compile(f"({BEGIN})(.*?)^(<!-- end -->)$", re.DOTALL | re.MULTILINE)


def marked(text: str) -> list[tuple[str, str]]:
    """The tables of a document: the command of each, and what stands there."""
    return [(command, table) for _, command, table, _ in _MARKED.findall(text)]


def refreshed(text: str, make: Callable[[str], str]) -> str:
    """The document with every table that it holds made anew by its command."""

    def again(match: re.Match[str]) -> str:
        begin, command, _, end = match.groups()
        return f"{begin}{make(command).strip()}\n{end}"

    return _MARKED.sub(again, text)


def printed(command: str, root: Path = ROOT) -> str:
    """What a command of a mark prints; the rows that it names are sought from `root`.

    Raises:
        ValueError: arguments that it does not take.
    """
    words = [word for word in shlex.split(command) if word != "--table"]
    if words[:3] == ["hilo", "bench", "table"]:
        return _of_rows(words[3:], root)
    module, names = import_module(words[2]), words[3:]
    if not names:
        return module.table()
    if names[0] not in module.TABLES:
        raise ValueError(f"{command}: choose from {', '.join(module.TABLES)}")
    return module.TABLES[names[0]]()


def _of_rows(arguments: list[str], root: Path) -> str:
    app = typer.Typer()
    app.command()(table)
    command: Any = typer.main.get_command(app)
    try:
        given = command.make_context("hilo bench table", arguments).params
    except Exception as error:  # click's own errors have no common base that typer exports
        raise ValueError(f"hilo bench table {' '.join(arguments)}: {error}") from error
    given["rows"] = root / given["rows"]
    return made_tables(**given)


def main(
    documents: Annotated[
        list[Path] | None, typer.Argument(help="Markdown files; all that hold tables, if none.")
    ] = None,
) -> None:
    """Make the tables of documents anew."""
    for document in documents or DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        again = refreshed(text, printed)
        if again != text:
            document.write_text(again, encoding="utf-8")
        print(f"{document}: {'made anew' if again != text else 'as it was'}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
