"""What README prints is what the committed rows say."""

import re
from functools import cache
from pathlib import Path

import pytest

from hilotoken.bench.show.markdown import commands_in, refreshed
from hilotoken.cli.bench_evidence import table_text

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILL = "benchmarks/results/fill_embedded_cpu.csv"
SAMPLED = "hilo context=sampled weights=True detail=0.05 dilate=1 bucket=16"
LABELS = ["--label", "hilo: hilo bucket=16", "--label", f"sampled: {SAMPLED}"]
# What README takes its figures from besides the tables that it marks: sentences quote the last.
COMMANDS = [
    ["benchmarks/results/speed_embedded_cpu.csv", "--label", "HiLo: hilo"],
    [FILL, *LABELS],
    [FILL, *LABELS, "--skip", "12"],
]
TRIPLE = re.compile(r"(-?\d+\.\d+x?)(?:\*\*)?\s+\((-?\d+\.\d+)\s+to\s+(-?\d+\.\d+)\)")


@cache
def _made(*arguments: str) -> str:
    return table_text(arguments, ROOT)


def _generated(text: str) -> str:
    return "\n".join(_made(*arguments) for arguments in [*commands_in(text), *COMMANDS])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_marked_tables_are_those_of_the_rows(document):
    text = document.read_text(encoding="utf-8")
    assert refreshed(text, lambda arguments: _made(*arguments)) == text, (
        f"run: hilo bench refresh {document.relative_to(ROOT)}"
    )
    begun = re.findall("^<!-- hilo bench table", text, re.MULTILINE)
    assert len(begun) == len(commands_in(text)), "a table has no end"


def test_every_figure_with_an_interval_is_in_the_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figures, known = TRIPLE.findall(text), set(TRIPLE.findall(_generated(text)))
    assert len(figures) > 10
    assert [figure for figure in figures if figure not in known] == []


def test_rows_of_tables_are_those_of_the_rows():
    """A table of README under a header that rows have holds nothing but lines of theirs.

    The first cell is left out: there README may name the class by its nominal share.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known, checked = _tables(_generated(text)), 0
    for header, lines in _tables(text).items():
        if header in known:
            assert lines <= known[header]
            checked += len(lines)
    assert checked >= 6


def _tables(text: str) -> dict[str, set[str]]:
    """The lines of every table by its header, without their first cells."""
    found: dict[str, set[str]] = {}
    header = None
    for line in text.splitlines():
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = line
            found.setdefault(header, set())
        elif not line.startswith("|---"):
            found[header].add(line[1:].partition("|")[2].strip())
    return found


def test_a_changed_figure_is_found_out():
    """The checks above can fail: one digit more is in no row."""
    text = _made(*COMMANDS[1])
    first = TRIPLE.search(text)
    wrong = text.replace(first.group(1), f"{first.group(1)}9", 1)
    assert set(TRIPLE.findall(wrong)) - set(TRIPLE.findall(text))
    assert _tables(wrong) != _tables(text)
    marked = f"<!-- hilo bench table {FILL} -->\n{wrong}<!-- end -->\n"
    assert refreshed(marked, lambda arguments: _made(*arguments)) != marked
