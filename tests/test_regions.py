"""How fills are judged: figures of a region alone, that mean what their names say."""

import math

import numpy as np
import pytest
from tiny import make_photo
from toys import some_distance

from hilotoken.metrics.regions import (
    distances,
    gradient_energy,
    pooled,
    psnr,
    ring,
    seam,
    see,
    sharpness,
    ssim_map,
)

SIDE = 96


@pytest.fixture(scope="module")
def perceptual():
    return some_distance()


@pytest.fixture
def photo():
    return np.asarray(make_photo(SIDE, SIDE))


@pytest.fixture
def mask():
    mask = np.zeros((SIDE, SIDE), bool)
    mask[30:60, 40:80] = True
    return mask


def _noisy(photo, region, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, photo.shape, np.uint8)
    return np.where(region[..., None], noise, photo)


def test_distances_count_the_region_alone(perceptual, photo, mask):
    filled = _noisy(photo, mask)
    found = distances(perceptual, see(perceptual, filled), see(perceptual, photo), mask)
    error = (filled[mask].astype(float) - photo[mask]) ** 2
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / error.mean()))
    assert found.psnr == psnr(filled, _noisy(photo, ~mask), mask)  # other pixels are not looked at
    assert found.lpips > 0
    assert found.ssim < 0.5
    away = np.zeros_like(mask)
    away[:8, :8] = True  # beyond the windows of SSIM
    assert ssim_map(filled, photo)[away] == pytest.approx(1)


def test_a_picture_has_no_distance_to_itself(perceptual, photo, mask):
    same = see(perceptual, photo)
    found = distances(perceptual, same, same, mask)
    assert found.psnr > 160
    assert found.ssim == pytest.approx(1)
    assert found.lpips == 0


def test_ssim_is_scikit_images(photo, mask):
    metrics = pytest.importorskip("skimage.metrics")
    other = _noisy(photo, mask)
    given = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, wanted = metrics.structural_similarity(
        photo, other, channel_axis=2, full=True, data_range=255, **given
    )
    assert np.abs(ssim_map(photo, other) - wanted.mean(-1)).max() < 1e-9


@pytest.mark.parametrize("width", [1, 4, 16])
def test_the_ring_lies_around_the_mask_and_is_as_wide_as_said(mask, width):
    around = ring(mask, width)
    assert not (around & mask).any()
    rows, columns = np.nonzero(around | mask)
    assert (rows.min(), rows.max()) == (30 - width, 59 + width)
    assert (columns.min(), columns.max()) == (40 - width, min(79 + width, SIDE - 1))
    assert not ring(np.ones_like(mask)).any()


def test_blur_halves_what_noise_doubles(photo, mask):
    assert sharpness(photo, photo, mask) == 0
    energy = gradient_energy(photo, mask)
    for scale in (0.5, 2.0):
        levels = 128 + scale * (photo.astype(float) - 128) / 4  # /4: no level is clipped
        quarter = 128 + (photo.astype(float) - 128) / 4
        ratio = gradient_energy(levels, mask) / gradient_energy(quarter, mask)
        assert ratio == pytest.approx(scale**2, rel=1e-3)
    flat = np.full_like(photo, 100)
    assert sharpness(flat, photo, mask) == pytest.approx(-math.log2(6 * energy))
    assert sharpness(_noisy(photo, mask), photo, mask) > 0
    assert sharpness(flat, flat, mask) == 0


def test_gradients_across_the_border_do_not_count(photo, mask):
    assert gradient_energy(_noisy(photo, ~mask), mask) == gradient_energy(photo, mask)
    assert gradient_energy(photo, np.zeros_like(mask)) == 0


def test_pooled_features_are_of_the_region_and_at_most_of_unit_length(perceptual, photo, mask):
    seen = see(perceptual, photo)
    found = pooled(seen, mask)
    assert found.shape == (1152,)
    assert 0 < np.linalg.norm(found) <= 1
    assert not np.allclose(found, pooled(seen, ~mask))


def test_an_untouched_photo_has_its_own_seam_and_a_pasted_patch_a_larger_one(photo, mask):
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
    photo = np.full((SIDE, SIDE, 3), 100, np.uint8)
    assert seam(photo + np.uint8(jump), photo, mask) == pytest.approx((jump, jump), abs=1e-3)


@pytest.mark.parametrize("level", [False, True])
def test_a_mask_without_a_border_has_no_seam(photo, level):
    assert seam(photo // 2, photo, np.full((SIDE, SIDE), level)) == (0, 0)
