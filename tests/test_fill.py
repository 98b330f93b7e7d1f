"""`hilo bench fill`: every photograph under every mask by every method, once."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from tiny import make_photo
from toys import interrupt_at, saved_model, small_transformer, some_distance

from hilotoken import load_model
from hilotoken.bench.measure import fill as filling
from hilotoken.bench.measure.fill import bench_fill, fill_sheet, raw_pictures
from hilotoken.bench.measure.matched import Costs
from hilotoken.bench.measure.sets import Features
from hilotoken.bench.results.readings import read_rows
from hilotoken.cli import bench_fill as fill_cli
from hilotoken.data.cases import CLASSES, cases_of, square

SIDE = 128
SETTINGS = {"dense": "dense", "hilo": "hilo bucket=8"}


@pytest.fixture(scope="module")
def model():
    pipe = load_model(saved_model())
    pipe.register_modules(transformer=small_transformer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def perceptual():
    return some_distance()


@pytest.fixture
def files(tmp_path):
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / name for name in ("a.png", "b.png")]
    for seed, path in enumerate(paths):
        photo = np.asarray(make_photo(SIDE, SIDE + 16)).copy()
        Image.fromarray(np.roll(photo, 7 * seed, 0)).save(path)
    return paths


@pytest.fixture
def one_class(monkeypatch):
    for name in ("large", "medium"):  # put back from the last on: in their order
        monkeypatch.delitem(CLASSES, name)


def _rows(model, perceptual, files, settings=SETTINGS, seeds=1, **given):
    costs = Costs(model, 1)
    return [
        row
        for file in files
        for case in cases_of(file, SIDE, seeds)
        for row, _ in bench_fill(model, case, settings, perceptual, costs, **given)
    ]


def test_every_class_and_method_gives_a_row_and_dense_equals_itself(model, perceptual, files):
    rows = _rows(model, perceptual, files[:1])
    names = {"dense", "hilo", "telea", "navier-stokes"}
    assert {(row.photo, row.mask_class, row.method) for row in rows} == {
        ("a.png", mask_class, name) for mask_class in CLASSES for name in names
    }
    for row in rows:
        assert row.mask_share == pytest.approx(CLASSES[row.mask_class], rel=0.05)
        same = row.method == "dense" or row.tokens_run == row.tokens_full > 0
        assert (row.lpips_dense == 0) == same
        assert row.psnr < 60
        assert row.ssim < 1
        assert row.outside_equal
        assert min(row.step, row.step_photo, row.colour, row.colour_photo) > 0
        # Random weights miss the photo's colours, which are led there; OpenCV's are there already.
        assert (row.edit_lpips == row.lpips) == (row.edit_psnr == row.psnr) == (not row.tokens_run)


@pytest.mark.usefixtures("one_class")
def test_any_subset_of_the_photographs_gives_the_same_rows(model, perceptual, files):
    alone, both = (_rows(model, perceptual, some) for some in (files[1:], files))
    again = [row for row in both if row.photo == "b.png"]
    assert [(r.psnr, r.lpips) for r in alone] == [(r.psnr, r.lpips) for r in again]


@pytest.mark.usefixtures("one_class")
def test_the_raw_picture_is_judged_around_the_mask_and_outside_where_there_is_one(
    model, perceptual, files
):
    settings = SETTINGS | {"crop": "crop_stitch margin=0"}
    for row in _rows(model, perceptual, files[:1], settings):
        raw = {name: value for name, value in asdict(row).items() if name in filling._RAW}
        assert len(raw) == 8
        if row.method in ("dense", "hilo"):
            assert row.outside_psnr < 60  # random weights: nothing like the photo
            assert row.ring_lpips > 0
            assert (row.ring_lpips_dense == 0) == (row.lpips_dense == 0)
        else:
            assert set(raw.values()) == {None}


def test_raw_pictures_are_the_pipelines_own_and_nothing_stays_behind(model, files):
    case = next(cases_of(files[0], SIDE))
    with raw_pictures(model) as seen:
        output = model(**case.arguments, num_inference_steps=1, generator=case.noise())
    assert np.array_equal(np.asarray(seen[-1][0]), np.asarray(output.images[0]))
    assert "postprocess" not in vars(model.image_processor)


@pytest.mark.usefixtures("one_class")
def test_seeds_share_the_mask_and_classical_fills_are_made_once(model, perceptual, files):
    rows = _rows(model, perceptual, files[:1], {"dense": "dense"}, seeds=2)
    first = _rows(model, perceptual, files[:1], {"dense": "dense"})
    dense = [row for row in rows if row.method == "dense"]
    assert len(rows) - len(dense) == 2 * len(CLASSES)
    for name in CLASSES:
        one, other = (row for row in dense if row.mask_class == name)
        assert one.mask_share == other.mask_share
        assert one.psnr != other.psnr
    mine = [row.psnr for row in dense[::2]]
    assert mine == [row.psnr for row in first if row.method == "dense"]


@pytest.mark.usefixtures("one_class")
def test_what_is_done_is_not_measured_again(model, perceptual, files):
    *others, last = _rows(model, perceptual, files[:1])
    done = {(row.photo, row.mask_class, row.method, row.seed) for row in others}
    (row,) = _rows(model, perceptual, files[:1], done=done)
    assert (row.method, row.psnr, row.lpips_dense) == ("hilo", last.psnr, last.lpips_dense)


def _command(files, output, **given):
    given = {"steps": 1, "size": SIDE, "method": ["hilo bucket=8"]} | given
    fill_cli.fill(files[0].parent, files[0], output=output, **given)


@pytest.fixture
def toys(monkeypatch, model, perceptual):
    """What the command runs on."""
    monkeypatch.setattr("hilotoken.model.load_model", lambda name, device: model)
    monkeypatch.setattr("hilotoken.metrics.lpips.load_lpips", lambda path, net: perceptual)


@pytest.mark.usefixtures("toys", "one_class")
def test_a_command_that_was_interrupted_goes_on(files, tmp_path, capsys, monkeypatch):
    _command(files, tmp_path / "whole.csv")
    printed = capsys.readouterr().out
    for said in ("gradient energy", "raw, around", "kernel distance"):
        assert said in printed
    with monkeypatch.context() as patch:
        interrupt_at(patch, filling, "pooled", 7)  # in the second photograph
        with pytest.raises(KeyboardInterrupt):
            _command(files, tmp_path / "half.csv")
    assert 0 < len(read_rows(tmp_path / "half.csv").rows) < 8
    _command(files, tmp_path / "half.csv")
    half, whole = (
        read_rows(tmp_path / name).rows.set_index(["photo", "mask_class", "method"])["lpips"]
        for name in ("half.csv", "whole.csv")
    )
    assert half.to_dict() == whole.to_dict()
    features = [Features.beside(tmp_path / name).of for name in ("half.csv", "whole.csv")]
    assert features[0].keys() == features[1].keys()
    sets = [read_rows(tmp_path / f"{name}_sets.csv").rows for name in ("half", "whole")]
    assert list(sets[0]["distance"]) == list(sets[1]["distance"])
    sums = tmp_path / "model" / "checksums.json"
    sums.parent.mkdir()
    sums.write_text("{}")
    other = str(sums.parent)
    for changed in ({"steps": 2}, {"size": 256}, {"model": other}):
        with pytest.raises(ValueError, match="name a new file"):
            _command(files, tmp_path / "whole.csv", **changed)
    _command(files, tmp_path / "versions.csv", model=other, limit=1)
    with pytest.raises(ValueError, match=r"'alex'.* would be .*'vgg'"):
        _command(files, tmp_path / "versions.csv", model=other, net="vgg", limit=1)
    sums.write_text('{"weights": "others"}')
    with pytest.raises(ValueError, match=r"model [0-9a-f]{8}.* would be .*model [0-9a-f]{8}"):
        _command(files, tmp_path / "versions.csv", model=other, limit=1)


@pytest.mark.usefixtures("toys", "one_class")
def test_a_matched_method_is_named_shortly_and_its_row_says_how_it_ran(
    files, tmp_path, monkeypatch
):
    found = {"tome": "tome ratio=0.25", "todo": "todo factor=3"}
    monkeypatch.setattr(
        "hilotoken.bench.measure.matched.matched_settings", lambda *given: {"small": dict(found)}
    )
    given = {"matched": True, "limit": 1, "method": ["hilo bucket=8", "todo"]}
    _command(files, tmp_path / "m.csv", **given)
    rows = {row.method: row for row in read_rows(tmp_path / "m.csv").rows.itertuples()}
    assert rows["tome"].setting == "tome ratio=0.25"
    assert rows["todo"].setting == "todo"  # as it was given
    assert 0 < rows["tome"].flop_share < rows["dense"].flop_share == 1
    found["tome"] = "tome ratio=0.5"
    with pytest.raises(ValueError, match=r"'tome ratio=0\.25'.*name a new file"):
        _command(files, tmp_path / "m.csv", **given)


@pytest.mark.usefixtures("toys", "one_class")
def test_a_preset_is_filled_by_its_name(files, tmp_path):
    spelt = "hilo detail=1.0 coarse=0 refresh=1"
    _command(files, tmp_path / "p.csv", limit=1, method=["balanced", spelt])
    rows = read_rows(tmp_path / "p.csv").rows.set_index("method")[["tokens_run", "lpips"]]
    assert rows.loc["balanced"].tolist() == rows.loc[spelt].tolist()


def test_rows_of_another_kind_and_wrong_methods_are_refused_early(files, tmp_path):
    (tmp_path / "other.csv").write_text("photo,psnr\n1,2\n")
    with pytest.raises(ValueError, match="another kind"):
        _command(files, tmp_path / "other.csv")
    with pytest.raises(ValueError, match="unknown method"):
        _command(files, tmp_path / "new.csv", method=["hillo"])


def test_a_sheet_shows_every_case(model, files, tmp_path):
    settings = dict.fromkeys(CLASSES, SETTINGS)
    fill_sheet(model, files, settings, tmp_path / "s.png", size=SIDE, steps=1, height=100)
    picture = Image.open(tmp_path / "s.png")
    assert picture.width > 2 * 4 * 100
    assert 100 < picture.height < 200  # two cases, side by side


@pytest.mark.parametrize("size", [(40, 30), (300, 200), (128, 128)])
def test_square_is_the_middle(tmp_path, size):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "p.png")
    cut = square(tmp_path / "p.png", 64)
    assert cut.shape == (64, 64, 3)
    assert (cut == (10, 20, 30)).all()
