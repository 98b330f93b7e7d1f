"""The benchmarks: rows that can be made again, and figures that mean what they say."""

import csv
import subprocess

import numpy as np
import pandas as pd
import pytest
from toys import saved_model

from hilotoken import load_model
from hilotoken.bench.measure.arch import Subject
from hilotoken.bench.measure.speed import SpeedRow, bench_speed, cases
from hilotoken.bench.results.readings import FEWEST, Figure, grouped, interval, verdict
from hilotoken.bench.results.rows import append_rows, check_rows, origin
from hilotoken.bench.show.cells import spread
from hilotoken.data.cases import CLASSES

SIDE, EVERY = 128, ",".join(CLASSES)


@pytest.fixture(scope="module")
def model():
    pipe = load_model(saved_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _dense_rows(model):
    return list(bench_speed(Subject(model), {}, cases(EVERY, SIDE), steps=1, repeats=1))


def test_rows_are_appended_with_their_origin_and_never_to_rows_of_another_kind(tmp_path, model):
    rows = _dense_rows(model)
    path = tmp_path / "results" / "speed.csv"
    append_rows(path, rows[:1])
    append_rows(path, rows[1:])
    with path.open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == len(rows)
    assert read[0]["mask_class"] == rows[0].mask_class
    for name in ("command", "commit", "machine", "torch", "diffusers", "date"):
        assert read[0][name]
    path.write_text("other,rows\n1,2\n")
    with pytest.raises(ValueError, match="another kind"):
        append_rows(path, rows)
    with pytest.raises(ValueError, match="another kind"):
        check_rows(path, SpeedRow)
    assert path.read_text() == "other,rows\n1,2\n"


def test_a_commit_is_dirty_by_code_and_not_by_rows(tmp_path, monkeypatch):
    for words in ("init -q", "config user.name a", "config user.email a@b"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    (tmp_path / "inner").mkdir()
    code, rows = tmp_path / "a.py", tmp_path / "rows.csv"
    for file in (code, rows):
        file.write_text("1\n")
    monkeypatch.chdir(tmp_path / "inner")
    assert origin()["commit"] == "unknown"
    subprocess.run("git add -A .. && git commit -qm a", shell=True, check=True)
    clean = origin()["commit"]
    rows.write_text("2\n")
    assert origin()["commit"] == clean
    code.write_text("2\n")
    assert origin()["commit"] == f"{clean}-dirty"


def test_the_interval_holds_the_mean_and_narrows_with_more_values():
    rng = np.random.default_rng(1)
    mean, low, high, photos = interval(rng.normal(3, 1, 20).tolist())
    assert photos == 20
    assert low < mean < high
    _, tight_low, tight_high, _ = interval(rng.normal(3, 1, 2000).tolist())
    assert tight_high - tight_low < high - low
    assert tight_low < 3 < tight_high


def test_groups_keep_the_order(model):
    rows = _dense_rows(model)
    assert list(grouped(pd.DataFrame(rows), "mask_class")) == list(CLASSES)
    assert interval([]) is None


@pytest.mark.parametrize("photos", [1, FEWEST - 1, FEWEST])
def test_few_photographs_cannot_tell(photos):
    change = Figure(-0.5, -0.6, -0.4, photos)
    few = photos < FEWEST
    assert verdict(change) == ("too few to tell" if few else "better")
    assert spread(change, 1) == "-0.5 " + ("(too few to tell)" if few else "(-0.6 to -0.4)")
