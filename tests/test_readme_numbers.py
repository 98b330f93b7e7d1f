"""What README and the documents print is what the committed rows say."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import tables
from benchmarks.context import tables as context_tables
from benchmarks.documents import DOCUMENTS, marked, printed, refreshed
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
FILL = "benchmarks/results/fill_embedded_cpu.csv"
SAMPLED = "hilo context=sampled weights=True detail=0.05 dilate=1 bucket=16"
LABELS = f"--label 'hilo: hilo bucket=16' --label 'sampled: {SAMPLED}'"
# What README takes its figures from besides the tables that it marks: sentences quote the last.
COMMANDS = [
    "hilo bench table benchmarks/results/speed_embedded_cpu.csv --label 'HiLo: hilo'",
    f"hilo bench table {FILL} {LABELS}",
    f"hilo bench table {FILL} {LABELS} --skip 12",
]
MANY = re.DOTALL | re.MULTILINE
TRIPLE = re.compile(r"(-?\d+\.\d+x?)(?:\*\*)?\s+\((-?\d+\.\d+)\s+to\s+(-?\d+\.\d+)\)")


@cache
def _made(command: str) -> str:
    return printed(command)


def _generated(text: str) -> str:
    return "\n".join(_made(command) for command in [*(c for c, _ in marked(text)), *COMMANDS])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_marked_tables_are_those_of_the_rows(document):
    text = document.read_text(encoding="utf-8")
    assert refreshed(text, _made) == text, (
        f"run: python -m benchmarks.documents {document.relative_to(ROOT)}"
    )
    begun = re.findall("^<!-- (?:hilo|python) ", text, re.MULTILINE)
    assert len(begun) == len(marked(text)), "a table has no end, or no command that prints it"


def test_every_figure_with_an_interval_is_in_the_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figures, known = TRIPLE.findall(text), set(TRIPLE.findall(_generated(text)))
    assert len(figures) >= 6
    assert [figure for figure in figures if figure not in known] == []


# Figures without an interval: ratios, LPIPS and SSIM; and whole decibels, which no table prints.
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?=x\b)|(?<![\w.])0\.\d{3,4}(?!\.?\d)")
WHOLE = re.compile(r"(?<![\w.])\d+(?:(?:, \d+)* (?:to|and|or) \d+)? dB\b")
LISTED = {
    "choosing-tokens.md": dict.fromkeys(["25 dB", "38 dB"], "what a user is told to look for"),
    "README.md": {"20 dB": "the bar of a drawn picture that is solved"},
    "embedded-model.md": {"2 dB": "the bar that was set"},
    "speed.md": dict.fromkeys(["3.13", "2.59", "1.67"], "the paper's"),
}


def _prose(text: str) -> str:
    """Without code, tables and comments."""
    text = re.sub(r"^```.*?^```", "", text, flags=MANY)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "<!--"))]
    return re.sub(r"\s+", " ", " ".join(lines))


# Not those of drawn pictures: with so many figures among the known, any would pass.
COUNTED = ("hilo bench table ", "python -m benchmarks.tables ")


@cache
def _known() -> set[str]:
    """Every figure of the documents' marked tables, and some that are made of rows, rounded."""
    commands = {command for page in DOCUMENTS for command, _ in marked(page.read_text())}
    made = [_made(command) for command in commands if command.startswith(COUNTED)]
    matched = read_rows(ROOT / "benchmarks/results/fill_matched_cpu.csv")
    made.append(difficulty_table(matched, {}))
    return _rounded([*_figures("".join(made)), *_over_opencv(), *_four_steps()])


def _figures(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"-?\d+\.\d+", text)]


def _rounded(values: list[float]) -> set[str]:
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
    text = document.read_text(encoding="utf-8")
    own = _figures("".join(table for command, table in marked(text) if "quality" in command))
    prose, known = _prose(text), _known() | _rounded(own)
    listed = LISTED.get(document.name, {})
    figures = {one for one in DECIMAL.findall(prose) if one not in known}
    figures |= set(WHOLE.findall(prose))
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
    text = _made(COMMANDS[1])
    first = TRIPLE.search(text)
    wrong = text.replace(first.group(1), f"{first.group(1)}9", 1)
    assert set(TRIPLE.findall(wrong)) - set(TRIPLE.findall(text))
    assert _tables(wrong) != _tables(text)
    page = f"<!-- hilo bench table {FILL} -->\n{wrong}<!-- end -->\n"
    assert refreshed(page, _made) != page


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
    assert len(cells) == 24

    def cost(image: int) -> int:
        return (image + 512) * (6 * 3072 + image + 512)

    for ratio, tokens in cells:
        assert float(ratio) == pytest.approx(cost(4096) / cost(int(tokens)), rel=0.005)


@pytest.mark.parametrize("program", [tables, context_tables], ids=lambda p: p.__name__)
def test_every_named_table_stands_on_one_page(program):
    begin = f"python -m {program.__name__} "
    found = [command for page in DOCUMENTS for command, _ in marked(page.read_text())]
    named = [command.removeprefix(begin) for command in found if command.startswith(begin)]
    assert sorted(named) == sorted(program.TABLES)


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
