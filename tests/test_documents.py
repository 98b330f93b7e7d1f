"""Documents: links hold in a checkout, options are those of the code, commands those of `hilo`."""

import ast
import dataclasses
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hilotoken import Find, HiLo, Refresh
from hilotoken.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("benchmarks/context/README.md", "examples/README.md")),
    ROOT / "src/hilotoken/model/README.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings."""
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_hold_in_a_checkout(document):
    dead = []
    for link in LINK.findall(FENCED.sub("", document.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def listed(kind: type) -> dict[str, str]:
    """Name and default of every option in the tables of the reference; those of HiLo come first."""
    text = (ROOT / "docs/reference/options.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (Refresh|Find)$", text, flags=re.MULTILINE)
    part = dict(zip(["HiLo", *parts[1::2]], parts[::2], strict=True))[kind.__name__]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", part, re.MULTILINE))


OPTIONS = [HiLo(), Refresh("auto"), Find()]


@pytest.mark.parametrize("made", OPTIONS, ids=lambda made: type(made).__name__)
def test_every_option_is_listed_with_its_default(made):
    found = listed(type(made))
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    assert found.keys() == values.keys()
    if isinstance(made, HiLo):
        values["cell"] = HiLo(context="sampled").cell
        assert (made.weights, HiLo(context="sampled").weights) == (False, True)
        assert found.pop("weights") == "on with sampled context, else off"
    if isinstance(made, Refresh):
        assert found.pop("at") == "required"
    for name, default in found.items():
        value = values[name]
        if value is None:
            assert re.match(r"none\b", default), name
        else:
            said = default.partition("`")[2].partition("`")[0].strip('"')
            assert said == str(value) or float(said) == value, name


def named(code: str) -> set[tuple[str, str]]:
    """Module and name of everything of hilotoken that a piece of Python speaks of."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("hilotoken"):
                found |= {(module, alias.name) for alias in names}
            case ast.Attribute(value=ast.Name(id="hilotoken"), attr=name):
                found.add(("hilotoken", name))
    return found


def test_python_in_documents_speaks_of_what_is_there():
    blocks = [
        (document, code)
        for document in DOCUMENTS
        for language, code in FENCED.findall(document.read_text(encoding="utf-8"))
        if language == "python" and document.name != "training-log.md"
    ]
    assert len(blocks) > 20
    missing = [
        f"{document.name}: {module}.{name}"
        for document, code in blocks
        for module, name in named(code)
        if not hasattr(import_module(module), name)
    ]
    assert missing == []


def commands() -> list[str]:
    """Every command line of `hilo` in the documents, each once."""
    found = {}
    for document in DOCUMENTS:
        for language, code in FENCED.findall(document.read_text(encoding="utf-8")):
            if language != "sh" or document.name == "training-log.md":
                continue
            for line in re.sub(r"\\\n\s*", " ", code).splitlines():
                if match := re.search(r"(?:^|[\s/])hilo (?=[a-z])(.+)", line):
                    found[match.group(1)] = None
    return list(found)


@pytest.mark.parametrize("line", commands())
def test_commands_in_documents_are_taken(line):
    """Options that are not there would be refused; nothing is run."""
    words = shlex.split(re.sub(r"\s*[|>].*", "", line), comments=True)
    command: Any = typer.main.get_command(app)
    while (name := words[0]) in getattr(command, "commands", {}):
        command, words = command.commands[name], words[1:]
        if not words:
            break
    command.make_context(name, words)
