"""Detail scores: what they rank, what leaves them alone, and their definitions in slow numpy."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from hilotoken.scores import SCORES, check_score, score

EVEN = ((48, 32), (6, 4))  # photo, grid: 8 pixels a token
UNEVEN = ((50, 37), (7, 4))
each_score = pytest.mark.parametrize("name", SCORES)
each_size = pytest.mark.parametrize(("size", "grid"), [EVEN, UNEVEN])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@each_score
@each_size
def test_a_flat_photo_scores_zero_everywhere(name, size, grid):
    photo_B3HW = torch.tensor([0.3, 0.71, 0.9]).view(1, 3, 1, 1).expand(1, 3, *size)
    score_BN = score(photo_B3HW, grid, name)
    assert score_BN.shape == (1, grid[0] * grid[1])
    assert score_BN.dtype == torch.float32
    assert not score_BN.any()
    assert not score(photo_B3HW, grid, {name: 1.0, "variance": 0.5}).any()


@each_score
@each_size
def test_the_border_is_not_favoured(name, size, grid):
    """Vertical stripes are the same in every row of tokens, the first and last included."""
    rows, columns = size
    stripes_B1HW = (torch.arange(columns) % 2.0).expand(1, 1, rows, columns)
    if name == "sobel":  # blind to one-pixel stripes
        stripes_B1HW = (torch.arange(columns) // 2 % 2.0).expand(1, 1, rows, columns)
    score_Bhw = SCORES[name](stripes_B1HW, grid).view(1, *grid)
    assert score_Bhw.min() > 0
    torch.testing.assert_close(score_Bhw, score_Bhw[:, :1].expand_as(score_Bhw))


@each_score
@each_size
@pytest.mark.parametrize("token", [(0, 0), (3, 2), (-1, -1), (2, 0)])
@pytest.mark.parametrize("texture", ["noise", "checkerboard"])
def test_the_one_textured_token_ranks_first(name, size, grid, token, texture):
    (H, W), (h, w) = size, grid
    i, j = token[0] % h, token[1] % w
    rows = slice(-(-i * H // h), (i + 1) * H // h)  # pixels of this token alone
    columns = slice(-(-j * W // w), (j + 1) * W // w)
    photo_B3HW = torch.linspace(0.4, 0.5, W).expand(1, 3, H, W).clone()
    patch = photo_B3HW[..., rows, columns]
    if texture == "noise":
        patch[:] = noise(*patch.shape)
    else:
        side = 2 if name == "sobel" else 1  # its kernels smooth a one-pixel checkerboard away
        y, x = torch.arange(patch.shape[2])[:, None], torch.arange(patch.shape[3])
        patch[:] = ((x // side + y // side) % 2).float()
    assert score(photo_B3HW, grid, name).argmax() == i * w + j


@each_score
@each_size
def test_a_smooth_ramp_scores_below_noise(name, size, grid):
    ramp_B3HW = torch.linspace(0, 1, size[1]).expand(1, 3, *size)
    noise_B3HW = noise(1, 3, *size)
    assert score(ramp_B3HW, grid, name).max() < score(noise_B3HW, grid, name).min()


@each_score
def test_a_cell_of_fine_texture_outranks_a_ramp_of_more_contrast_unless_variance(name):
    photo_B3HW = torch.zeros(1, 3, 16, 32)
    photo_B3HW[..., :16] = torch.linspace(0, 1, 16)
    photo_B3HW[..., 16:] = 0.5 + 0.25 * (torch.arange(16) // 2 % 2 * 2.0 - 1)
    ramp, texture = score(photo_B3HW, (1, 2), name)[0]
    assert (texture > ramp) == (name != "variance")


@each_score
@each_size
def test_scores_do_not_depend_on_the_rest_of_the_batch(name, size, grid):
    photo_B3HW = noise(3, 3, *size) * torch.tensor([0.01, 1.0, 0.3]).view(3, 1, 1, 1)
    for spec in (name, {name: 1.0, "variance": 2.0}):
        together_BN = score(photo_B3HW, grid, spec)
        for b in range(3):
            alone_1N = score(photo_B3HW[b : b + 1], grid, spec)
            torch.testing.assert_close(together_BN[b : b + 1], alone_1N, rtol=1e-5, atol=1e-12)


@each_score
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_photo_turns_the_scores(name, turns):
    size, (h, w) = EVEN
    photo_B3HW = noise(1, 3, *size)
    upright_Bhw = score(photo_B3HW, (h, w), name).view(1, h, w)
    turned_grid = (w, h) if turns % 2 else (h, w)
    turned = score(photo_B3HW.rot90(turns, (2, 3)), turned_grid, name).view(1, *turned_grid)
    torch.testing.assert_close(turned, upright_Bhw.rot90(turns, (1, 2)), rtol=1e-4, atol=0)


@each_score
def test_a_photo_of_1000x750_fits_a_grid_of_61x47(name):
    score_BN = score(noise(1, 3, 1000, 750), (61, 47), name)
    assert score_BN.shape == (1, 61 * 47)
    assert score_BN.isfinite().all()
    assert (score_BN > 0).all()


@each_score
def test_one_pixel_a_token_and_one_pixel_rows_are_legal(name):
    for size, grid in [((4, 5), (4, 5)), ((1, 9), (1, 3)), ((9, 1), (3, 1))]:
        score_BN = score(noise(1, 3, *size), grid, name)
        assert score_BN.isfinite().all()
        assert (score_BN >= 0).all()


@each_score
def test_a_grid_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match="9x4 tokens"):
        SCORES[name](noise(1, 1, 8, 8), (9, 4))


# Definitions, one pixel at a time in float64.


def shared_cells(x_HW: np.ndarray, grid: tuple[int, int]) -> list[np.ndarray]:
    """Cells with every pixel they overlap, as `grid.pool` averages them."""
    (H, W), (h, w) = x_HW.shape, grid
    return [
        x_HW[i * H // h : -(-(i + 1) * H // h), j * W // w : -(-(j + 1) * W // w)]
        for i, j in product(range(h), range(w))
    ]


def equal_cells(x_HW: np.ndarray, grid: tuple[int, int]) -> list[np.ndarray]:
    """Cells of one size, ceil(H / h) x ceil(W / w), from each cell's first pixel."""
    (H, W), (h, w) = x_HW.shape, grid
    p, q = math.ceil(H / h), math.ceil(W / w)
    return [
        x_HW[i * H // h : i * H // h + p, j * W // w : j * W // w + q]
        for i, j in product(range(h), range(w))
    ]


def convolve(x_HW: np.ndarray, kernel: list[list[float]]) -> np.ndarray:
    padded, (H, W) = np.pad(x_HW, 1, mode="edge"), x_HW.shape
    return sum(kernel[a][b] * padded[a : a + H, b : b + W] for a, b in product(range(3), range(3)))  # pyright: ignore[reportReturnType]


def slow_laplacian(x_HW: np.ndarray, grid: tuple[int, int]) -> list[float]:
    response = convolve(x_HW, [[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return [cell.mean() for cell in shared_cells(response**2, grid)]


def slow_sobel(x_HW: np.ndarray, grid: tuple[int, int]) -> list[float]:
    gx = convolve(x_HW, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    gy = convolve(x_HW, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]]) / 8
    return [cell.mean() for cell in shared_cells(gx**2 + gy**2, grid)]


def slow_frequency(x_HW: np.ndarray, grid: tuple[int, int]) -> list[float]:
    scores = []
    for cell in equal_cells(x_HW, grid):
        p, q = cell.shape
        rf = sum((cell[m, n] - cell[m, n - 1]) ** 2 for m in range(p) for n in range(1, q))
        cf = sum((cell[m, n] - cell[m - 1, n]) ** 2 for m in range(1, p) for n in range(q))
        scores.append(math.sqrt(rf / (p * q) + cf / (p * q)))
    return scores


def slow_dct(x_HW: np.ndarray, grid: tuple[int, int]) -> list[float]:
    scores = []
    for cell in equal_cells(x_HW, grid):
        p, q = cell.shape
        total = 0.0
        for u, v in product(range(p), range(q)):
            length = math.sqrt((1 if u == 0 else 2) / p * (1 if v == 0 else 2) / q)
            c = length * sum(
                cell[m, n]
                * math.cos(math.pi * (2 * m + 1) * u / (2 * p))
                * math.cos(math.pi * (2 * n + 1) * v / (2 * q))
                for m, n in product(range(p), range(q))
            )
            total += math.hypot(u / (2 * p), v / (2 * q)) * c**2
        scores.append(total / (p * q))
    return scores


def slow_variance(x_HW: np.ndarray, grid: tuple[int, int]) -> list[float]:
    return [cell.var() for cell in equal_cells(x_HW, grid)]


@pytest.mark.parametrize(
    "slow", [slow_laplacian, slow_sobel, slow_frequency, slow_dct, slow_variance]
)
@pytest.mark.parametrize(("size", "grid"), [((16, 24), (2, 3)), ((14, 11), (3, 2))])
def test_each_score_is_its_definition(slow, size, grid):
    luma_B1HW = noise(2, 1, *size)
    fast_BN = SCORES[slow.__name__.removeprefix("slow_")](luma_B1HW, grid)
    for fast_N, luma_HW in zip(fast_BN, luma_B1HW[:, 0].double().numpy(), strict=True):
        np.testing.assert_allclose(fast_N.numpy(), slow(luma_HW, grid), rtol=1e-5)


def test_a_mix_weighs_scores_relative_to_their_means():
    photo_B3HW = noise(2, 3, 32, 32) ** 3
    sobel_BN, dct_BN = (score(photo_B3HW, (4, 4), name) for name in ("sobel", "dct"))
    mixed_BN = score(photo_B3HW, (4, 4), {"sobel": 1, "dct": 3, "variance": 0})
    expected_BN = sobel_BN / sobel_BN.mean(1, True) + 3 * dct_BN / dct_BN.mean(1, True)
    torch.testing.assert_close(mixed_BN, expected_BN)
    torch.testing.assert_close(mixed_BN.mean(1), torch.full((2,), 4.0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blur", "'blur'; choose from .*'dct'.*'laplacian'"),
        ({"sobel": 1.0, "blur": 1.0}, "'blur'; choose from"),
        ({}, "needs a weight above 0"),
        ({"sobel": 0.0, "dct": 0}, "needs a weight above 0"),
        ({"sobel": 1.0, "dct": -0.5}, "'dct' .* -0.5"),
        ({"sobel": math.nan}, "'sobel' .* nan"),
        ({"sobel": math.inf}, "'sobel' .* inf"),
    ],
)
def test_a_bad_spec_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        check_score(spec)
    with pytest.raises(ValueError, match=message):
        score(noise(1, 3, 8, 8), (2, 2), spec)


@each_score
def test_good_specs_pass(name):
    check_score(name)
    check_score({name: 2, "sobel": 0.5})
