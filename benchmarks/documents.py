"""The tables of this project's documents, made anew from their rows.

    python benchmarks/documents.py README.md docs/*/*.md

A document holds a table between `<!-- hilo bench table ARGUMENTS -->` and `<!-- end -->`; the CSVs
named in it are sought from the folder at hand. A test fails where a table differs from its rows.
"""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hilotoken.cli.bench_evidence import made_tables, table

_MARKED = re.compile(
    r"^(<!-- (hilo bench table .+?) -->\n).*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE
)


def commands_in(text: str) -> list[list[str]]:
    """The arguments of the tables that a document holds."""
    return [shlex.split(command)[3:] for _, command, _ in _MARKED.findall(text)]


def refreshed(text: str, make: Callable[[list[str]], str]) -> str:
    """The document with every table that it holds made anew from its arguments."""

    def again(match: re.Match[str]) -> str:
        begin, command, end = match.groups()
        return f"{begin}{make(shlex.split(command)[3:])}{end}"

    return _MARKED.sub(again, text)


def table_text(arguments: Sequence[str], root: Path | None = None) -> str:
    """What `hilo bench table ARGUMENTS` prints; files are sought from `root`.

    Raises:
        ValueError: arguments that the command does not take.
    """
    app = typer.Typer()
    app.command()(table)
    command: Any = typer.main.get_command(app)
    try:
        given = command.make_context("hilo bench table", list(arguments)).params
    except Exception as error:  # click's own errors have no common base that typer exports
        raise ValueError(f"hilo bench table {' '.join(arguments)}: {error}") from error
    given["rows"] = (root or Path()) / given["rows"]
    return made_tables(**given)


def main(documents: Annotated[list[Path], typer.Argument(help="Markdown files.")]) -> None:
    """Make the tables of documents anew."""
    for document in documents:
        text = document.read_text(encoding="utf-8")
        again = refreshed(text, table_text)
        if again != text:
            document.write_text(again, encoding="utf-8")
        print(f"{document}: {'made anew' if again != text else 'as it was'}", file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
