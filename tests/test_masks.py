import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilotoken.data import masks
from hilotoken.data.masks import SHAPES, random_mask


def silhouette(height: int = 90, width: int = 60) -> np.ndarray:
    """A figure with a head and a body, touching all four sides of its array, [H, W] uint8."""
    figure = np.zeros((height, width), np.uint8)
    cv2.circle(figure, (width // 2, height // 5), height // 5, 255, -1)
    cv2.fillPoly(figure, [np.array([[width // 2, 0], [width, height], [0, height]])], 255)
    return figure


sizes = st.tuples(st.integers(8, 96), st.integers(8, 96)) | st.sampled_from(
    [(16, 16), (32, 32), (256, 256), (16, 768), (768, 768)]
)
areas = st.sampled_from([(0.02, 0.5), (0.1, 0.1), (0.001, 0.002), (0.9, 0.99)])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), sizes, areas, st.booleans())
def test_the_share_always_lies_within_the_area(seed, size, area, objects):
    shapes = [silhouette(), silhouette(7, 50)] if objects else []
    mask = random_mask(np.random.default_rng(seed), size, shapes, area)
    one = 1 / mask.size
    assert mask.shape == size
    assert mask.dtype == bool
    assert area[0] - one <= mask.mean() <= area[1] + one
    assert 0 < mask.sum() < mask.size


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (64, 48)])
def test_default_bounds_hold_exactly(size):
    rng = np.random.default_rng(1)
    shares = [random_mask(rng, size, [silhouette()]).mean() for _ in range(500)]
    assert min(shares) >= 0.02
    assert max(shares) <= 0.5


def test_the_same_generator_state_gives_the_same_mask():
    first, second = (
        [random_mask(rng, (64, 64), [silhouette()]) for _ in range(20)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_small_masks_are_common():
    rng = np.random.default_rng(0)
    shares = [random_mask(rng, (64, 64), [silhouette()]).mean() for _ in range(1000)]
    assert 0.06 < np.median(shares) < 0.16
    # Log-uniform: each quarter of the log range holds about a quarter of the masks.
    counts, _ = np.histogram(np.log(shares), 4, np.log((0.02, 0.5)))
    assert counts.min() > 180


@pytest.mark.parametrize(("shapes", "expected"), [([], set(SHAPES) - {"object"}), (1, set(SHAPES))])
def test_every_shape_occurs(monkeypatch, shapes, expected):
    used = set()

    def record(name, make):
        return lambda *args: used.add(name) or make(*args)

    recorded = {name: record(name, make) for name, make in SHAPES.items()}
    monkeypatch.setattr(masks, "SHAPES", recorded)
    rng = np.random.default_rng(0)
    for _ in range(60):
        random_mask(rng, (32, 32), [silhouette()] if shapes else [])
    assert used == expected


@pytest.mark.parametrize("size", [32, 256])
def test_shapes_rarely_need_the_fallback(monkeypatch, size):
    fallbacks = []
    exact = masks._exact
    monkeypatch.setattr(masks, "_exact", lambda *args: fallbacks.append(1) or exact(*args))
    rng = np.random.default_rng(0)
    for _ in range(300):
        random_mask(rng, (size, size), [silhouette()])
    assert len(fallbacks) <= 3


@pytest.mark.parametrize("seed", range(20))
def test_objects_keep_their_silhouette(monkeypatch, seed):
    monkeypatch.setattr(masks, "SHAPES", {"object": SHAPES["object"]})
    monkeypatch.setattr(masks, "UNION", 0)
    figure = silhouette()
    mask = random_mask(np.random.default_rng(seed), (128, 128), [figure], (0.03, 0.2))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = cv2.resize(figure, cropped.shape[::-1]) > 127
    assert (cropped & scaled).sum() / (cropped | scaled).sum() > 0.6


@pytest.mark.parametrize(
    ("size", "shapes", "area", "message"),
    [
        ((7, 64), [], (0.02, 0.5), "size"),
        ((64, 64), [], (0.5, 0.02), "area"),
        ((64, 64), [], (0.0, 0.5), "area"),
        ((64, 64), [], (0.5, 1.0), "area"),
        ((64, 64), [np.zeros((9, 9), np.uint8)], (0.02, 0.5), "silhouette"),
        ((64, 64), [np.ones((9, 9, 3), np.uint8)], (0.02, 0.5), "silhouette"),
    ],
)
def test_bad_input_is_refused(monkeypatch, size, shapes, area, message):
    if shapes:
        monkeypatch.setattr(masks, "SHAPES", {"object": SHAPES["object"]})
    with pytest.raises(ValueError, match=message):
        random_mask(np.random.default_rng(0), size, shapes, area)
