"""Classification by the model itself: same noise for all labels, and the label is what differs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_photo
from toys import small_transformer

from hilotoken.bench.measure.classify import LabelCompass, bench_classify, choose
from hilotoken.bench.results.readings import read_rows
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.markdown import tables
from hilotoken.data.manifest import read_manifest
from hilotoken.methods import Dense, ToMe
from hilotoken.model import load_model
from hilotoken.train import autoencoder
from hilotoken.train.autoencoder import new_autoencoder
from hilotoken.train.labels import Labels
from hilotoken.train.run import export

NAMES = ("cow", "fish", "owl")
METHODS = {"tome ratio=0.5": ToMe(ratio=0.5)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "WIDTH", 8)
        torch.manual_seed(0)
        labels = Labels(NAMES, np.zeros(1, int), torch.zeros(1), torch.zeros(1))
        where = tmp_path_factory.mktemp("pipeline")
        return export(new_autoencoder(), small_transformer(), 1.0, where, labels)


@pytest.fixture
def pipe(folder):
    pipe = load_model(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rows = ["file,split,kind"]
    for i, kind in enumerate(("cow", "owl", "owl", "cow", "dog", "dog", "fish", "cow")):
        make_photo(130, 140, seed=i).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'train' if i == 7 else 'val'},{kind}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def test_photographs_are_chosen_evenly_and_held_out(photos):
    chosen = choose(read_manifest(photos, "kind"), NAMES, 2)
    assert sorted(entry.label for entry in chosen) == ["cow", "cow", "owl", "owl"]
    assert {entry.split for entry in chosen} == {"val"}
    assert {entry.label for entry in choose(read_manifest(photos, "kind"), NAMES, 1)} == set(NAMES)


@pytest.mark.parametrize(("known", "per_label"), [(NAMES, 3), (("dog",), 1), ((), 1)])
def test_too_few_to_choose_from(photos, known, per_label):
    with pytest.raises(ValueError, match=f"labels of the model have {per_label} photographs"):
        choose(read_manifest(photos, "kind"), known, per_label)


def test_all_labels_get_the_same_noise_and_the_whole_photo_is_hidden(pipe):
    compass = LabelCompass(pipe, make_photo(128, 128), NAMES, 3, 2)
    assert compass.inside_N.all()
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    errors = compass.errors_by_picture(Dense())
    assert errors.shape == (2, 3)
    assert len(seen) == 2
    for call in seen:
        x = call["hidden_states"]
        assert torch.equal(x[:1].expand_as(x), x)
        assert torch.equal(call["pooled_projections"][:, :3], torch.eye(3))
    levels = [call["timestep"][0] for call in seen]
    x0, noise = compass.x0_BNC, compass.noise_BNC
    for call, sigma in zip(seen, levels, strict=True):
        expected = (1 - sigma) * x0 + sigma * noise
        torch.testing.assert_close(call["hidden_states"][..., :32], expected)


def test_the_error_is_that_of_each_label_alone(pipe):
    together = LabelCompass(pipe, make_photo(128, 128), NAMES, 3, 2).errors_by_picture(Dense())
    for i, name in enumerate(NAMES):
        alone = LabelCompass(pipe, make_photo(128, 128), [name], 3, 2).errors_by_picture(Dense())
        torch.testing.assert_close(alone[:, 0], together[:, i])
    assert len(set(together[0].tolist())) == 3


def test_who_knows_the_label_is_right(pipe, photos, monkeypatch):
    """With errors that are least at the photo's own label, every row is correct; else none is."""
    entries = choose(read_manifest(photos, "kind"), NAMES, 1)
    for right in (True, False):
        for entry in entries:
            own = NAMES.index(entry.label)
            best = own if right else (own + 1) % 3
            errors = torch.full((2, 3), 0.5).index_fill(1, torch.tensor([best]), 0.25)
            monkeypatch.setattr(LabelCompass, "errors_by_picture", lambda *_, e=errors: e)
            (row,) = bench_classify(pipe, entry, NAMES, {}, size=128, calls=2)
            assert row.predicted == NAMES[best]
            assert row.correct == right
            assert row.lead == pytest.approx(1 if right else -0.5)


def test_rows_resume_and_make_a_table(pipe, photos, tmp_path):
    (entry,) = choose(read_manifest(photos, "kind"), NAMES, 1)[:1]
    rows = list(bench_classify(pipe, entry, NAMES, METHODS, size=128, calls=1))
    assert [row.method for row in rows] == ["dense", "tome ratio=0.5"]
    done = {(entry.file.name, "dense")}
    again = list(bench_classify(pipe, entry, NAMES, METHODS, size=128, calls=1, done=done))
    assert [(row.method, row.lead) for row in again] == [("tome ratio=0.5", rows[1].lead)]
    append_rows(tmp_path / "rows.csv", rows)
    readings = read_rows(tmp_path / "rows.csv")
    assert readings.kind == "classify"
    table = tables(readings, {"tome ratio=0.5": "merged"})
    assert "| merged | 1 |" in table
    assert "By chance 33.3 %, of 3 labels." in table


def test_the_command(hilo, folder, photos, tmp_path):
    rows = tmp_path / "rows.csv"
    command = ["bench", "classify", photos, "-o", rows, "--labels", "kind", "--per-label", 1]
    command += ["--calls", 1, "--size", 128, "--model", folder]
    said = hilo(*command, "--limit", 2)
    assert said.code == 0, said.err
    assert "accuracy" in said.out
    first = rows.read_text()
    assert hilo(*command, "--method", "tome ratio=0.5").code == 0
    assert rows.read_text().startswith(first)
    assert len(read_rows(rows).rows) == 6
    said = hilo("bench", "plot", rows, "-o", tmp_path / "plot.png")
    assert said.code == 2
    assert "no cost to plot" in said.err
