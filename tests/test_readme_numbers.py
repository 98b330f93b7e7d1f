"""What README and the documents print is what the committed rows say."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.documents import commands_in, refreshed, table_text
from hilotoken.bench.results.readings import (
    CLASSICAL,
    by_photo,
    difference,
    groups_of,
    narrowed,
    read_rows,
)

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
ROUGH = "said roughly of a table on that page"
NO_ROW = "no row is left of it: it is of weights that nobody can load"
SEEN = "a rule of thumb"
LISTED = {
    "choose-a-preset.md": {"40 dB": SEEN, "30 dB": SEEN},
    "choosing-tokens.md": dict.fromkeys(["20 dB", "25 dB"], "benchmarks/context, on its page"),
    "README.md": {
        "1 to 3 dB": "benchmarks/context, on its page",
        "15 to 16 dB": NO_ROW,
        "3.13": "the paper's",
        "2.59": "the paper's",
        "1.67": "the paper's",
    },
    "embedded-model.md": {"2 dB": "the bar that was set"},
    "make-a-model-robust.md": {"6 dB": "the bar that was set"},
    "evidence.md": dict.fromkeys(
        ["0.065", "0.164", "0.013", "0.0168", "0.0319", "0.0025"],
        "hilo bench difficulty benchmarks/results/fill_matched_cpu.csv",
    ),
    "flux.md": {"1.85": "arithmetic: half of the tokens stay whole"},
    "methods.md": {"1.95": "two short trainings, in the log", "1.01": "the same"},
    "reusing-context.md": {"5 to 8 dB": ROUGH},
    "sessions.md": {"2 dB": ROUGH, "6 dB": ROUGH},
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
    values = [float(value) for text in marked for value in re.findall(r"-?\d+\.\d+", text)]
    values += [*_over_opencv(), *_four_steps()]
    methods = pd.read_csv(ROOT / "benchmarks/results/methods_speed.csv")
    values += [*methods["flop_ratio"], *methods["speedup"]]
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


# Tables that no command prints: which rows their figures of speed and distance are in, by the first
# cells of their headers; or, in words, why no row can hold them.
UNIT = re.compile(r"(\d+(?:\.\d+)?)(?:\*\*)?\s?(?:x\b|dB\b|m?s\b|TFLOPs?\b)")
RESULTS = ROOT / "benchmarks" / "results"
BY_HAND = {
    ("methods.md", "| | 1024: FLOPs |"): "methods_speed.csv",
    ("speed.md", "| mask | tokens run | FLOPs, counted | DiT by C"): "speed_flux-fill_cpu.csv",
    ("speed.md", "| mask | tokens run | FLOPs, counted | DiT by the"): "speed_flux-fill_cpu.csv",
    ("serve.md", "| | 10,000 requests |"): "serve_load_cpu.jsonl",
    ("comfyui.md", "| | tokens run | sampler |"): "comfyui_cpu.csv",
    ("speed.md", "| target | column |"): "what is hoped for, as the paper has it",
    (
        "speed.md",
        "| method | small, 6.4 % |",
    ): "arithmetic: FLOPs of a plan, by the formula above it",
    ("speed.md", "| `--scale` | FLUX.1 |"): "arithmetic: FLOPs counted of a shape",
    (
        "embedded-model.md",
        "| mask | LPIPS over OpenCV's: the ed",
    ): "held by the check of figures above",
    ("http.md", "| status |"): "a limit that is set",
    ("speed.md", "| card | bound by memory up to |"): "held below: benchmarks.roofline prints it",
    ("speed.md", "| mask | text | tokens run |"): "held below: benchmarks.roofline prints it",
    ("speed.md", "| mask | preset | DiT |"): "medians of speed_presets_cpu.csv, held by no test",
    ("edit-by-instruction.md", "| | steps, dense ones |"): "what others published",
}


def _by_hand(document: Path) -> list[str]:
    """The tables of a document outside its markers that hold figures with a unit."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=MANY)
    text = re.sub(r"^<!-- [^>]*-->\n(?:\|.*\n|\n)+<!-- end -->", "", text, flags=re.MULTILINE)
    return [
        table for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE) if UNIT.search(table)
    ]


def _in_rows(path: Path) -> set[str]:
    """Every value of the rows, and over those that differ in nothing but values their median.

    Of rounds, also how many times faster than dense each is in its round.
    """
    lines = path.suffix == ".jsonl"
    rows = pd.read_json(path, lines=True) if lines else pd.read_csv(path)
    if "round" in rows:
        dense = rows[rows["name"] == "dense"].set_index("round")["cpu_seconds"]
        rows["faster"] = rows["round"].map(dense) / rows["cpu_seconds"]
    names = [name for name in rows if rows[name].dtype.kind not in "fi"]
    numbers = rows.select_dtypes("number")
    groups = rows.groupby([*names, *{"tokens_run", "tokens"} & {*rows}], dropna=False)
    values = [*numbers.to_numpy().ravel(), *groups[list(numbers)].median().to_numpy().ravel()]
    rounded = (value * nearly for value in values for nearly in (1, 1 + 1e-9))  # a half goes up
    return {f"{value:.{digits}f}" for value in rounded for digits in (0, 1, 2)}


@pytest.mark.parametrize("document", DOCUMENTS[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_table_by_hand_is_of_rows_or_says_why_not(document):
    if document.name == "training-log.md":  # which is history
        return
    for table in _by_hand(document):
        keys = [key for key in BY_HAND if key[0] == document.name and table.startswith(key[1])]
        assert len(keys) == 1, f"mark it, or list where it is from: {table.splitlines()[0]}"
        if (path := RESULTS / BY_HAND[keys[0]]).is_file():
            figures = set(UNIT.findall(table))
            assert sorted(figures - _in_rows(path)) == [], f"not in {path.name}"


def test_a_figure_by_hand_that_is_in_no_row_is_found_out():
    assert UNIT.findall("| 9.87x | **9.86x** | 3 dB | 1.5 s | 16 x 16 px | 5 % |\n")[:4] == [
        "9.87", "9.86", "3", "1.5",
    ]  # fmt: skip
    assert "9.87" not in _in_rows(RESULTS / "comfyui_cpu.csv")


PRINTED = re.compile(r"^<!-- python -m (\S+) --table -->\n(.*?)^<!-- end -->", MANY)


@pytest.mark.parametrize("document", DOCUMENTS[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_of_other_programs_are_as_they_print_them(document):
    for module, table in PRINTED.findall(document.read_text(encoding="utf-8")):
        assert import_module(module).table().strip() == table.strip(), f"python -m {module} --table"


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
