"""Compositing: the photo's pixels outside the mask to the bit, the edit inside."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import Tensor

from hilotoken.composite import composite, composite_images, feather_weight, lead, match_border

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
quick = settings(deadline=None, max_examples=60)


def scene(shape: tuple[int, int], dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A photo and an edit of it that differs everywhere."""
    random = np.random.default_rng(seed)
    if dtype == "uint8":
        photo = random.integers(0, 256, (*shape, 3), np.uint8)
        return photo, (photo + random.integers(1, 256, photo.shape)).astype(np.uint8)
    return random.random((*shape, 3), np.float32), random.random((*shape, 3), np.float32)


@quick
@given(MASKS, st.integers(0, 6))
def test_the_weight_rises_from_the_border_inwards(mask, feather):
    weight = feather_weight(mask, feather)
    assert weight.dtype == np.float32
    assert weight.min() >= 0
    assert weight.max() <= 1
    assert not weight[~mask].any()
    assert (weight[mask] > 0).all()
    for i, j in zip(*mask.nonzero(), strict=True):
        rows, columns = (~mask).nonzero()
        away = np.hypot(rows - i, columns - j).min(initial=np.inf)
        expected = min(away / (feather + 1), 1) if feather else 1
        assert weight[i, j] == pytest.approx(expected, rel=1e-4)


@quick
@given(MASKS, st.integers(0, 6), st.sampled_from(["uint8", "float32"]))
def test_the_composite_is_the_photo_outside_and_the_edit_deep_inside(mask, feather, dtype):
    photo, edited = scene(mask.shape, dtype)
    weight = feather_weight(mask, feather)
    mixed = composite(photo, edited, weight)
    assert mixed.dtype == photo.dtype
    assert np.array_equal(mixed[weight == 0], photo[weight == 0])
    assert np.array_equal(mixed[weight == 1], edited[weight == 1])
    low, high = np.minimum(photo, edited), np.maximum(photo, edited)
    slack = 0 if dtype == "uint8" else 1e-6
    assert (mixed >= low - slack).all()
    assert (mixed <= high + slack).all()


def test_half_weight_is_half_of_each():
    photo, edited = np.full((1, 1, 3), 10, np.uint8), np.full((1, 1, 3), 20, np.uint8)
    assert composite(photo, edited, np.full((1, 1), 0.5, np.float32)).tolist() == [[[15, 15, 15]]]


def test_no_number_of_the_edit_gets_outside_the_mask():
    photo, edited = scene((4, 4), "float32")
    weight = np.eye(4, dtype=np.float32)
    edited[weight == 0] = np.nan
    assert np.isfinite(composite(photo, edited, weight)).all()


def test_a_negative_feather_is_refused():
    with pytest.raises(ValueError, match="feather must be 0 pixels or more, got -1"):
        feather_weight(np.ones((2, 2), bool), -1)


@pytest.mark.parametrize("kind", ["pictures", "array", "tensor", "bfloat16"])
def test_images_come_back_in_their_form_and_in_the_pipelines_order(kind):
    """Four images of two photos under two masks: photos and masks go round."""
    photos, images = torch.rand(2, 3, 8, 10), torch.rand(4, 3, 8, 10)
    photos = (photos * 255).round() / 255
    masks = (torch.rand(2, 1, 8, 10) < 0.4).float()
    form = {
        "pictures": lambda: [
            Image.fromarray((x.permute(1, 2, 0) * 255).byte().numpy()) for x in images
        ],
        "array": lambda: images.permute(0, 2, 3, 1).numpy(),
        "tensor": lambda: images,
        "bfloat16": lambda: images.bfloat16(),
    }[kind]()
    mixed = composite_images(form, photos, masks, 0)
    assert type(mixed) is type(form)
    for i in range(4):
        photo, inside = photos[i % 2], masks[i % 2, 0].bool()
        if kind == "pictures":
            photo = (photo * 255).round().byte()
        left, right = (as_chw(x[i]) for x in (mixed, form))
        assert left.dtype == right.dtype
        assert torch.equal(left[:, ~inside], photo.to(left.dtype)[:, ~inside])
        assert torch.equal(left[:, inside], right[:, inside])


def as_chw(image: object) -> Tensor:
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def painted(height=48, width=64):
    """A photo of smooth colours with some texture, and a mask in its middle."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([2 * rows, columns, 120 - rows], -1) + 40
    mask = (rows - 24) ** 2 + (columns - 32) ** 2 < 15**2
    return (smooth + (rows + columns)[..., None] % 2 * 8).astype(np.uint8), mask


def test_matching_the_border_undoes_a_shift_of_colour():
    photo, mask = painted()
    edited = np.where(mask[..., None], photo + np.array([30, 5, 12]), photo).astype(np.uint8)
    led = match_border(photo, edited, mask)
    assert np.array_equal(led[~mask], photo[~mask])
    assert np.abs(led[mask].astype(int) - photo[mask]).mean() < 4
    assert np.abs(edited[mask].astype(int) - photo[mask]).mean() > 15


def test_matching_the_border_leaves_a_good_edit_and_its_texture_alone():
    photo, mask = painted()
    led = match_border(photo, photo, mask)
    assert np.abs(led.astype(int) - photo).max() <= 5  # the slope of two pixels
    spot = photo.copy()
    spot[20:28, 28:36] = 255  # something new in the middle, clear of the border
    assert match_border(photo, spot, mask)[20:28, 28:36].min() > 245


@pytest.mark.parametrize("photo", EXAMPLES, ids=lambda path: path.stem)
def test_matching_the_border_harms_no_photograph_much(photo):
    image = Image.open(photo).convert("RGB").reduce(3)
    mask = Image.open(photo.with_name(f"{photo.stem}_mask.png")).resize(image.size)
    pixels, inside = np.asarray(image), np.asarray(mask.convert("L")) > 127
    led = match_border(pixels, pixels, inside)
    assert np.abs(led.astype(int) - pixels)[inside].mean() < 3  # of 255


@pytest.mark.parametrize("full", [True, False])
def test_a_mask_without_a_border_has_nothing_to_match(full):
    photo, mask = painted()
    edited = np.full_like(photo, 200)
    assert np.array_equal(match_border(photo, edited, np.full_like(mask, full)), edited)


def test_what_is_led_does_not_tell_a_shift_of_colour():
    """So whoever trains with it need not care for one, and the border alone carries a gradient."""
    photos, edits, masks = (
        torch.rand(3, channels, 40, 56, generator=torch.Generator().manual_seed(channels))
        for channels in (3, 4, 1)
    )
    edits, masks = edits[:, :3].requires_grad_(), (masks > 0.4).float()
    led = lead(photos, edits, masks)
    torch.testing.assert_close(lead(photos, edits + 0.3, masks), led)
    torch.testing.assert_close(lead(photos[1:2], edits[1:2], masks[1:2]), led[1:2])
    (felt,) = torch.autograd.grad((led * masks).sum(), edits)
    assert (felt.sum((-2, -1)).abs() < 1e-2).all()  # of a shift
    assert felt.abs().sum() > 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_tiny_pictures_are_matched_too(size):
    photo = np.full((*size, 3), 100, np.uint8)
    mask = np.zeros(size, bool)
    mask[0, 0] = True
    led = match_border(photo, np.where(mask[..., None], np.uint8(50), photo), mask)
    assert np.array_equal(led[~mask], photo[~mask])
    assert (led[0, 0] == (100 if mask.size > 1 else 50)).all()
