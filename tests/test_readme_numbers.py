"""What README and the documents print is what the committed rows say."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.documents import commands_in, refreshed, table_text
from benchmarks.tables import TABLES
from hilotoken.bench.results.readings import (
    CLASSICAL,
    by_photo,
    difference,
    groups_of,
    narrowed,
    read_rows,
)
from hilotoken.bench.show.difficulty import difficulty_table

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "src/hilotoken/model/README.md",
]
FILL = "benchmarks/results/fill_embedded_cpu.csv"
SAMPLED = "hilo context=sampled weights=True detail=0.05 dilate=1 bucket=16"
LABELS = ["--label", "hilo: hilo bucket=16", "--label", f"sampled: {SAMPLED}"]
# What README takes its figures from besides the tables that it marks: sentences quote the last.
COMMANDS = [
    ["benchmarks/results/speed_embedded_cpu.csv", "--label", "HiLo: hilo"],
    [FILL, *LABELS],
    [FILL, *LABELS, "--skip", "12"],
]
MANY = re.DOTALL | re.MULTILINE
TRIPLE = re.compile(r"(-?\d+\.\d+x?)(?:\*\*)?\s+\((-?\d+\.\d+)\s+to\s+(-?\d+\.\d+)\)")


@cache
def _made(*arguments: str) -> str:
    return table_text(arguments, ROOT)


def _generated(text: str) -> str:
    return "\n".join(_made(*arguments) for arguments in [*commands_in(text), *COMMANDS])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_marked_tables_are_those_of_the_rows(document):
    text = document.read_text(encoding="utf-8")
    assert refreshed(text, lambda arguments: _made(*arguments)) == text, (
        f"run: python benchmarks/documents.py {document.relative_to(ROOT)}"
    )
    begun = re.findall("^<!-- hilo bench table", text, re.MULTILINE)
    assert len(begun) == len(commands_in(text)), "a table has no end"


def test_every_figure_with_an_interval_is_in_the_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figures, known = TRIPLE.findall(text), set(TRIPLE.findall(_generated(text)))
    assert len(figures) >= 6
    assert [figure for figure in figures if figure not in known] == []


# Figures without an interval: ratios, LPIPS and SSIM; and whole decibels, which no table prints.
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?=x\b)|(?<![\w.])0\.\d{3,4}(?!\.?\d)")
WHOLE = re.compile(r"(?<![\w.])\d+(?:(?:, \d+)* (?:to|and|or) \d+)? dB\b")
LISTED = {
    "choosing-tokens.md": dict.fromkeys(["20 dB", "25 dB"], "benchmarks/context, on its page"),
    "embedded-model.md": {"2 dB": "the bar that was set"},
    "speed.md": dict.fromkeys(["3.13", "2.59", "1.67"], "the paper's"),
}


def _prose(text: str) -> str:
    """Without code, tables and comments."""
    text = re.sub(r"^```.*?^```", "", text, flags=MANY)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "<!--"))]
    return re.sub(r"\s+", " ", " ".join(lines))


@cache
def _known() -> set[str]:
    """Every figure of the documents' marked tables, and some that are made of rows, rounded."""
    marked = [
        table
        for document in DOCUMENTS
        for table in re.findall(r"^<!-- hilo bench table .*?^<!-- end", document.read_text(), MANY)
    ]
    matched = read_rows(ROOT / "benchmarks/results/fill_matched_cpu.csv")
    marked += [difficulty_table(matched, {}), *(made() for made in TABLES.values())]
    values = [float(value) for text in marked for value in re.findall(r"-?\d+\.\d+", text)]
    values += [*_over_opencv(), *_four_steps()]
    return {f"{abs(value):.{digits}f}" for value in values for digits in (1, 2, 3, 4)}


def _over_opencv() -> list[float]:
    """LPIPS of dense over OpenCV's: over the better method's of a class, and of each photo."""
    found = []
    for skip in (0, 12):
        for methods in groups_of(narrowed(read_rows(ROOT / FILL), skip=skip).rows).values():
            classical = pd.DataFrame({name: by_photo(methods[name], "lpips") for name in CLASSICAL})
            for column in ("lpips", "edit_lpips"):
                mean = by_photo(methods["dense"], column).mean()
                found += [mean / classical.mean().min(), mean / classical.min(axis=1).mean()]
    return found


def _four_steps() -> list[float]:
    """Dense fills and edits in four steps less those in eight."""
    rows = [read_rows(ROOT / path).rows for path in (FILL.replace("embedded", "4_steps"), FILL)]
    pairs = zip(*(groups_of(one).values() for one in rows), strict=True)
    return [
        value
        for four, eight in pairs
        for name in ("lpips", "edit_lpips")
        for value in difference(four["dense"], eight["dense"], name)[:3]
    ]


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "training-log.md"],  # which is history
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_figure_without_an_interval_is_in_the_rows_or_listed(document):
    text = _prose(document.read_text(encoding="utf-8"))
    listed = LISTED.get(document.name, {})
    figures = {one for one in DECIMAL.findall(text) if one not in _known()}
    figures |= set(WHOLE.findall(text))
    assert sorted(figures - listed.keys()) == [], "in no row: measure it, list it, or leave it out"


def test_a_figure_of_no_row_is_found_out():
    text = _prose("It is 7.77x as fast,\nand 15\nto 16 dB nearer, at 0.9876.\n| 9.99x |\n")
    assert DECIMAL.findall(text) == ["7.77", "0.9876"]
    assert WHOLE.findall(text) == ["15 to 16 dB"]
    assert not {"7.77", "0.9876"} & _known()


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
    assert checked >= 3


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


# Tables that no command prints, by the first cells of their headers, and why no row can hold them.
UNIT = re.compile(r"(\d+(?:\.\d+)?)(?:\*\*)?\s?(?:x\b|dB\b|m?s\b|TFLOPs?\b)")
BY_HAND = {
    ("speed.md", "| target | column |"): "what is hoped for, as the paper has it",
    ("speed.md", "| method | small, 6.4 % |"): "arithmetic, held below: FLOPs by the tokens",
    ("speed.md", "| `--scale` | FLUX.1 |"): "arithmetic: FLOPs counted of a shape",
    ("speed.md", "| card | bound by memory up to |"): "held below: benchmarks.roofline prints it",
    ("speed.md", "| mask | text | tokens run |"): "held below: benchmarks.roofline prints it",
    ("http.md", "| status |"): "a limit that is set",
    ("edit-by-instruction.md", "| | steps, dense ones |"): "what others published",
}


def _by_hand(document: Path) -> list[str]:
    """The tables of a document outside its markers that hold figures with a unit."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=MANY)
    text = re.sub(r"^<!-- [^>]*-->\n(?:\|.*\n|\n)+<!-- end -->", "", text, flags=re.MULTILINE)
    return [
        table for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE) if UNIT.search(table)
    ]


@pytest.mark.parametrize("document", DOCUMENTS[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_table_by_hand_says_why(document):
    if document.name == "training-log.md":  # which is history
        return
    for table in _by_hand(document):
        keys = [key for key in BY_HAND if key[0] == document.name and table.startswith(key[1])]
        assert len(keys) == 1, f"mark it, or say why no row holds it: {table.splitlines()[0]}"


def test_figures_by_hand_are_seen():
    assert UNIT.findall("| 9.87x | **9.86x** | 3 dB | 1.5 s | 16 x 16 px | 5 % |\n")[:4] == [
        "9.87", "9.86", "3", "1.5",
    ]  # fmt: skip


def test_ratios_of_flops_follow_from_the_tokens_beside_them():
    """A block of FLUX.1 does 4 D S (6 D + S), as the page says, with 512 tokens of text in S."""
    text = (ROOT / "docs/explanation/speed.md").read_text(encoding="utf-8")
    table = re.search(r"^\| method \| small, 6\.4 % \|.*\n(?:\|.*\n)+", text, re.MULTILINE)[0]
    cells = re.findall(r"(\d\.\d+)x(?:\*\*)? \((\d+)", table)
    assert len(cells) == 21

    def cost(image: int) -> int:
        return (image + 512) * (6 * 3072 + image + 512)

    for ratio, tokens in cells:
        assert float(ratio) == pytest.approx(cost(4096) / cost(int(tokens)), rel=0.005)


NAMED = re.compile(r"^<!-- python -m benchmarks\.tables (\w+) -->\n(.*?)^<!-- end -->", MANY)


def test_every_named_table_stands_on_one_page_as_its_rows_say():
    found = [one for document in DOCUMENTS for one in NAMED.findall(document.read_text())]
    assert sorted(name for name, _ in found) == sorted(TABLES)
    for name, table in found:
        assert TABLES[name]() == table, f"python -m benchmarks.tables {name}"


PRINTED = re.compile(r"^<!-- python -m (\S+)(?: --table)? -->\n(.*?)^<!-- end -->", MANY)


@pytest.mark.parametrize("document", DOCUMENTS[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_of_other_programs_are_as_they_print_them(document):
    for module, table in PRINTED.findall(document.read_text(encoding="utf-8")):
        assert import_module(module).table().strip() == table.strip(), f"python -m {module}"


@pytest.mark.parametrize("module", ["benchmarks.roofline", "benchmarks.sessions"])
def test_every_line_that_is_printed_stands_on_its_page(module, capsys):
    page = {
        "benchmarks.roofline": "explanation/speed.md",
        "benchmarks.sessions": "how-to/sessions.md",
    }
    program = import_module(module)
    if hasattr(program, "table"):
        print(program.table())
    else:
        program.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    text = (ROOT / "docs" / page[module]).read_text(encoding="utf-8").splitlines()
    assert len(lines) > 5
    assert [line for line in lines if line not in text and not line.startswith("|-")] == []
