"""Documents: links hold in a checkout, options are those of the code, commands those of `hilo`."""

import dataclasses
import re
import shlex
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
    """Name and default of every option in the tables of the reference."""
    text = (ROOT / "docs/reference/options.md").read_text(encoding="utf-8")
    hilo, _, rest = text.partition("\n## Refresh\n")
    refresh, _, find = rest.partition("\n## Find\n")
    part = {HiLo: hilo, Refresh: refresh, Find: find}[kind]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", part, re.MULTILINE))


@pytest.mark.parametrize("made", [HiLo(), Refresh("auto"), Find()], ids=lambda made: type(made).__name__)
def test_every_option_is_listed_with_its_default(made):
    found = listed(type(made))
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    assert found.keys() == values.keys()
    if isinstance(made, HiLo):
        values["cell"] = HiLo(context="sampled").cell
        assert (made.weights, HiLo(context="sampled").weights) == (False, True)
        assert found.pop("weights") == "on with sampled context, else off"
    elif isinstance(made, Refresh):
        assert found.pop("at") == "required"
    for name, default in found.items():
        said = default.partition("`")[2].partition("`")[0].strip('"') or default
        value = values[name]
        assert said == ("none" if value is None else str(value)) or float(said) == value


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
