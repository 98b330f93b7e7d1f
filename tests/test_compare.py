"""`hilo compare`: rows that say what happened, a sheet that shows it, and words for methods."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from toys import saved_model, write_mask, write_photo

from hilotoken import Dense, HiLo
from hilotoken.compare import AMPLIFIED, PANEL, compare, compare_sheet
from hilotoken.edit import edit_photo
from hilotoken.methods import METHODS, CropStitch, FewerSteps, ToDo, ToMe
from hilotoken.methods.parse import method_from, method_names
from hilotoken.methods.within import Within
from hilotoken.model import load_model
from hilotoken.photo import Photo, load_photo

BOX = (60, 50, 110, 90)
FEW = HiLo(dilate=0, detail=0.05, bucket=8)


@pytest.fixture(scope="module")
def compared():
    """A small model's edits of noise, by dense and by methods of every site."""
    pipe = load_model(saved_model())
    pipe.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 170, 3), np.uint8)
    mask = np.zeros((150, 170), bool)
    mask[60:100, 40:90] = True
    calls = []

    def run(method, steps, label):
        calls.append((method, steps, label))
        photo = Photo(pixels, "RGB", "PNG")
        return edit_photo(pipe, photo, mask, method, size=128, steps=steps, seed=3, match=False)

    methods = {
        "same": HiLo(detail=1.0, coarse=0), "few": FEW, "tome": ToMe(feed_forward=True),
        "todo": ToDo(), "short": FewerSteps(), "crop": CropStitch(margin=0),
        "both": Within(FEW, ToDo()),
    }  # fmt: skip
    return list(compare(run, methods, photo="noise", steps=2, seed=3)), calls, methods


def test_rows_say_what_each_method_did(compared):
    rows = {one.row.method: one.row for one in compared[0]}
    assert list(rows) == ["dense", *compared[2]]
    assert {row.tokens_full for row in rows.values()} == {64}
    assert rows["dense"].tokens_run == rows["tome"].tokens_run == rows["same"].tokens_run == 64
    assert rows["few"].tokens_run == rows["both"].tokens_run < 64
    assert (rows["tome"].queries, rows["tome"].keys, rows["tome"].feed_forward) == (0.5, 0.5, 0.5)
    assert (rows["todo"].queries, rows["todo"].keys, rows["todo"].feed_forward) == (1, 0.25, 1)
    assert rows["few"].keys == 1 > rows["both"].keys
    assert (rows["short"].steps, rows["dense"].steps) == (1, 2)
    for row in rows.values():
        assert row.photo == "noise"
        assert row.seed == 3
        assert 0 < row.dit_seconds <= row.total_seconds
        assert row.dit_speedup == pytest.approx(rows["dense"].dit_seconds / row.dit_seconds)
        assert row.speedup == pytest.approx(rows["dense"].total_seconds / row.total_seconds)


def test_the_difference_is_taken_from_dense_in_the_mask(compared):
    edits = {one.row.method: one for one in compared[0]}
    dense = edits["dense"].edit
    for name, one in edits.items():
        assert np.array_equal(one.edit.mask, dense.mask)
        left, right = (np.asarray(e.after, float)[dense.mask] for e in (one.edit, dense))
        assert one.row.mean_difference == pytest.approx(np.abs(left - right).mean())
        if error := ((left - right) ** 2).mean():
            assert one.row.psnr_dense == pytest.approx(10 * np.log10(255**2 / error))
        else:
            assert one.row.psnr_dense is None
        assert (one.row.mean_difference == 0) == (name in ("dense", "same"))


def test_each_is_warmed_up_by_a_step_of_its_own(compared):
    _, calls, methods = compared
    assert [label for *_, label in calls] == [
        word for name in ("dense", *methods) for word in ("warm-up", name)
    ]
    assert [steps for _, steps, _ in calls] == [1, 2] * (1 + len(methods))
    assert all(calls[i][0] == calls[i + 1][0] for i in range(0, len(calls), 2))
    assert calls[0][0] == Dense()


def test_the_sheet_shows_edits_and_where_they_differ(compared):
    found = compared[0]
    sheet = np.asarray(compare_sheet(found)).astype(int)
    assert sheet.shape[1] == 12 + 5 * (PANEL + 12)
    yellow = (sheet[..., 0] > 200) & (sheet[..., 1] > 150) & (sheet[..., 2] == 0)
    assert yellow.any()  # noise filled by random weights differs by much
    same = [found[0], found[1]]
    alike = np.asarray(compare_sheet(same)).astype(int)
    panel = alike[:, 12 + 2 * (PANEL + 12) :][:, :PANEL]
    below = panel[panel.shape[0] - PANEL - 16 :]
    inside = (below == 0).all(-1)
    assert inside.mean() > 0.1  # the mask, black: no difference
    assert not ((below[..., 0] > 200) & (below[..., 2] < 50)).any()
    assert AMPLIFIED > 1


def test_a_method_unsuited_is_left_out_with_its_reason(hilo, given):
    done = hilo("compare", *given, "--methods", "todo factor=99,tome", "--json")
    found = json.loads(done.out)
    assert [row["method"] for row in found["rows"]] == ["dense", "tome"]
    assert list(found["refused"]) == ["todo factor=99"]
    assert "factor must lie in [1, 8]" in found["refused"]["todo factor=99"]
    done = hilo("compare", *given, "--methods", "todo factor=99,tome")
    assert "left out todo factor=99: factor must lie in" in done.err


def test_methods_are_named_between_commas_with_their_options():
    text = "hilo, tome stride=(2,4)  ratio=0.7 ,hilo bucket=8 + todo factor=3,"
    names = method_names(text)
    assert names == ["hilo", "tome stride=(2,4) ratio=0.7", "hilo bucket=8 + todo factor=3"]
    made = [method_from(*name.split()) for name in names]
    assert made == [
        HiLo(), ToMe(stride=(2, 4), ratio=0.7), Within(HiLo(bucket=8), ToDo(factor=3)),
    ]  # fmt: skip
    for name in METHODS:
        assert type(method_from(name)) is METHODS[name]
    assert method_from("tome", "blocks=1-5,7") == ToMe(blocks="1-5,7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tome ratio=0.9", r"\[0, 0.75\]"),
        ("tome rate=0.5", "tome has no option 'rate'; choose from"),
        ("tomé", "unknown method"),
        ("tome ratio=many", "ratio is a share"),
        ("hilo +", r"after \+ comes"),
        ("hilo + sdtm", "needs a whole grid"),
        ("tome + todo", "must plan a sequence"),
        ("todo factor=(2,2)", "factor must be a whole number"),
    ],
)
def test_words_that_name_no_method_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        method_from(*text.split())


def test_one_inside_another_is_what_compress_makes_of_both():
    from tiny import latents, make_pipe

    from hilotoken import compress

    pipe = make_pipe()
    one, other = compress(pipe, Within(FEW, ToDo())), compress(pipe, FEW, inside=ToDo())
    assert (latents(one) == latents(other)).all()
    assert one.last_run.method == Within(FEW, ToDo())
    assert one.last_run.inside == other.last_run.inside


@pytest.fixture
def given(tmp_path):
    """The arguments of a small comparison."""
    photo = write_photo(tmp_path, "RGB")
    write_mask(tmp_path, load_photo(photo), BOX)
    return (
        photo, "--mask", tmp_path / "mask.png", "-o", tmp_path / "sheet.png", "--steps", 1,
        "--size", 128, "--model", saved_model(),
    )  # fmt: skip


def test_the_command_leaves_a_sheet_a_csv_and_a_table(hilo, given, tmp_path):
    rows = tmp_path / "rows.csv"
    names = "tome ratio=0.25,hilo bucket=8 + todo,fewer_steps"
    done = hilo("compare", *given, "--methods", names, "--csv", rows)
    assert (done.code, "wrote" in done.err) == (0, True)
    assert "tome ratio=0.25" in done.out
    assert Image.open(tmp_path / "sheet.png").width > 4 * PANEL
    with rows.open() as stream:
        written = list(csv.DictReader(stream))
    assert [row["method"] for row in written] == ["dense", *names.split(",")]
    assert written[0]["command"].startswith("hilo compare ")
    done = hilo("compare", *given, "--methods", "dense,todo", "--json")
    found = json.loads(done.out)
    assert [row["method"] for row in found["rows"]] == ["dense", "todo"]
    assert found["written"] == [str(tmp_path / "sheet.png")]


def test_a_bad_method_is_said_before_anything_is_run(hilo, given, tmp_path):
    done = hilo("compare", *given, "--methods", "tome ratio=2")
    assert done.code == 2
    assert "[0, 0.75]" in done.err
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("method", ["tome", "downsample"])
def test_a_plan_is_drawn_of_what_plans(hilo, given, method):
    done = hilo("plan", *given[:5], "--method", method)
    assert done.code == 2
    assert f"{method} plans no tokens to draw" in done.err


def test_an_edit_takes_any_method(hilo, given, tmp_path):
    options = "--method", "tome", "--set", "ratio=0.25", "--json"
    done = hilo("edit", *given[:4], tmp_path / "out.png", *given[5:], *options)
    assert done.code == 0
    assert json.loads(done.out)["inside"] == {"queries": 0.75, "keys": 0.75, "feed_forward": 1.0}
