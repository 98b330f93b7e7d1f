"""`hilo check`: the contract on a user's pipeline, what presets cost there, and which to use."""

import json
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from browsing import browser, need_browser
from complete import loaded, saved, without_torchvision
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image
from tiny import make_mask, make_photo, make_pipe

import hilotoken
import hilotoken.request
from hilotoken import HiLo, compress, load_model
from hilotoken.adapters.base import ShortCall
from hilotoken.check import _approximate, _arguments, check
from hilotoken.check.contract import Promise, contract
from hilotoken.check.found import Checked
from hilotoken.check.measure import SAME, CheckRow, Measured
from hilotoken.check.subjects import cases, photos_in
from hilotoken.check.verdict import Budget, recommend, rivals, sentence, summaries, surely
from hilotoken.request import Request, fewest_steps

PIPELINES = [
    *("FluxFillPipeline", "FluxInpaintPipeline", "FluxKontextPipeline", "Flux2KleinPipeline"),
    *("StableDiffusion3InpaintPipeline", "ZImageInpaintPipeline", "FluxControlInpaintPipeline"),
    *("ZImageControlNetInpaintPipeline", "BriaFibo2Pipeline"),
]
FILL = "FluxFillPipeline"
SLOW = "QwenImageEditPipeline"  # its reference is a megapixel, whatever the photo
METHODS = ["dense", *hilotoken.PRESETS, "edit only", "half the steps"]
TRIED = 5  # promises of six: nothing is compiled here
ASKED: dict[str, Any] = {
    "prompt": "a cat", "negative_prompt": "", "label": "", "guidance": None, "cfg": None,
    "strength": None, "seed": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    without_torchvision(monkeypatch)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "noise <b>.png"
    make_photo(140, 150).save(file)
    return file


@pytest.fixture(scope="module")
def checked(photo):
    return quickly(loaded(FILL), photo)


def quickly(pipe: Any, photo: Any, **given: Any) -> Checked:
    return check(pipe, photo, **{"quick": True, "steps": 2, "size": 128} | given)


def promises(name: str, photo: Any) -> dict[str, Promise]:
    [case] = cases(photos_in(photo), 128, quick=True)
    pipe = loaded(name)
    fewest = fewest_steps(pipe, Request())
    return {one.name: one for one in contract(pipe, _arguments(pipe, ASKED, case), fewest, [])}


@pytest.fixture
def few(monkeypatch):
    """Two presets, and no contract: what is measured is at stake."""
    held = [Promise("it is held", True, "elsewhere")]
    monkeypatch.setattr(sys.modules["hilotoken.check"], "contract", lambda *_: iter(held))
    presets = {name: hilotoken.PRESETS[name] for name in ("paper", "fast")}
    monkeypatch.setattr(sys.modules["hilotoken.check.measure"], "PRESETS", presets)


# On every pipeline.


@pytest.mark.parametrize("name", [*PIPELINES, SLOW])
def test_every_pipeline_keeps_the_contract(name, photo, monkeypatch):
    whole = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(  # a reference of 512 px, four times the edit
        pipeline_qwenimage_edit, "calculate_dimensions", lambda area, *of: whole(area // 4, *of)
    )
    found = promises(name, photo)
    assert [one.held for one in found.values()].count(True) == TRIED, found.values()
    assert next(one for one in found.values() if "compiled" in one.name).held is None


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_is_measured(name, photo, few):
    checked = quickly(loaded(name), photo, prompt="a cat")
    rows = {row.method: row for row in checked.rows}
    methods = ["dense", "paper", "fast", "edit only", "half the steps"]
    assert [name for name in methods if name not in checked.refused] == list(rows)
    assert set(checked.refused) <= {"fast", "half the steps"}, checked.refused
    assert rows["dense"].psnr == SAME
    assert rows["dense"].speedups == [1.0]
    assert all(row.outside_equal and row.tokens_run <= 64 for row in checked.rows)


def test_a_pipeline_that_takes_no_size_is_measured_at_its_own(photo, few, monkeypatch):
    pipe = load_model(saved(FILL), dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(hilotoken.request, "MEGAPIXEL", (FILL,))
    monkeypatch.setattr(hilotoken.request, "SIDE", 128)
    pipe.default_sample_size = 16
    checked = quickly(pipe, photo, size=None, steps=1)
    assert checked.settings["size"] == 128
    assert "dense" in {row.method for row in checked.rows}
    with pytest.raises(ValueError, match="omit size"):
        quickly(pipe, photo)


# The contract can break.


def _wrong_places(monkeypatch):
    right = ShortCall.placed

    def placed(self, call):
        return {name: ids.roll(1, -2) for name, ids in right(self, call).items()}

    monkeypatch.setattr(ShortCall, "placed", placed)


def _a_leak(monkeypatch):
    """Dropped tokens that take part: those that run see one more of them."""
    right = ShortCall.restore
    monkeypatch.setattr(ShortCall, "restore", lambda *given: right(*given) * 1.01)


def _another_photo(monkeypatch):
    right = hilotoken.compress.__globals__["composite_images"]

    def mixed(images, photo_B3HW, *rest):
        return right(images, (photo_B3HW + 0.1).clamp(0, 1), *rest)

    monkeypatch.setitem(hilotoken.compress.__globals__, "composite_images", mixed)


def _a_hook_left(monkeypatch):
    right = compress.__globals__["attached"]

    def attached(pipe, *rest):
        pipe.transformer.register_forward_pre_hook(lambda *_: None)
        return right(pipe, *rest)

    monkeypatch.setitem(compress.__globals__, "attached", attached)


FAULTS = {
    _wrong_places: {
        "keeping every token equals dense", "the order of tokens does not matter",
        "dropping tokens equals masking their keys",
    },
    _a_leak: {
        "keeping every token equals dense", "the order of tokens does not matter",
        "dropping tokens equals masking their keys",
    },
    _another_photo: {"pixels outside the mask stay as they are"},
    _a_hook_left: {"the pipeline is untouched afterwards"},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_breaks_its_promises(fault, photo, monkeypatch):
    hooks = loaded(FILL).transformer._forward_pre_hooks
    fault(monkeypatch)
    try:
        found = promises(FILL, photo)
    finally:
        hooks.clear()
    assert {name for name, one in found.items() if one.held is False} == FAULTS[fault]


def test_a_backend_without_masks_is_not_called_broken(photo, monkeypatch):
    plain = torch.nn.functional.scaled_dot_product_attention

    def maskless(*args, attn_mask=None, **kwargs):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            raise RuntimeError("no masks here")
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", maskless)
    found = promises(FILL, photo)["dropping tokens equals masking their keys"]
    assert found.held is None
    assert "no masks here" in found.found


def test_a_broken_contract_recommends_nothing(checked):
    broken = replace(checked, promises=[Promise("dense is dense", False, "it is not")])
    assert broken.recommended is None
    assert broken.line == ""
    assert broken.sentence.startswith("do not use hilotoken on this pipeline")


# What it goes by, and what it finds.


def test_what_was_found_is_json_and_a_page_by_itself(checked, tmp_path):
    page, figures = checked.write(tmp_path)
    found = json.loads(figures.read_text())
    assert found == json.loads(json.dumps(checked.as_dict(), allow_nan=False))
    assert [one["method"] for one in found["methods"]] == METHODS
    text = page.read_text()
    assert "noise &lt;b&gt;.png" in text
    assert "noise <b>" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count("data:image/webp") == len(METHODS) + 1
    assert checked.sentence.removesuffix(": see the report.").replace('"', "&#34;") in text
    assert str(checked).startswith(checked.sentence)


def test_its_figures_are_a_table_for_a_document(hilo, checked, tmp_path):
    _, figures = checked.write(tmp_path)
    done = hilo("bench", "table", figures, "--only", "balanced", "--only", "edit only")
    assert done.code == 0, done.err
    lines = [[cell.strip() for cell in line.split("|")] for line in done.out.splitlines()]
    assert [line[2] for line in lines[2:]] == ["balanced", "edit only"] * len(checked.by_class)
    known = next(iter(checked.by_class.values()))
    (balanced,) = [one for one in known if one.method == "balanced"]
    assert lines[2][6] == f"{balanced.psnr.median:.1f}, {balanced.psnr.low:.1f}"
    assert f"{balanced.speedup.median:.2f}x (" in lines[2][5]
    assert "choose from" in hilo("bench", "table", figures, "--only", "none").err


def test_the_line_to_paste_is_python(checked):
    rows = [row for row in checked.rows if row.method == "dense"]
    for name, said in {"balanced": '"balanced"', "mine": "HiLo(detail=0.3)"}.items():
        fast = replace(rows[0], method=name, speedups=[3.0])
        measured = {"a": Measured([*rows, fast], {})}
        settings = {"methods": {"balanced": "balanced", "mine": "HiLo(detail=0.3)"}}
        found = replace(checked, measured=measured, settings=settings, promises=[])
        assert found.recommended == name
        assert found.line.startswith(f"fast = hilotoken.compress(pipe, {said})")
        compile(found.line, "line", "exec")


def test_the_page_fits_every_width(checked, tmp_path):
    need_browser()
    page, _ = checked.write(tmp_path)
    for width in (1280, 390):
        with browser(width, 900, phone=width < 500) as driver:
            driver.get(page.as_uri())
            wide, shown = driver.execute_script(
                "return [document.documentElement.scrollWidth, innerWidth]"
            )
            loaded = driver.execute_script(
                "return [...document.images].every(one => { one.loading = 'eager'; "
                "return !one.complete || one.naturalWidth > 0 })"
            )
            assert wide <= shown
            assert loaded
            assert not driver.get_log("browser")


def test_an_interrupted_check_goes_on(tmp_path, photo, few):
    folder, told = tmp_path / "out", []

    def stop(done: int, total: int, text: str) -> None:
        told.append(text)
        if "medium mask" in text:
            raise KeyboardInterrupt

    given = {"quick": False, "rounds": 1, "steps": 1, "folder": folder}
    with pytest.raises(KeyboardInterrupt):
        quickly(loaded(FILL), photo, **given, progress=stop)
    with (folder / "check.jsonl").open("a") as stream:
        stream.write('{"case": "broken o')  # as a kill leaves it
    again: list[str] = []
    found = quickly(
        loaded(FILL), photo, **given, progress=lambda done, total, text: again.append(text)
    )
    assert any("small mask" in text for text in told)
    assert not any("small mask" in text for text in again)
    assert "it is held" in told
    assert "it is held" not in again
    assert [row.mask_class for row in found.rows if row.method == "dense"] == [
        "small", "medium", "large"
    ]  # fmt: skip
    assert len(list((folder / "pictures").iterdir())) == sum(
        len(one.pictures) for one in found.measured.values()
    )
    with pytest.raises(ValueError, match="seed was 0"):
        quickly(loaded(FILL), photo, **given, seed=1)


def test_photographs_come_with_masks_or_get_three(tmp_path):
    for name, size in {"a.png": (150, 140), "b.png": (150, 140)}.items():
        make_photo(*size).save(tmp_path / name)
    make_mask(150, 140, (40, 50, 90, 100)).save(tmp_path / "b_mask.png")
    found = photos_in(tmp_path)
    of = [(case.name, case.mask_class) for case in cases(found, 128)]
    assert of[:3] == [("a.png", "small"), ("a.png", "medium"), ("a.png", "large")]
    assert [name for name, _ in of[3:]] == ["b.png"]
    assert [case.name for case in cases(found, 128, quick=True)] == ["a.png", "b.png"]
    assert len(list(cases(photos_in(None), 128))) == 12
    with pytest.raises(ValueError, match=r"two photographs are called a\.png"):
        photos_in([tmp_path / "a.png", tmp_path])
    with pytest.raises(FileNotFoundError, match="no photograph"):
        photos_in(tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nearer_than": -1}, "nearer_than"),
        ({"faster_than": 0.5}, "faster_than"),
        ({"rounds": 0}, "rounds must be 1"),
        ({"steps": 0}, "steps must be 1"),
        ({"strength": 2.0}, "strength"),
        ({"cfg": 3.0}, "no second kind of guidance"),
        ({"lpips": "none.tar.gz"}, "none.tar.gz"),
    ],
    ids=str,
)
def test_options_are_checked_before_anything_is_run(given, message, photo):
    def never(*_: Any) -> None:
        raise AssertionError("it ran")

    with pytest.raises((ValueError, OSError), match=message):
        quickly(loaded(FILL), photo, progress=never, **given)


def test_a_compressed_pipeline_is_refused(photo):
    with pytest.raises(TypeError, match="check the pipeline that it wraps"):
        check(compress(loaded(FILL), HiLo()), photo)


# Which to use.


def row(method: str, photo: int, psnr: float, faster: float, texture: float = 0.0) -> CheckRow:
    return CheckRow(
        f"{photo}.jpg", "small", 0.06, method, 100, 50, [1.0], [0.1], [1.2], [faster], [faster],
        psnr, 0.99, None, texture, 1.0, 1.0, True, None, 0.0,
    )  # fmt: skip


def many(method: str, levels: list[float], faster: float, **given: Any) -> list[CheckRow]:
    return [row(method, i, level, faster, **given) for i, level in enumerate(levels)]


ROWS = [
    *many("dense", [SAME] * 12, 1.0), *many("faithful", [45.0] * 12, 1.5),
    *many("balanced", [41.3] * 12, 2.4), *many("fast", [30.0] * 12, 4.0, texture=-0.6),
    *many("edit only", [28.0] * 12, 4.5), *many("half the steps", [33.0] * 12, 2.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(), "balanced"), (Budget(29), "fast"), (Budget(43), "faithful"),
        (Budget(43, 2), None), (Budget(38, 2), "balanced"), (Budget(50), None),
    ],
    ids=str,
)  # fmt: skip
def test_the_fastest_preset_within_the_budget(budget, expected):
    found = recommend(summaries(ROWS, budget), budget)
    assert (found and found.method) == expected


def test_the_sentence_of_the_end():
    said = sentence(summaries(ROWS, Budget()), Budget())
    assert said == (
        '"balanced" makes your edits 2.4 times as fast and stays within 41 dB of dense; "fast" '
        "loses texture on 12 of 12 edits: see the report."
    )
    none = sentence(summaries(ROWS, Budget(50, 2)), Budget(50, 2))
    assert none.startswith("no preset is within 50 dB of dense and 2 times as fast: the nearest")


def test_one_in_ten_may_be_further():
    levels = [41.0] * 11 + [30.0]
    near = [*many("dense", [SAME] * 12, 1.0), *many("balanced", levels, 2.0)]
    found = summaries(near, Budget())
    assert recommend(found, Budget()) == found[1]
    assert "within 38 dB of dense on 11 of 12 edits" in sentence(found, Budget())
    far = [*many("dense", [SAME] * 12, 1.0), *many("balanced", [41.0] * 10 + [30.0] * 2, 2.0)]
    assert recommend(summaries(far, Budget()), Budget()) is None


def test_a_control_that_does_as_well_is_told():
    equal = [*ROWS, *many("half the steps", [50.0] * 200, 2.5)]
    found = summaries(equal, Budget())
    assert [one.method for one in rivals(found, recommend(found, Budget()), Budget())] == [
        "half the steps"
    ]
    found = summaries(ROWS, Budget())
    assert not rivals(found, recommend(found, Budget()), Budget())


def test_how_sure_by_so_few():
    """Clopper and Pearson's lower ends: all of n is the n-th root of 5 %."""
    for of in (1, 4, 12, 100):
        assert surely(of, of) == pytest.approx(0.05 ** (1 / of), abs=1e-6)
    assert surely(0, 4) == pytest.approx(0, abs=1e-9)
    assert surely(11, 12) == pytest.approx(0.6613, abs=1e-3)


# At the front.


def test_hilo_check_on_the_embedded_model(hilo, photo, tmp_path):
    out = tmp_path / "out"
    done = hilo(
        "check", "embedded", photo, "--quick", "--size", 128, "--steps", 1, "-o", out,
        "--method", "tome ratio=0.5", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["written"] == [str(out / "report.html"), str(out / "check.json")]
    assert found["sentence"]
    assert [one["held"] for one in found["contract"]].count(True) == TRIED
    assert "tome ratio=0.5" in {one["method"] for one in found["methods"]}
    again = hilo("check", "embedded", photo, "--quick", "--size", 128, "--steps", 1, "-o", out,
                 "--method", "tome ratio=0.5", "--nearer-than", 20)  # fmt: skip
    assert again.code == 0, again.err
    assert "see the report." in again.out
    assert "pipeline: EmbeddedFillPipeline" in again.err


def test_pictures_are_of_what_lies_around_the_mask(checked):
    import io

    [measured] = checked.measured.values()
    photo, dense, paper = (
        np.asarray(Image.open(io.BytesIO(measured.pictures[name])).convert("RGB"), float)
        for name in ("photo", "dense", "paper")
    )
    assert photo.shape == dense.shape == paper.shape
    assert np.abs(photo - dense).mean() > np.abs(paper - dense).mean()


def test_the_error_of_an_approximate_decode_is_measured_where_there_is_one(photo):
    case = next(iter(cases([photo], 256, True)))
    found = _approximate(make_pipe("kl"), case)
    assert re.fullmatch(r"[\d.]+ of 255 levels off, in the first mask", *found.values())
    assert _approximate(make_pipe("tiny"), case) == {}
