"""The house: every room of the package stands on a floor, and no import looks up.

A room is a module or a folder of the package, with all that is in it unless a part is listed by
itself, as `bench.show` is. It imports from floors below its own alone. Imports inside functions and
under TYPE_CHECKING count like any other: they bind two modules as much. Inside a room modules may
import each other, but never in a circle.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "hilotoken"

Floors = tuple[tuple[str, ...], ...]
FLOORS: Floors = (  # from the ground up
    ("checks", "composite", "data", "grid", "hooks", "noise", "photo", "plan", "source"),
    ("attention", "layout", "memory", "method", "region", "scores", "timing", "windows"),
    ("arguments", "blocks", "decode", "metrics", "picture", "progress", "record"),
    ("approximate", "capture", "encode", "replay"),
    ("adapters", "kv_store", "methods", "request"),
    ("lending", "model"),
    ("reuse", "search", "session"),
    ("lane",),
    ("together",),
    ("attach",),
    ("compress",),
    ("bench", "bench.results", "edit", "train"),
    ("batch", "bench.measure", "compare", "serve"),
    ("app", "bench.show", "check", "cluster"),
    ("__init__",),
    ("cli",),
)

Import = tuple[str, str]  # the module that imports, and the one that it imports


def imports(package: Path) -> set[Import]:
    """Every import of one module of the package by another, by their names in it."""
    paths = {_name(path, package): path for path in package.rglob("*.py")}
    return {
        (name, other)
        for name, path in paths.items()
        for other in _imported(path, package, paths.keys())
        if other != name
    }


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _imported(path: Path, package: Path, modules: set[str]) -> Iterator[str]:
    here = ".".join(path.parent.relative_to(package.parent).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for wanted in _named(node, here):
            top, _, name = wanted.partition(".")
            while name and name not in modules:  # what follows the module is a name in it
                name = name.rpartition(".")[0]
            if top == package.name:
                yield name or "__init__"


def _named(node: ast.AST, here: str) -> list[str]:
    """The full names that a piece of code imports."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = resolve_name("." * level + (module or ""), here)
            return [f"{base}.{alias.name}" for alias in names]
        case ast.Call(
            func=ast.Name("import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(str(name)), *_],
        ):
            return [resolve_name(name, here)]
    return []


def room(module: str, floors: Floors) -> str:
    """The room that the module is in.

    Raises:
        KeyError: it is in none that is listed.
    """
    listed, name = set().union(*floors), module
    while name and name not in listed:
        name = name.rpartition(".")[0]
    if not name:
        raise KeyError(f"{module} stands on no floor: list its room in {__file__}")
    return name


def look_up(found: set[Import], floors: Floors) -> set[Import]:
    """The imports from another room that is not on a floor below."""
    level = {name: i for i, names in enumerate(floors) for name in names}
    rooms = {module: room(module, floors) for pair in found for module in pair}
    return {
        (importer, imported)
        for importer, imported in found
        if rooms[importer] != rooms[imported] and level[rooms[imported]] >= level[rooms[importer]]
    }


def circle(found: set[Import]) -> list[str]:
    """The modules of a circle of imports, the first again at the end; none without one."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in found:
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_import_looks_up():
    assert look_up(imports(PACKAGE), FLOORS) == set()


def test_no_imports_go_in_a_circle():
    assert circle(imports(PACKAGE)) == []


def test_every_room_is_listed_once_and_there():
    listed = [name for names in FLOORS for name in names]
    assert len(listed) == len(set(listed))
    modules = {_name(path, PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert {room(module, FLOORS) for module in modules} == set(listed)


# Shown to fail, on a small house.

SMALL: Floors = (("ground",), ("first", "wing"), ("wing.tower",), ("__init__",))
UP = {
    "eager": "from .first import thing",
    "eager, the whole package": "import house.first as above",
    "of the package itself": "from . import version",
    "lazy": "def f():\n    from .first import thing",
    "typing": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .first import Thing",
    "by name": "import importlib\ndef f():\n    importlib.import_module('house.first')",
    "of a listed part": "from .wing import tower",
}


@pytest.fixture
def house(tmp_path):
    """Writes files of a package of this name: the text of each module."""
    sound = {
        "__init__": "from .first import thing\nversion = '1'",
        "ground": "import os, torch.nn\nfrom houses import first",
        "first": "from house import ground\nfrom .ground import thing",
        "wing/__init__": "",
        "wing/tower": "from ..ground import thing\nfrom . import thing",
    }

    def write(**changes: str) -> Path:
        for name, text in (sound | changes).items():
            path = (tmp_path / "house" / name).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "house"

    return write


def test_a_sound_house_passes(house):
    found = imports(house())
    assert found == {
        ("__init__", "first"), ("first", "ground"), ("wing.tower", "ground"), ("wing.tower", "wing")
    }  # fmt: skip
    assert look_up(found, SMALL) == set()
    assert circle(found) == []


@pytest.mark.parametrize("kind", UP)
def test_a_planted_import_that_looks_up_is_found(house, kind):
    above = {"of the package itself": "__init__", "of a listed part": "wing.tower"}
    expected = {("ground", above.get(kind, "first"))}
    assert look_up(imports(house(ground=UP[kind])), SMALL) == expected


def test_an_import_across_a_floor_is_found(house):
    assert look_up(imports(house(first="from .wing import thing")), SMALL) == {("first", "wing")}


def test_a_planted_circle_is_found(house):
    lazily = {"wing/door": "def f():\n    from . import stair", "wing/stair": "from . import door"}
    found = imports(house(**lazily))
    assert look_up(found, SMALL) == set()
    assert set(circle(found)) == {"wing.door", "wing.stair"}


def test_a_planted_room_that_is_not_listed_is_found(house):
    with pytest.raises(KeyError, match="attic stands on no floor"):
        look_up(imports(house(attic="from .ground import thing")), SMALL)
