"""The distance between sets of fills: without bias, and with an interval that can be believed."""

import numpy as np
import pytest

from hilotoken.bench.measure.sets import TRUTH, Features, kernel_distance, set_rows
from hilotoken.metrics.regions import pooled, see

PHOTOS = [f"{i}.jpg" for i in range(24)]


def _features(count, seed, shift=0.0):
    """Vectors near unit length, around a mean that `shift` moves."""
    drawn = np.random.default_rng(seed).normal(size=(count, 32))
    drawn[:, 0] += 5 + shift
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_sets_of_one_kind_are_no_distance_apart_on_the_mean():
    """Unbiased: it falls on either side of 0, where a plain estimate lies above it every time."""
    photos = np.arange(12)
    found = [kernel_distance(_features(12, i), _features(12, 99 + i), photos) for i in range(40)]
    means = np.array([mean for mean, *_ in found])
    assert (means > 0).any()
    assert (means < 0).any()
    assert abs(means.mean()) < 3 * means.std() / np.sqrt(len(means))
    holding = sum(one.low <= 0 <= one.high for one in found)
    assert holding >= 34  # of 40: 95 %, loosely


def test_sets_of_two_kinds_are_apart_and_farther_the_more_they_differ():
    photos = np.arange(len(PHOTOS))
    near, far = (
        kernel_distance(_features(24, 1, shift), _features(24, 2), photos) for shift in (3, 9)
    )
    assert 0 < near[1] < near[0] < near[2]
    assert far[0] > near[0]
    again = kernel_distance(_features(24, 2), _features(24, 1, 3), photos)
    assert again == pytest.approx(near)


def test_seeds_of_a_photograph_are_not_several_photographs():
    x, y, photos = _features(24, 1, 3), _features(24, 2), np.arange(24)
    once = kernel_distance(x, y, photos)
    twice = kernel_distance(np.repeat(x, 2, 0), np.repeat(y, 2, 0), np.repeat(photos, 2))
    assert twice == pytest.approx(once)
    with pytest.raises(ValueError, match="2 photographs or more, got 1"):
        kernel_distance(x[:3], y[:3], np.zeros(3))


def _store(shifts, seeds=(1, 2)):
    found = {}
    truth = _features(len(PHOTOS), 0)
    for i, photo in enumerate(PHOTOS):
        found[photo, "small", TRUTH, 0] = truth[i]
        for method, shift in shifts.items():
            for seed in seeds:
                vector = _features(len(PHOTOS), 7, shift)[i]  # the same noise for all
                found[photo, "small", method, seed] = vector
    return found


def test_rows_are_of_photographs_that_dense_has_filled_too():
    features = _store({"dense": 2, "same": 2, "worse": 8})
    rows = {row.method: row for row in set_rows(features)}
    assert list(rows) == ["dense", "same", "worse"]
    assert rows["dense"].over_dense == rows["same"].over_dense == 0
    assert rows["worse"].over_dense_low > 0
    assert rows["worse"].distance - rows["dense"].distance == pytest.approx(
        rows["worse"].over_dense
    )
    assert (rows["worse"].photos, rows["worse"].fills) == (24, 48)
    for photo in PHOTOS[2:]:
        del features[photo, "small", "dense", 1], features[photo, "small", "dense", 2]
    assert {row.photos for row in set_rows(features)} == {2}
    assert set_rows(_store({"worse": 8})) == []


def test_features_are_kept_beside_the_rows(tmp_path):
    kept = Features.beside(tmp_path / "fill.csv")
    assert kept.of == {}
    kept.save()
    assert not list(tmp_path.iterdir())  # nothing to keep
    kept.of |= _store({"dense": 2})
    kept.save()
    again = Features.beside(tmp_path / "fill.csv")
    assert again.of.keys() == kept.of.keys()
    assert all(np.array_equal(again.of[key], kept.of[key]) for key in kept.of)
    assert [path.name for path in tmp_path.iterdir()] == ["fill.features.npz"]
    (tmp_path / "fill.features.npz").write_text("something else")
    with pytest.raises(ValueError, match="holds no features"):
        Features.beside(tmp_path / "fill.csv")
    Features.beside(None).save()


def test_blurred_photos_lie_farther_from_photos_than_other_photos_do():
    import cv2
    from tiny import make_photo
    from toys import some_distance

    perceptual, whole = some_distance(), np.ones((64, 64), bool)
    photos = [np.asarray(make_photo(64, 64, seed)) for seed in range(16)]
    sets = (photos[:8], photos[8:], [cv2.GaussianBlur(x, (0, 0), 3) for x in photos[8:]])
    truth, other, blurred = (
        np.stack([pooled(see(perceptual, x), whole) for x in each]) for each in sets
    )
    places = np.arange(8)
    assert kernel_distance(blurred, truth, places)[0] > kernel_distance(other, truth, places)[0]
