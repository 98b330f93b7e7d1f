"""The benchmarks: rows that can be made again, and figures that mean what they say."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_photo
from toys import saved_model

from hilotoken import Dense, HiLo, load_model
from hilotoken.bench.arch import Subject
from hilotoken.bench.fill import (
    CLASSES,
    _distances,
    bench_fill,
    fill_sheet,
    fill_table,
    seam,
    square,
)
from hilotoken.bench.rows import append_rows, grouped, interval
from hilotoken.bench.speed import bench_speed, cases
from hilotoken.train.lpips import LPIPS

SIDE, EVERY = 128, ",".join(CLASSES)


@pytest.fixture(scope="module")
def model():
    pipe = load_model(saved_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def perceptual():
    torch.manual_seed(0)
    model = LPIPS().requires_grad_(False)
    for head in model.heads:
        head.weight.abs_()
    return model


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for seed, path in enumerate(paths):
        photo = np.asarray(make_photo(SIDE, SIDE + 16)).copy()
        Image.fromarray(np.roll(photo, 7 * seed, 0)).save(path)
    return paths


def _dense_rows(model):
    return list(bench_speed(Subject(model), {}, cases(EVERY, SIDE), steps=1, repeats=1))


def test_every_class_and_method_gives_a_row_and_dense_equals_itself(model, perceptual, files):
    methods = {"dense": Dense(), "hilo": HiLo(bucket=8)}
    rows = list(bench_fill(model, files, methods, perceptual, size=SIDE, steps=1))
    names = {"dense", "hilo", "telea", "navier-stokes"}
    assert {(row.photo, row.mask_class, row.method) for row in rows} == {
        (file.name, mask_class, name) for file in files for mask_class in CLASSES for name in names
    }
    for row in rows:
        assert row.mask_share == pytest.approx(CLASSES[row.mask_class], rel=0.05)
        same = row.method == "dense" or row.tokens_run == row.tokens_full > 0
        assert (row.lpips_dense == 0) == same
        assert row.psnr < 60
        assert min(row.step, row.step_photo, row.colour, row.colour_photo) > 0
    alone = list(bench_fill(model, files[1:], methods, perceptual, size=SIDE, steps=1))
    again = [row for row in rows if row.photo == "b.png"]
    assert [(r.psnr, r.lpips) for r in alone] == [(r.psnr, r.lpips) for r in again]


def test_distances_count_the_mask_alone(perceptual):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[16:32, 16:32] = True
    filled = truth.copy()
    filled[mask] = truth[mask] // 2
    psnr, lpips = _distances(perceptual, filled, truth, mask)
    error = (filled[mask].astype(float) - truth[mask]) ** 2
    assert psnr == pytest.approx(10 * math.log10(255**2 / error.mean()))
    assert lpips > 0
    assert _distances(perceptual, truth, truth, mask)[1] == 0


@pytest.fixture
def mask():
    mask = np.zeros((96, 96), bool)
    mask[30:60, 40:80] = True
    return mask


def test_an_untouched_photo_has_its_own_seam_and_a_pasted_patch_a_larger_one(mask):
    photo = np.asarray(make_photo(96, 96))
    own = seam(photo, photo, mask)
    assert min(own) > 0
    outside = np.where(mask[..., None], photo, np.uint8(7))  # is not looked at
    assert seam(outside, photo, mask) == own
    for level in (0, 255):
        patch = np.full_like(photo, level)
        assert all(np.greater(seam(patch, photo, mask), 2 * np.array(own)))
    interior = photo.copy()
    interior[42:48, 54:66] = 255  # as far as can be from the border
    step, colour = seam(interior, photo, mask)
    assert step == own[0]
    assert colour == pytest.approx(own[1], rel=0.02)


@pytest.mark.parametrize("jump", [0, 1, 40])
def test_a_seam_is_in_levels(mask, jump):
    photo = np.full((96, 96, 3), 100, np.uint8)
    assert seam(photo + np.uint8(jump), photo, mask) == pytest.approx((jump, jump), abs=1e-3)


@pytest.mark.parametrize("level", [False, True])
def test_a_mask_without_a_border_has_no_seam(level):
    photo = np.asarray(make_photo(64, 64))
    assert seam(photo // 2, photo, np.full((64, 64), level)) == (0, 0)


def test_a_sheet_shows_every_case_and_the_table_every_class(model, perceptual, files, tmp_path):
    methods = {"dense": Dense(), "hilo": HiLo(bucket=8)}
    fill_sheet(model, files, methods, tmp_path / "s.png", size=SIDE, steps=1, height=100)
    picture = Image.open(tmp_path / "s.png")
    assert picture.width > 2 * 4 * 100
    assert 100 < picture.height < 200  # two cases, side by side
    rows = list(bench_fill(model, files[:1], methods, perceptual, size=SIDE, steps=1))
    assert fill_table(rows).row_count == len(CLASSES) * 4


@pytest.mark.parametrize("size", [(40, 30), (300, 200), (128, 128)])
def test_square_is_the_middle(tmp_path, size):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "p.png")
    cut = square(tmp_path / "p.png", 64)
    assert cut.shape == (64, 64, 3)
    assert (cut == (10, 20, 30)).all()


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
    assert path.read_text() == "other,rows\n1,2\n"


def test_the_interval_holds_the_mean_and_narrows_with_more_values():
    rng = np.random.default_rng(1)
    mean, low, high = interval(rng.normal(3, 1, 20).tolist())
    assert low < mean < high
    _, tight_low, tight_high = interval(rng.normal(3, 1, 2000).tolist())
    assert tight_high - tight_low < high - low
    assert tight_low < 3 < tight_high


def test_groups_keep_the_order(model):
    rows = _dense_rows(model)
    assert [key for (key,) in grouped(rows, "mask_class")] == list(CLASSES)
