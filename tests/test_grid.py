"""The token grid against brute force over pixels and tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hilotoken.grid import check_grid, check_mask, check_photo, dilate, luma, pool, touch


def cell(index: int, pixels: int, tokens: int) -> range:
    """Pixels that the half-open cell [index, index + 1) * pixels / tokens overlaps."""
    return range(index * pixels // tokens, -(-(index + 1) * pixels // tokens))


def touch_by_hand(mask_HW: Tensor, grid: tuple[int, int]) -> Tensor:
    H, W = mask_HW.shape
    return torch.tensor(
        [
            [
                any(mask_HW[y, x] > 0 for y in cell(i, H, grid[0]) for x in cell(j, W, grid[1]))
                for j in range(grid[1])
            ]
            for i in range(grid[0])
        ]
    )


def dilate_by_hand(touched_hw: Tensor, radius: int) -> Tensor:
    grown_hw = torch.zeros_like(touched_hw)
    seeds = touched_hw.nonzero().tolist()
    for i, j in torch.ones_like(touched_hw).nonzero().tolist():
        grown_hw[i, j] = any(max(abs(i - a), abs(j - b)) <= radius for a, b in seeds)
    return grown_hw


@st.composite
def masks(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int]]:
    """A sparse mask and a grid that fits it, seldom dividing it evenly."""
    H, W = draw(st.integers(1, 17)), draw(st.integers(1, 17))
    grid = draw(st.integers(1, H)), draw(st.integers(1, W))
    mask_B1HW = torch.zeros(2, 1, H, W)
    places = st.tuples(st.integers(0, 1), st.integers(0, H - 1), st.integers(0, W - 1))
    values = st.sampled_from([0.25, 0.4999, 0.5, 1.0])
    for (b, y, x), value in draw(st.lists(st.tuples(places, values), max_size=4)):
        mask_B1HW[b, 0, y, x] = value
    return mask_B1HW, grid


@st.composite
def touched_grids(draw: st.DrawFn) -> Tensor:
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    flags = draw(st.lists(st.sampled_from([False] * 7 + [True]), min_size=h * w, max_size=h * w))
    return torch.tensor(flags).view(1, h, w)


@settings(deadline=None)
@given(masks())
def test_touch_equals_brute_force(case):
    mask_B1HW, grid = case
    touched_Bhw = touch(mask_B1HW, grid)
    assert touched_Bhw.dtype == torch.bool
    for touched_hw, mask_HW in zip(touched_Bhw, mask_B1HW[:, 0], strict=True):
        assert torch.equal(touched_hw, touch_by_hand(mask_HW, grid))


@settings(deadline=None)
@given(masks())
def test_no_masked_pixel_is_missed(case):
    mask_B1HW, (h, w) = case
    touched_Bhw = touch(mask_B1HW, (h, w))
    H, W = mask_B1HW.shape[-2:]
    for b, _, y, x in (mask_B1HW >= 0.5).nonzero().tolist():
        assert touched_Bhw[b, y * h // H, x * w // W]


@settings(deadline=None)
@given(masks(), st.integers(0, 16), st.integers(0, 16))
def test_a_larger_mask_touches_a_superset(case, y, x):
    mask_B1HW, grid = case
    larger_B1HW = mask_B1HW.clone()
    larger_B1HW[..., :y, :x] = 1
    assert (touch(larger_B1HW, grid) >= touch(mask_B1HW, grid)).all()


def test_one_pixel_of_a_large_photo_is_touched_with_both_neighbours_of_a_split_pixel():
    mask_B1HW = torch.zeros(1, 1, 1000, 750)
    mask_B1HW[0, 0, 999, 15] = 1  # cells are 15.96 pixels wide: pixel 15 is split
    assert touch(mask_B1HW, (61, 47)).nonzero().tolist() == [[0, 60, 0], [0, 60, 1]]


@settings(deadline=None)
@given(touched_grids(), st.integers(0, 11))
def test_dilate_equals_brute_force(touched_Bhw, radius):
    grown_Bhw = dilate(touched_Bhw, radius)
    assert grown_Bhw.dtype == torch.bool
    assert torch.equal(grown_Bhw[0], dilate_by_hand(touched_Bhw[0], radius))


@settings(deadline=None)
@given(touched_grids(), st.integers(0, 5), st.integers(0, 5))
def test_dilate_is_monotone_and_adds_up(touched_Bhw, first, second):
    grown_Bhw = dilate(touched_Bhw, first)
    assert (dilate(touched_Bhw, first + second) >= grown_Bhw).all()
    assert torch.equal(dilate(grown_Bhw, second), dilate(touched_Bhw, first + second))


def test_dilate_by_zero_is_the_identity_and_by_less_is_refused():
    touched_Bhw = torch.rand(3, 7, 5) < 0.3
    assert torch.equal(dilate(touched_Bhw, 0), touched_Bhw)
    with pytest.raises(ValueError, match="-1"):
        dilate(touched_Bhw, -1)


@pytest.mark.parametrize("size", [(12, 12), (13, 7)])
def test_pool_is_the_mean_of_each_cell(size):
    x_BCHW = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pooled_BChw = pool(x_BCHW, (4, 3))
    assert pooled_BChw.shape == (2, 3, 4, 3)
    for i in range(4):
        for j in range(3):
            rows, columns = cell(i, size[0], 4), cell(j, size[1], 3)
            patch = x_BCHW[..., rows.start : rows.stop, columns.start : columns.stop]
            torch.testing.assert_close(pooled_BChw[..., i, j], patch.mean(dim=(2, 3)))


def test_luma_weighs_the_colours_by_rec_709_and_keeps_a_flat_photo_flat():
    colours = torch.eye(3)[:, :, None, None]
    torch.testing.assert_close(luma(colours).flatten(), torch.tensor([0.2126, 0.7152, 0.0722]))
    flat_B1HW = luma(torch.tensor([0.3, 0.7, 0.9]).view(1, 3, 1, 1).expand(1, 3, 61, 47))
    assert (flat_B1HW == flat_B1HW[0, 0, 0, 0]).all()
    assert luma(colours.to(torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("grid", [(9, 4), (4, 9), (0, 4), (4, -1)])
def test_a_grid_that_does_not_fit_is_refused(grid):
    x_B1HW = torch.zeros(1, 1, 8, 8)
    for refuse in (check_grid, pool, touch):
        with pytest.raises(ValueError, match=f"{grid[0]}x{grid[1]} tokens .* 8x8 pixels"):
            refuse(x_B1HW, grid)


def filled(value: float) -> Tensor:
    photo_B3HW = torch.full((2, 3, 4, 4), 0.5)
    photo_B3HW[1, 2, 3, 3] = value
    return photo_B3HW


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (torch.zeros(3, 4, 4), r"\[3, 4, 4\]"),
        (torch.zeros(1, 4, 4, 4), r"\[1, 4, 4, 4\]"),
        (torch.zeros(1, 3, 0, 4), r"\[1, 3, 0, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (filled(float("nan")), "1 NaN or infinite"),
        (filled(float("inf")), "1 NaN or infinite"),
        (filled(-0.25), "-0.25 to 0.5"),
        (filled(255), "0.5 to 255"),
    ],
)
def test_a_bad_photo_or_mask_is_refused_by_name_and_value(photo, message):
    with pytest.raises(ValueError, match=f"photo .*{message}"):
        check_photo(photo)
    mask = photo[:, -1:] if photo.shape[1] == 3 else photo
    with pytest.raises(ValueError, match="mask "):
        check_mask(mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_photos_and_masks_in_range_pass(dtype):
    photo_B3HW = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    check_photo(photo_B3HW)
    check_mask(photo_B3HW[:, 2:])
