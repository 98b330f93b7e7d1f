"""`hilo`: what a user types, what comes back, and that nothing else happens."""

import csv
import inspect
import json
import pickle
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors import SafetensorError
from toys import KINDS, Outcome, as_bytes, saved_model, saved_reader, write_mask, write_photo

from hilotoken import METHODS, PRESETS, HiLo, cli
from hilotoken.cli import shared
from hilotoken.photo import load_mask, load_photo

BOX = (60, 50, 110, 90)
FEW = ("--set", "bucket=8", "--set", "dilate=0", "--set", "detail=0.05")


@pytest.fixture
def edit(hilo, tmp_path):
    """`hilo edit` on the photo and mask in the test's folder, by a small model in one step."""

    def run(photo: Path, *arguments: object, output: str = "out.png", size: int = 128) -> Outcome:
        return hilo(
            "edit", photo, "--mask", tmp_path / "mask.png", "-o", tmp_path / output,
            "--model", saved_model(), "--steps", 1, "--size", size, *arguments,
        )  # fmt: skip

    return run


@pytest.fixture
def photo(tmp_path):
    """An RGB photo; its mask lies beside it."""
    path = write_photo(tmp_path, "RGB")
    write_mask(tmp_path, load_photo(path), BOX)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def changed(before: Path, after: Path) -> np.ndarray:
    difference = load_photo(before).pixels != load_photo(after).pixels
    return difference.reshape(*difference.shape[:2], -1).any(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_keeps_all_but_the_masked_pixels(edit, tmp_path, kind):
    path = write_photo(tmp_path, kind)
    before = load_photo(path)
    mask = load_mask(write_mask(tmp_path, before, BOX), before)
    done = edit(path)
    assert done.code == 0, done.err
    after = load_photo(tmp_path / "out.png")
    for name in ("size", "mode", "icc", "exif", "orientation"):
        assert getattr(after, name) == getattr(before, name), name
    difference = changed(path, tmp_path / "out.png")
    assert not difference[~mask].any()
    assert difference[mask].mean() > 0.5


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((150, 170), [(0, 0, 170, 150)]),
        ((150, 170), [(0, 0, 1, 1)]),
        ((150, 170), [(169, 149, 170, 150), (3, 140, 4, 141)]),
        ((1, 1), [(0, 0, 1, 1)]),
        ((11, 9), [(2, 3, 4, 5)]),
        ((6, 700), [(0, 2, 1, 3), (333, 5, 334, 6), (699, 0, 700, 1)]),
        ((900, 5), [(0, 899, 1, 900)]),
    ],
    ids=["all white", "one pixel", "far corners", "1x1", "less than a token", "wide", "tall"],
)
def test_any_photo_under_any_mask(edit, tmp_path, size, boxes):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)
    before = load_photo(path)
    mask = load_mask(write_mask(tmp_path, before, *boxes), before)
    done = edit(path, *FEW)
    assert done.code == 0, done.err
    assert not changed(path, tmp_path / "out.png")[~mask].any()
    assert changed(path, tmp_path / "out.png")[mask].mean() > 0.5


def test_a_model_with_text_encoders_reads_the_prompt(edit, photo, tmp_path):
    for name in ("cat", "dog"):
        words = ("--prompt", f"a {name}", "--model", saved_reader())
        done = edit(photo, *words, "--steps", 2, output=f"{name}.png")
        assert done.code == 0, done.err
    cat, dog = (load_photo(tmp_path / f"{name}.png").pixels for name in ("cat", "dog"))
    assert not np.array_equal(cat, dog)


def test_the_seed_decides(edit, photo, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert edit(photo, "--seed", seed, output=f"{name}.png").code == 0
    a, b, c = (load_photo(tmp_path / f"{name}.png").pixels for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_feather_blends_inside_the_mask_only(edit, photo, tmp_path):
    assert edit(photo, output="hard.png").code == 0
    assert edit(photo, "--feather", 12, output="soft.png").code == 0
    before, hard, soft = (
        load_photo(path).pixels.astype(int)
        for path in (photo, tmp_path / "hard.png", tmp_path / "soft.png")
    )
    left, top, right, bottom = BOX
    inside = np.zeros(before.shape[:2], bool)
    inside[top:bottom, left:right] = True
    assert np.array_equal(before[~inside], soft[~inside])
    border, middle = (slice(top, bottom), left), (slice(65, 75), slice(75, 95))
    assert abs(soft - before)[border].mean() < 0.3 * abs(hard - before)[border].mean()
    assert np.array_equal(soft[middle], hard[middle])


def test_json_is_one_object_and_nothing_else(edit, photo):
    done = edit(photo, "--json", *FEW)
    found = json.loads(done.out)
    names = {"tokens_full", "tokens_run", "keep_ratio", "dit_seconds", "total_seconds"}
    assert names <= set(found)
    assert found["tokens_full"] == 64
    assert found["tokens_run"] == sum(found["tokens"].values()) < 64
    assert found["keep_ratio"] == found["tokens_run"] / 64
    assert 0 < found["dit_seconds"] < found["total_seconds"]
    assert done.out.count("\n") == 1
    assert done.err == ""


def test_compare(edit, photo, tmp_path):
    """Other methods' figures come from here, so they must be those of two different runs."""
    before = set(content(tmp_path))
    done = edit(photo, "--compare", "--json", *FEW, output="new.png")
    found = json.loads(done.out)
    names = ["new.png", "new_dense.png", "new_plan.png", "new_sheet.png"]
    assert set(content(tmp_path)) - before == set(names)
    assert found["written"] == [str(tmp_path / name) for name in names]
    assert found["dit_speedup"] == found["dense_dit_seconds"] / found["dit_seconds"]
    assert found["speedup"] == found["dense_total_seconds"] / found["total_seconds"]
    mask = load_mask(tmp_path / "mask.png", load_photo(photo))
    for name in names[:2]:
        difference = changed(photo, tmp_path / name)
        assert not difference[~mask].any()
        assert difference[mask].mean() > 0.5
    assert changed(tmp_path / names[0], tmp_path / names[1]).any()


def test_compare_prints_both_runs(edit, photo):
    done = edit(photo, "--compare", *FEW)
    assert done.out == ""
    rows = [line for line in done.err.splitlines() if "x" in line and "│" in line]
    assert ["dense" in row for row in rows] == [True, False]
    assert "hilo" in rows[1]
    assert sum("wrote" in line for line in done.err.splitlines()) == 4


def test_a_lossy_suffix_is_warned_of(edit, photo):
    assert ".jpg loses detail" in edit(photo, output="out.jpg").err


def test_plan_needs_no_model(hilo, photo, tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.model.load_model", None)
    done = hilo(
        "plan", photo, "-m", tmp_path / "mask.png", "-o", tmp_path / "map.png", "--size", 128,
        "--json", *FEW,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["tokens_run"] < found["tokens_full"] == 64
    assert Image.open(tmp_path / "map.png").width == 1024


# name: (how `hilo edit` is given it, what the line on standard error names)
BAD: dict[str, tuple[dict[str, str], list[str]]] = {
    "photo missing": ({"photo": "none.png"}, ["none.png", "name an image file"]),
    "photo cut short": ({"photo": "short.png"}, ["short.png", "export it again"]),
    "photo no picture": ({"photo": "words.png"}, ["words.png", "PNG, JPEG"]),
    "photo a folder": ({"photo": "folder"}, ["folder", "image file"]),
    "mask missing": ({"--mask": "none.png"}, ["none.png", "name an image file"]),
    "mask cut short": ({"--mask": "short.png"}, ["short.png", "export it again"]),
    "mask no picture": ({"--mask": "words.png"}, ["words.png", "PNG, JPEG"]),
    "mask of another size": ({"--mask": "other.png"}, ["other.png", "30x20", "170x150", "resize"]),
    "mask empty": ({"--mask": "black.png"}, ["black.png", "paint white"]),
    "method unknown": ({"--method": "magic"}, ["magic", "dense", "hilo"]),
    "option unknown": ({"--set": "colour=3"}, ["colour", "dilate"]),
    "option of dense": ({"--method": "dense", "--set": "dilate=3"}, ["dense", "dilate"]),
    "no value": ({"--set": "dilate"}, ["NAME=VALUE", "dilate"]),
    "detail too large": ({"--set": "detail=7"}, ["detail", "[0, 1]", "7"]),
    "detail a word": ({"--set": "detail=abc"}, ["detail", "abc"]),
    "score a list": ({"--set": "score=[1]"}, ["score", "[1]", "laplacian"]),
    "dilate negative": ({"--set": "dilate=-1"}, ["dilate", "0 or more", "-1"]),
    "dilate a word": ({"--set": "dilate=abc"}, ["dilate", "whole number", "abc"]),
    "no such hub id": ({"--model": "nobody/nothing"}, ["nobody/nothing", "folder", "hub id"]),
    "no such folder": ({"--model": "/nowhere/at/all"}, ["/nowhere/at/all", "folder"]),
    "model a file": ({"--model": "words.png"}, ["words.png", "folder"]),
    "device unknown": ({"--device": "nonsense"}, ["nonsense", "'cpu'"]),
    "device not here": ({"--device": "cuda:77"}, ["cuda:77", "'cpu'"]),
    "device that holds nothing": ({"--device": "meta"}, ["meta", "'cpu'"]),
    "no folder for output": ({"-o": "none/out.png"}, ["none/out.png", "create it"]),
    "output a folder": ({"-o": "folder"}, ["folder"]),
    "output a folder with a suffix": ({"-o": "folder.png"}, ["folder.png", "directory"]),
    "suffix unknown": ({"-o": "out.xyz"}, ["out.xyz", ".png"]),
    "no suffix": ({"-o": "out"}, ["out", ".png"]),
    "a prompt": ({"--prompt": "a cat"}, ["prompt", "leave it out"]),
}  # fmt: skip


@pytest.fixture
def bad_files(photo, tmp_path):
    """The files that BAD names, beside a good photo, its mask, and an earlier output."""
    (tmp_path / "short.png").write_bytes(photo.read_bytes()[:4000])
    (tmp_path / "words.png").write_text("words")
    (tmp_path / "other.png").write_bytes(as_bytes(Image.new("L", (30, 20), 255)))
    (tmp_path / "black.png").write_bytes(as_bytes(Image.new("L", (170, 150))))
    (tmp_path / "out.png").write_bytes(b"from earlier")
    for name in ("folder", "folder.png"):
        (tmp_path / name).mkdir()


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_line_and_changes_nothing(hilo, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = {"photo": "photo.png", "--mask": "mask.png", "-o": "out.png"}
    given |= {"--model": str(saved_model()), "--steps": "1", "--size": "128"}
    changes, parts = BAD[name]
    photo, *rest = (given | changes).items()
    before = content(tmp_path)
    done = hilo("edit", photo[1], *(word for pair in rest for word in pair))
    assert done.code == 2, done
    assert done.err.startswith("hilo: ")
    assert done.err.count("\n") == 1
    assert all(part in done.err for part in parts), done.err
    assert done.out == ""
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "wrong",
    [
        ("--steps", 0),
        ("--size", 64),
        ("--size", "big"),
        ("--seed", -1),
        ("--seed", 2**70),
        ("--feather", -1),
        ("--nonsense", 1),
    ],
    ids=str,
)
def test_bad_usage(edit, photo, tmp_path, wrong):
    before = content(tmp_path)
    done = edit(photo, *wrong)
    assert done.code == 2
    assert wrong[0] in done.err
    assert "Traceback" not in done.err
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "changes", [{"-o": "map.xyz"}, {"-o": "none/map.png"}, {"--mask": "black.png"}], ids=str
)
@pytest.mark.usefixtures("bad_files")
def test_a_bad_plan(hilo, tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    given = {"--mask": "mask.png", "-o": "map.png"} | changes
    done = hilo("plan", "photo.png", *(word for pair in given.items() for word in pair))
    assert (done.code, done.err.count("\n"), done.out) == (2, 1, "")
    assert content(tmp_path) == before


SPELLINGS = {
    "itself": lambda path: path,
    "another spelling": lambda path: path.parent / ".." / path.parent.name / path.name,
    "a link": lambda path: linked(path, Path.symlink_to),
    "a hard link": lambda path: linked(path, Path.hardlink_to),
}


def linked(path: Path, link) -> Path:
    made = path.with_name("link.png")
    link(made, path)
    return made


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("command", ["edit", "plan", "compare"])
@pytest.mark.parametrize("name", ["photo.png", "mask.png"])
def test_an_output_that_is_an_input_is_refused(hilo, photo, tmp_path, command, name, spelling):
    output = SPELLINGS[spelling](tmp_path / name)
    before = content(tmp_path)
    done = hilo(command, photo, "-m", tmp_path / "mask.png", "-o", output)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "an input" in done.err
    assert content(tmp_path) == before


def test_what_is_written_beside_the_output_is_no_input_either(edit, photo, tmp_path):
    (tmp_path / "mask.png").rename(tmp_path / "out_plan.png")
    before = content(tmp_path)
    done = edit(photo, "--mask", tmp_path / "out_plan.png", "--compare")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "out_plan.png" in done.err
    assert content(tmp_path) == before


ERRORS = {
    "of torch": (RuntimeError("CUDA error: no device"), 2, "CUDA error"),
    "of memory": (MemoryError("Unable to allocate 9 TiB"), 2, "9 TiB"),
    "of memory, wordless": (MemoryError(), 2, "MemoryError"),
    "of a large number": (OverflowError("int too large"), 2, "too large"),
    "of weights": (SafetensorError("header too large"), 2, "header"),
    "of a bomb": (Image.DecompressionBombError("too many pixels"), 2, "pixels"),
    "of an archive": (zipfile.BadZipFile("not a zip"), 2, "zip"),
    "of a pickle": (pickle.UnpicklingError("invalid load key"), 2, "load key"),
    "of a table": (csv.Error("NUL"), 2, "NUL"),
    "of ours": (KeyError("colour"), 1, "KeyError: 'colour': this looks like a fault"),
    "of ours, wordless": (AssertionError(), 1, "AssertionError: this looks like a fault"),
    "of one who waits": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_one_line(hilo, photo, tmp_path, monkeypatch, name):
    error, code, said = ERRORS[name]

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("hilotoken.photo.load_photo", fail)
    done = hilo("plan", photo, "-m", tmp_path / "mask.png", "-o", tmp_path / "map.png")
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert done.err.startswith("hilo: ")
    assert said in done.err


ERRORS_OF_USE = {
    "no such command": (["edti"], "edit"),
    "no such file": (["edit", "no.png", "-m", "no.png", "-o", "a.png"], "no.png"),
    "the help": (["bench", "speed", "--help"], "Usage"),
}


@pytest.mark.parametrize("name", ERRORS_OF_USE)
def test_an_error_of_use_waits_for_no_library(name):
    """Not even for PyTorch, which takes a second."""
    words, said = ERRORS_OF_USE[name]
    code = (
        "import atexit, sys, hilotoken\n"
        "before = set(sys.modules)\n"
        "atexit.register(lambda: print(sorted({'torch', 'diffusers', 'transformers'}"
        " & (set(sys.modules) - before))))\n"
        "from hilotoken.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert said in done.stdout + done.stderr
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("extra", [(), ("--compare",)], ids=str)
def test_ctrl_c_leaves_nothing(edit, photo, tmp_path, monkeypatch, extra):
    calls, forward = [], FluxTransformer2DModel.forward

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(FluxTransformer2DModel, "forward", interrupted)
    before = content(tmp_path)
    done = edit(photo, "--steps", 5, *extra)
    assert (done.code, done.out) == (130, "")
    assert done.err == "hilo: interrupted\n"
    assert content(tmp_path) == before


def test_a_write_that_fails_leaves_the_old_file(edit, photo, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "out.png").write_bytes(b"from earlier")
    before = content(tmp_path)
    monkeypatch.setattr("os.fsync", full)
    done = edit(photo)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "No space left" in done.err
    assert content(tmp_path) == before


def test_the_traceback_is_there_for_who_asks(hilo, monkeypatch, tmp_path):
    monkeypatch.setenv("HILO_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["hilo", "plan", "none.png", "-m", "none.png", "-o", "a.png"])
    with pytest.raises(ValueError, match=r"none\.png"):
        cli.main()


def test_train_names_what_is_wrong(hilo, tmp_path):
    for arguments, parts in (
        ([tmp_path / "none", tmp_path / "run"], ["none", "no photographs"]),
        ([tmp_path, tmp_path / "run", "--elastic", 2], ["elastic", "[0, 1]", "2"]),
        ([tmp_path, tmp_path / "run", "--refine-rate", 0], ["--lpips", "leave out --refine-rate"]),
        (
            [tmp_path, tmp_path / "run", "--refine-rate", 0, "--lpips", "none"],
            ["rate", "positive", "0"],
        ),
        ([tmp_path, tmp_path / "run", "--refine-samples", 0, "--refine-rate", 1], ["leave out"]),
        ([tmp_path, tmp_path], ["input"]),
        ([tmp_path, tmp_path / "run", "--device", "nonsense"], ["nonsense", "cpu"]),
    ):
        done = hilo("train", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert all(part in done.err for part in parts), done.err
        assert not list(tmp_path.iterdir())


def test_help_names_every_command(hilo):
    done = hilo("--help")
    assert done.code == 0
    assert all(name in done.out for name in ("edit", "plan", "compare", "train", "bench"))


def test_methods_are_listed_with_their_options(hilo):
    done = hilo("methods")
    assert (done.code, done.err) == (0, "")
    for name, kind in METHODS.items():
        assert f"\n{name}  " in f"\n{done.out}"
        for option in inspect.signature(kind).parameters:
            assert f"    {option}=" in done.out
    found = json.loads(hilo("methods", "--json").out)
    assert set(found["methods"]) == set(METHODS)
    assert found["methods"]["hilo"]["options"]["bucket"] == HiLo().bucket


def test_a_preset_is_a_method_with_all_its_options(edit, photo, monkeypatch):
    monkeypatch.setitem(PRESETS, "few", HiLo(dilate=0, detail=0.05, bucket=8))
    by_name, by_options = (edit(photo, "--json", *words) for words in (("--preset", "few"), FEW))
    assert by_name.code == 0, by_name.err
    found = [json.loads(done.out)["tokens"] for done in (by_name, by_options)]
    assert found[0] == found[1]
    for words, said in (
        (("--preset", "none"), "choose from ['balanced', 'faithful', 'fast', 'few', 'paper']"),
        (("--preset", "few", *FEW), "omit --method and --set"),
    ):
        done = edit(photo, *words)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert said in done.err


def test_the_table_has_no_empty_columns_and_says_what_was_saved(edit, photo):
    alone, beside = (edit(photo, *FEW, *words).err for words in ((), ("--compare",)))
    assert "dense" not in alone
    assert "whole" not in alone
    for text in (alone, beside):
        words = " ".join(text.split())
        assert "of 64 tokens ran" in words
        assert "starting took" in words
        cells = [row.split("│")[2:-1] for row in text.splitlines() if "│" in row]
        assert cells
        assert all(cell.strip() for row in cells for cell in row)
    assert "of the dense edit" in " ".join(beside.split())


def test_the_mask_is_read_as_asked(edit, photo, tmp_path):
    before, (left, top, right, bottom) = load_photo(photo), BOX
    inside = np.zeros(before.pixels.shape[:2], bool)
    inside[top:bottom, left:right] = True
    Image.fromarray(~inside).save(tmp_path / "inverse.png")
    holed = Image.fromarray(before.pixels)
    holed.putalpha(Image.fromarray(np.where(inside, 0, 255).astype(np.uint8)))
    holed.save(tmp_path / "holed.png")
    ways = {
        "inverse": (inside, "--invert"),
        "holed": (inside, "--mask-from", "alpha"),
        "mask": (np.asarray(cv2.dilate(inside.astype(np.uint8), np.ones((7, 7)))) > 0, "--grow", 3),
    }
    for name, (mask, *words) in ways.items():
        done = edit(photo, "--mask", tmp_path / f"{name}.png", *words)
        assert done.code == 0, done.err
        difference = changed(photo, tmp_path / "out.png")
        assert difference[inside].mean() > 0.5
        assert not difference[~mask].any()
        if name == "mask":
            assert difference[~inside].any()
    noted = edit(photo, "--mask", tmp_path / "holed.png")
    assert "note: " in noted.err
    assert "--mask-from white" in noted.err
    assert json.loads(edit(photo, "--mask", tmp_path / "holed.png", "--json").out)["notes"]


def test_the_version(hilo):
    assert hilo("--version") == Outcome(0, f"{version('hilotoken')}\n", "")


def test_method_names_complete():
    assert set(shared.METHOD_NAMES) == set(METHODS)
    command: Any = typer.main.get_command(cli.app)
    (option,) = (one for one in command.commands["edit"].params if one.name == "method")
    found = option.shell_complete(typer.Context(command), "to")
    assert [one.value for one in found] == ["tome", "todo"]
