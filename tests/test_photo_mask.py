"""Masks of every convention are read as they are meant, or what was made of them is said."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import photos
import pytest
from photos import random
from PIL import Image

from hilotoken.photo import Photo, PhotoError, load_mask, load_photo, read_mask

H, W = 19, 23
PHOTO = Photo(random(H, W, 3), "RGB", "PNG")
WHITE = np.zeros((H, W), np.uint8)
WHITE[2:9, 3:20] = 255
HOLE = WHITE == 255


def saved(folder: Path, samples: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(samples)
    image = image if mode is None else image.convert(mode)
    image.save(folder / "mask.png")
    return folder / "mask.png"


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "mask.png"
    if mode == "I;16":
        cv2.imwrite(str(path), WHITE.astype(np.uint16) * 257)
    else:
        saved(tmp_path, WHITE, mode)
    mask = read_mask(path, PHOTO)
    np.testing.assert_array_equal(mask.pixels, HOLE)
    assert mask.notes == ()
    np.testing.assert_array_equal(load_mask(path, PHOTO), HOLE)


def test_a_mask_is_cut_at_half_and_its_alpha_counts(tmp_path: Path) -> None:
    photo, want = Photo(random(1, 4, 3), "RGB", "PNG"), [[False, False, True, True]]
    path = saved(tmp_path, np.array([[0, 127, 128, 255]], np.uint8))
    assert read_mask(path, photo).pixels.tolist() == want
    painted = np.full((1, 4, 4), 255, np.uint8)
    painted[0, :, 3] = 0, 127, 128, 255
    assert read_mask(saved(tmp_path, painted), photo).pixels.tolist() == want


@pytest.mark.parametrize("hidden", ["photo", "black", "white"])
@pytest.mark.parametrize("kind", ["alpha", "key colour", "palette"])
def test_a_hole_in_a_photo_is_what_is_edited(tmp_path: Path, hidden: str, kind: str) -> None:
    """As OpenAI's images/edits, Stable Diffusion web UIs and InvokeAI hand masks over."""
    picture = random(H, W, 3)
    picture[HOLE] = {"photo": picture[HOLE], "black": 0, "white": 255}[hidden]
    path = tmp_path / "mask.png"
    if kind == "alpha":
        path = saved(tmp_path, np.dstack([picture, 255 - WHITE]))
    elif kind == "key colour":
        picture[HOLE] = 7, 8, 9
        Image.fromarray(picture).save(path, transparency=(7, 8, 9))
    else:
        indices = np.where(HOLE, 99, random(H, W, high=99)).astype(np.uint8)
        image = Image.fromarray(indices)
        image.putpalette(random(100, 3, seed=5).tobytes())
        image.save(path, transparency=99)
    mask = read_mask(path, PHOTO)
    np.testing.assert_array_equal(mask.pixels, HOLE)
    (note,) = mask.notes
    assert f"{path} is a picture with a hole" in note
    assert "--mask-from white" in note
    np.testing.assert_array_equal(read_mask(path, PHOTO, mask_from="alpha").pixels, HOLE)
    assert read_mask(path, PHOTO, mask_from="alpha").notes == ()
    inverted = read_mask(path, PHOTO, invert=True)
    np.testing.assert_array_equal(inverted.pixels, ~HOLE)
    bright = np.asarray(load_photo(path).rgb().convert("L")) >= 128
    by_white = read_mask(path, PHOTO, mask_from="white")
    np.testing.assert_array_equal(by_white.pixels, bright & ~HOLE)
    assert "is grey" in by_white.notes[0]


def test_a_mask_painted_on_nothing_is_no_hole(tmp_path: Path) -> None:
    path = saved(tmp_path, np.dstack([np.full_like(WHITE, 255)] * 3 + [WHITE]))
    mask = read_mask(path, PHOTO)
    np.testing.assert_array_equal(mask.pixels, HOLE)
    assert mask.notes == ()
    np.testing.assert_array_equal(read_mask(path, PHOTO, mask_from="alpha").pixels, ~HOLE)


def test_black_on_white_is_noted_and_inverted(tmp_path: Path) -> None:
    path = saved(tmp_path, 255 - WHITE)
    (note,) = read_mask(path, PHOTO).notes
    assert f"{(~HOLE).mean():.0%} of the photo is edited" in note
    assert "give --invert" in note
    mask = read_mask(path, PHOTO, invert=True)
    np.testing.assert_array_equal(mask.pixels, HOLE)
    assert mask.notes == ()
    (note,) = read_mask(saved(tmp_path, WHITE), PHOTO, invert=True).notes
    assert "leave out --invert" in note


def test_a_picture_taken_for_a_mask_is_noted(tmp_path: Path) -> None:
    path = saved(tmp_path, random(H, W, 3))
    notes = " ".join(read_mask(path, PHOTO).notes)
    assert "is grey: what is at least half white is edited" in notes
    assert "--mask-from alpha" in notes
    with pytest.warns(UserWarning, match="is grey"):
        load_mask(path, PHOTO)


@pytest.mark.parametrize("soft", [0, 1])
def test_a_jpeg_or_a_soft_edge_is_not_noted(tmp_path: Path, soft: int) -> None:
    big = np.zeros((300, 400), np.uint8)
    big[100:200, 100:250] = 255
    if soft:
        big = cv2.GaussianBlur(big, (0, 0), 3)
    Image.fromarray(big).save(tmp_path / "mask.jpg", quality=80)
    photo = Photo(random(300, 400, 3), "RGB", "PNG")
    assert read_mask(tmp_path / "mask.jpg", photo).notes == ()


@pytest.mark.parametrize("pixels", [0, 1, 4, 10**12])
def test_a_mask_grows_by_pixels_round_about(tmp_path: Path, pixels: int) -> None:
    dot = np.zeros((H, W), np.uint8)
    dot[9, 11] = 255
    rows, columns = np.mgrid[:H, :W]
    want = np.hypot(rows - 9, columns - 11) <= pixels
    mask = read_mask(saved(tmp_path, dot), PHOTO, grow=pixels)
    np.testing.assert_array_equal(mask.pixels, want)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_mask_in_the_stored_frame_is_turned(tmp_path: Path, orientation: int) -> None:
    block = photos.chunk(b"eXIf", photos.exif(orientation))
    (tmp_path / "photo.png").write_bytes(photos.png(WHITE[..., None], 0, 8, block))
    photo = load_photo(tmp_path / "photo.png")
    want = photo.pixels == 255
    for scale in (1, 3):
        big = np.kron(WHITE, np.ones((scale, scale), np.uint8))
        turned = read_mask(saved(tmp_path, big), photo)
        np.testing.assert_array_equal(turned.pixels, want)
        assert "is turned as the photo is" in turned.notes[0]
        big = np.kron(photo.pixels, np.ones((scale, scale), np.uint8))
        upright = read_mask(saved(tmp_path, big), photo)
        np.testing.assert_array_equal(upright.pixels, want)
        assert not any("turned" in note for note in upright.notes)


def test_a_mask_of_another_size_is_resized_and_said_so(tmp_path: Path) -> None:
    path = saved(tmp_path, np.kron(WHITE, np.ones((4, 4), np.uint8)))
    mask = read_mask(path, PHOTO)
    np.testing.assert_array_equal(mask.pixels, HOLE)
    assert mask.notes == (f"{path} is {4 * W}x{4 * H}: resized to {W}x{H}",)
    photo = Photo(random(667, 1000, 3), "RGB", "PNG")
    small = np.zeros((200, 300), np.uint8)  # of the shape 1000x667, rounded
    small[50:100, 60:90] = 255
    big = read_mask(saved(tmp_path, small), photo).pixels
    assert big.shape == (667, 1000)
    assert abs(big.mean() - (small == 255).mean()) < 0.002


@pytest.mark.parametrize(
    ("samples", "options", "text"),
    [
        (np.full((W, H), 255, np.uint8), {}, f"{H}x{W} but the photo is {W}x{H}: resize the mask"),
        (np.full((H, H), 255, np.uint8), {}, f"{H}x{H} but the photo is {W}x{H}: resize the mask"),
        (np.full((H, W), 127, np.uint8), {}, "no white pixel: paint white"),
        (np.full((H, W), 255, np.uint8), {"invert": True}, "nothing but what --invert leaves out"),
        (WHITE, {"mask_from": "alpha"}, "no transparent pixel: erase where"),
        (np.dstack([WHITE * 0] * 3 + [WHITE]), {}, "no white pixel.*or give --mask-from alpha"),
    ],
)
def test_a_mask_that_leaves_nothing_is_named(
    tmp_path: Path, samples: np.ndarray, options: dict[str, object], text: str
) -> None:
    with pytest.raises(PhotoError, match=text) as caught:
        read_mask(saved(tmp_path, samples), PHOTO, **options)
    assert "mask.png" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask_from": "black"}, "one of auto, white, alpha, got 'black'"),
        ({"grow": -1}, "0 or more, got -1"),
        ({"grow": 1.5}, "whole number of pixels, 0 or more, got 1.5"),
        ({"grow": True}, "got True"),
    ],
)
def test_options_out_of_range_are_named(
    tmp_path: Path, options: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        read_mask(saved(tmp_path, WHITE), PHOTO, **options)


def test_a_plain_mask_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_mask(saved(tmp_path, WHITE), PHOTO)
