"""A folder of photos: what is paired, done, listed, and done only once."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_mask, make_photo
from toys import saved_model

from hilotoken import edit_photos
from hilotoken.batch import BatchOptions, Record, Row, in_groups, read_rows
from hilotoken.model import load_model

BOX = (60, 50, 110, 90)
NOTHING = Row(Path(), Path(), Path())
QUICK = ("--model", saved_model(), "--steps", 1, "--size", 128)


@pytest.fixture(scope="module")
def pipe():
    pipe = load_model(saved_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def folder(tmp_path):
    """Photos a, b and c, and a mask for each."""
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for i, name in enumerate("abc"):
        make_photo(150, 170, seed=i).save(tmp_path / f"photos/{name}.png")
        make_mask(150, 170, BOX).save(tmp_path / f"masks/{name}_mask.png")
    return tmp_path


@pytest.fixture
def batch(hilo, folder):
    def run(*arguments: object):
        return hilo(
            "batch", folder / "photos", "--masks", folder / "masks", "-o", folder / "out",
            *QUICK, "--json", *arguments,
        )  # fmt: skip

    return run


@contextmanager
def counted_calls(pipe, calls: list[int]):
    """Of the pipeline, by how many pictures each was."""
    original = type(pipe).__call__

    @wraps(original)
    def counted(self, *args, **kwargs):
        calls.append(len(kwargs["image"]) if isinstance(kwargs["image"], list) else 1)
        return original(self, *args, **kwargs)

    type(pipe).__call__ = counted
    try:
        yield
    finally:
        type(pipe).__call__ = original


def said(done) -> dict:
    return json.loads(done.out)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out/batch.jsonl").read_text().splitlines()]


def changed(folder: Path, name: str) -> np.ndarray:
    before, after = (
        np.asarray(Image.open(folder / place / f"{name}.png")) for place in ("photos", "out")
    )
    return (before != after).any(-1)


def test_a_folder_is_edited_once(batch, folder):
    done = batch()
    assert done.code == 0, done.err
    assert said(done)["done now"] == 3
    inside = np.asarray(make_mask(150, 170, BOX)) > 0
    for name in "abc":
        assert not changed(folder, name)[~inside].any()
        assert changed(folder, name)[inside].any()
    states = [line["state"] for line in lines(folder)]
    assert states == ["began", "done"] * 3
    again = batch()
    assert said(again) == {
        "rows": 3, "done before": 3, "done now": 0, "failed": 0, "failures": {},
    }  # fmt: skip
    assert len(lines(folder)) == 6


def test_another_option_or_photo_is_another_edit(batch, folder):
    batch()
    make_photo(150, 170, seed=9).save(folder / "photos/b.png")
    assert said(batch())["done now"] == 1
    assert said(batch("--seed", 3))["done now"] == 3


def test_failures_are_listed_and_skipped(batch, folder):
    (folder / "masks/a_mask.png").unlink()
    make_mask(10, 10, (0, 0, 5, 5)).save(folder / "masks/b_mask.png")
    done = batch()
    assert done.code == 1
    assert said(done)["done now"] == 1
    failures = said(done)["failures"]
    assert "a_mask.png" in failures[str(folder / "out/a.png")]
    assert "resize the mask" in failures[str(folder / "out/b.png")]
    make_mask(150, 170, BOX).save(folder / "masks/a_mask.png")
    assert said(batch())["done now"] == 1


def test_what_was_there_before_stays(batch, folder):
    (folder / "out").mkdir()
    (folder / "out/b.png").write_bytes(b"mine")
    done = batch()
    assert done.code == 1
    assert said(done)["done now"] == 2
    assert (folder / "out/b.png").read_bytes() == b"mine"


def test_a_dry_run_counts_and_writes_nothing(batch, folder):
    (folder / "masks/c_mask.png").unlink()
    found = said(batch("--dry-run"))
    assert (found["to do"], found["cannot be done"]) == (2, 1)
    assert 0 < found["tokens times steps"] <= found["of a dense run's"] == 2 * 64
    assert not (folder / "out").exists()


def test_a_csv_says_more(hilo, folder):
    (folder / "rows.csv").write_text(
        "photo,mask,seed,output\nphotos/a.png,masks/a_mask.png,4,first.png\n"
        "photos/a.png,masks/b_mask.png,5,second.png\n"
    )
    done = hilo("batch", folder / "rows.csv", "-o", folder / "out", *QUICK, "--json")
    assert said(done)["done now"] == 2, done.err
    first, second = (Image.open(folder / f"out/{name}.png") for name in ("first", "second"))
    assert first.tobytes() != second.tobytes()


def test_two_rows_of_one_photo_fail_as_two(hilo, folder):
    (folder / "rows.csv").write_text(
        "photo,mask,output\nphotos/none.png,masks/a_mask.png,first.png\n"
        "photos/none.png,masks/a_mask.png,second.png\n"
    )
    given = ("batch", folder / "rows.csv", "-o", folder / "out", *QUICK, "--json", "--dry-run")
    found = said(hilo(*given))
    assert found["cannot be done"] == 2
    assert found["failures"].keys() == {str(folder / f"out/{x}.png") for x in ("first", "second")}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("photo,mask,colour\n", "colour"),
        ("photo\na.png\n", "--masks"),
        ("photo,mask,seed\na.png,b.png,x\n", "line 2"),
        ("photo,mask,steps\na.png,b.png,0\n", "steps"),
        ("photo,mask\na.png,b.png\nc/a.jpg,b.png\n", "rename a photo"),
        ("photo,mask\n", "no photos"),
        ("photo,mask\n,b.png\n", "no photo"),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused(tmp_path, text, error):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_rows(tmp_path / "rows.csv", None, tmp_path / "out", NOTHING, ".png")


def test_one_mask_for_all_and_masks_beside_their_photos(folder):
    rows = read_rows(folder / "photos", folder / "masks/a_mask.png", folder, NOTHING, ".png")
    assert {row.mask.name for row in rows} == {"a_mask.png"}
    for name in "abc":
        (folder / f"masks/{name}_mask.png").rename(folder / f"photos/{name}_mask.png")
    rows = read_rows(folder / "photos", folder / "photos", folder, NOTHING, ".webp")
    assert [(row.mask.name, row.output.name) for row in rows] == [
        (f"{name}_mask.png", f"{name}.webp") for name in "abc"
    ]


def test_the_iterator_goes_on_after_a_failure(pipe, folder):
    rows = read_rows(folder / "photos", folder / "masks", folder, NOTHING, ".tiff")
    rows[1].mask.unlink()
    results = list(edit_photos(rows, pipe, BatchOptions(steps=1, size=128)))
    assert [result.edit is not None for result in results] == [True, False, True]
    assert "b_mask.png" in str(results[1].error)


def test_seeds_of_one_edit_are_made_together_and_are_what_each_is_alone(pipe, folder):
    [row, other, _] = read_rows(folder / "photos", folder / "masks", folder, NOTHING, ".png")
    rows = [replace(row, seed=i, output=folder / f"{i}.png") for i in range(3)] + [other]
    options = BatchOptions(steps=1, size=128, together=2)
    assert [len(group) for group in in_groups(rows, options)] == [2, 2]
    together = [result.edit.photo.pixels for result in edit_photos(rows, pipe, options)]
    for i, one in enumerate(rows):
        [alone] = edit_photos([one], pipe, options)
        apart = np.abs(alone.edit.photo.pixels.astype(int) - together[i])
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3
    assert Record(folder / "r", options).key(row) == Record(
        folder / "r", BatchOptions(steps=1, size=128)
    ).key(row)  # how many are made together makes no other edit


def test_photos_are_made_together_and_are_what_each_is_alone(pipe, folder):
    """Of two shapes, one of more steps, one that cannot be read."""
    make_photo(150, 240, seed=7).save(folder / "photos/d.png")
    make_mask(150, 240, box=(8, 70, 230, 100)).save(folder / "masks/d_mask.png")
    rows = read_rows(folder / "photos", folder / "masks", folder, NOTHING, ".png")
    longer = replace(rows[0], steps=3, output=folder / "longer.png")
    rows = [*rows, longer, replace(rows[1], output=folder / "again.png", seed=3)]
    rows[2].photo.write_bytes(b"no picture")
    options = BatchOptions(method="fast", steps=2, size=128, together=4)
    assert [len(group) for group in in_groups(rows, options)] == [4, 1, 1]
    calls: list[int] = []
    with counted_calls(pipe, calls):
        together = list(edit_photos(rows, pipe, options))
    assert calls == [2, 1, 1, 1]  # two of one size, the third; then each by itself
    assert [result.row for result in together] == rows
    assert "c.png" in str(together[2].error)
    for one in (one for one in together if one.edit):
        [alone] = edit_photos([one.row], pipe, options)
        apart = np.abs(alone.edit.photo.pixels.astype(int) - one.edit.photo.pixels)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3
        assert alone.edit.run.plan.counts == one.edit.run.plan.counts


def test_one_row_of_several_made_together_may_fail_alone(pipe, folder):
    [row, *_] = read_rows(folder / "photos", folder / "masks", folder, NOTHING, ".png")
    rows = [
        replace(row, seed=i, output=folder / f"{i}{end}") for i, end in enumerate((".png", ".gif"))
    ]
    results = list(edit_photos(rows, pipe, BatchOptions(steps=1, size=128)))
    assert [result.edit is not None for result in results] == [True, False]
    assert ".gif" in str(results[1].error)


def test_an_edit_finished_just_before_a_kill_is_not_done_again(folder):
    [row, *_] = read_rows(folder / "photos", folder / "masks", folder, NOTHING, ".png")
    record = Record(folder / "record", BatchOptions())
    record.begin(row)
    assert record.state(row) == "to do"
    row.output.write_bytes(b"a whole picture")
    with (folder / "record").open("a") as file:
        file.write('{"state": "do')  # the line that the kill cut short
    again = Record(folder / "record", BatchOptions())
    assert again.state(row) == "done"
    assert Record(folder / "record", BatchOptions(steps=2)).state(row) == "to do"
    again.note(row, 1, 2, 3.0)
    assert Record(folder / "record", BatchOptions()).mean_seconds == 3.0


def test_a_killed_run_is_gone_on_with(hilo, folder):
    """A real process, killed in the middle; results are those of a run that was not."""
    for i in range(12):
        make_photo(150, 170, seed=10 + i).save(folder / f"photos/{i}.png")
    arguments = ["batch", folder / "photos", "--masks", folder / "masks/a_mask.png"]
    arguments += ["-o", folder / "out", "--model", saved_model(), "--steps", 12, "--size", 128]
    command = [sys.executable, "-c", "from hilotoken.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))
    end = time.monotonic() + 120
    while not list((folder / "out").glob("*.png")):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.png")}
    assert 0 < len(before) < 15
    done = hilo(*arguments, "--json")
    assert said(done)["done before"] == len(before)
    assert said(done)["done now"] == 15 - len(before)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert not list((folder / "out").glob(".hilo-*"))
