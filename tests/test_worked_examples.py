"""The pages that add a method and a family, and the tutorial of a script, to the letter."""

import inspect
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from families import BY_NAME
from test_examples import speaking
from tiny import SIZE, make_mask, make_photo

from hilotoken import METHODS, compress
from hilotoken.adapters import ADAPTERS

ROOT = Path(__file__).parents[1]


def blocks(page: str, language: str = "python") -> list[str]:
    [path] = (ROOT / "docs").rglob(page)
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def as_module(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The source as the module of that name, with relative imports as in the package."""
    module = ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, vars(module))
    return module


def run_tests(source: str, names: dict[str, Any], lent: dict[str, Any]) -> int:
    """Run the test functions of a page, each with what it asks for; how many there were."""
    exec(source, names)
    tests: list[Callable[..., None]] = [
        value for name, value in names.items() if name.startswith("test_")
    ]
    for test in tests:
        test(**{name: lent[name] for name in inspect.signature(test).parameters})
    return len(tests)


def test_a_method_in_an_hour(monkeypatch, pipe, hilo, tmp_path):
    module, registration, tests = blocks("add-a-method.md")
    rings = as_module("hilotoken.methods.rings", module, monkeypatch)
    monkeypatch.setitem(METHODS, "rings", None)  # which takes it back at the end
    exec(registration, {"__package__": "hilotoken.methods", "METHODS": METHODS})
    assert METHODS["rings"] is rings.Rings  # type: ignore[attr-defined]
    assert run_tests(tests, {"Rings": METHODS["rings"]}, {"pipe": pipe}) == 4
    [command, *_] = blocks("add-a-method.md", "sh")
    words = [str(tmp_path / word) if word == "map.png" else word for word in shlex.split(command)]
    monkeypatch.chdir(ROOT)
    assert hilo(*words[1:]).code == 0
    assert (tmp_path / "map.png").is_file()


def test_a_family_in_an_afternoon(monkeypatch):
    module, registration, tests = blocks("add-a-family.md")
    shipped = (ROOT / "src/hilotoken/adapters/longcat.py").read_text(encoding="utf-8")
    assert module == shipped, "the page shows another file than the one that is there"
    longcat = as_module("hilotoken.adapters.afternoon", module, monkeypatch)
    key = "LongCatImageEditPipeline", "LongCatImageTransformer2DModel"
    monkeypatch.delitem(ADAPTERS, key)
    with pytest.raises(TypeError, match=r"LongCat.* is not supported"):
        compress(BY_NAME[key[0]].make())
    exec(registration, {"ADAPTERS": ADAPTERS, "LongCat": longcat.LongCat})  # type: ignore[attr-defined]
    assert run_tests(tests, {}, {}) == 2


def test_your_own_script(monkeypatch, tmp_path, capsys):
    from diffusers import FluxFillPipeline

    family = BY_NAME["FluxFillPipeline"]
    pipe = speaking(family.make(), family.arguments())
    monkeypatch.setattr(FluxFillPipeline, "from_pretrained", lambda *names, **options: pipe)
    monkeypatch.chdir(tmp_path)
    make_photo().save("photo.jpg")
    make_mask().save("mask.png")
    names: dict[str, Any] = {}
    for code in blocks("your-flux-script.md"):
        exec(code.replace("1024", str(SIZE)).replace("28", "2"), names)
    assert (tmp_path / "edited.png").is_file()
    said = capsys.readouterr().out
    assert "tokens" in said
    assert re.search(r"^\d+\.\d dB$", said, re.MULTILINE)
