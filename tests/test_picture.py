"""Pictures of what happened."""

import numpy as np
import pytest
import torch
from PIL import Image

from hilotoken.picture import (
    COARSE,
    DETAIL,
    EDIT,
    GAP,
    OUTLINE,
    PAPER,
    TEXT,
    outlined,
    sheet,
    token_map,
)
from hilotoken.plan import TokenPlan

GREY = 200


def plan_of(grid, keep=(), edit=(), stride=0, cells=()) -> TokenPlan:
    edit_N = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    edit_N[list(edit)] = True
    keep_K, cells_M = torch.tensor(sorted({*keep, *edit})).long(), torch.tensor(cells).long()
    return TokenPlan(grid, keep_K, edit_N, stride, cells_M, torch.ones(len(keep_K) + len(cells_M)))


def drawn(plan: TokenPlan, side: int = 1024) -> np.ndarray:
    """The map without its legend."""
    h, w = plan.grid
    grey = Image.new("RGB", (16 * w, 16 * h), (GREY,) * 3)
    return np.asarray(token_map(grey, plan, side))


def mixed(tint) -> list[int]:
    return [int(0.5 * GREY + 0.5 * value) for value in tint]


def test_each_kind_of_token_has_its_colour():
    pixels = drawn(plan_of((4, 8), keep=[9], edit=[10, 31]), side=256)

    def at(token: int) -> list[list[int]]:
        row, column = divmod(token, 8)
        cell = pixels[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        return np.unique(cell.reshape(-1, 3), axis=0).tolist()

    assert at(10) == at(31) == [mixed(EDIT)]
    assert at(9) == [mixed(DETAIL)]
    assert at(0) == at(8) == at(11) == [[int(0.45 * GREY)] * 3]


def test_context_that_ran_seldom_is_faint():
    plan = plan_of((4, 8), keep=[9], edit=[10])
    often, seldom = (
        np.asarray(token_map(Image.new("RGB", (128, 64), (GREY,) * 3), plan, 256, given))
        for given in (None, (1, 8))
    )
    differs = (often[:128, :256] != seldom[:128, :256]).any(-1)
    context = np.zeros((4, 8), bool)
    context[1, 1] = True
    assert np.array_equal(differs, context.repeat(32, 0).repeat(32, 1))
    assert often.shape != seldom.shape  # the legend says it too


@pytest.mark.parametrize(
    ("cells", "middles"),
    [
        ([0], [(2, 2)]),
        ([0, 2], [(2, 2), (6, 2)]),
        ([1, 3], [(2, 4.5), (6, 4.5)]),  # a ragged cell: the middle of what it has on the grid
    ],
    ids=str,
)
def test_coarse_tokens_are_dots_at_their_places(cells, middles):
    """On 8 x 5 tokens: two rows of cells of 4, their second column one token wide."""
    pixels = drawn(plan_of((8, 5), stride=4, cells=cells), side=320)[:320, :200].astype(int)
    yellow = (pixels == COARSE).all(-1)
    for row, column in middles:
        y, x = int(row * 40), int(column * 40)
        assert yellow[y, x]
        yellow[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15] = False
    assert not yellow.any()


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((32, 32), (1024, 1024)),
        ((8, 64), (1024, 128)),
        ((400, 1), (4, 1600)),
        ((1, 1), (1024,) * 2),
    ],
    ids=str,
)
def test_the_map_has_the_grid_s_shape_and_room_for_the_counts(grid, size):
    pixels = drawn(plan_of(grid, keep=[0]))
    width, height = size
    assert pixels.shape[0] == height + 2 * TEXT + GAP
    assert pixels.shape[1] >= max(width, 400)
    below = pixels[height:]
    assert (below != PAPER).any()
    assert (below[:, -GAP:] == PAPER).all()  # no word is cut off
    assert (pixels[:height, width:] == PAPER).all()


def test_a_sheet_sets_pictures_in_a_row_under_their_captions():
    red, blue = Image.new("RGB", (40, 20), (255, 0, 0)), Image.new("RGB", (50, 100), (0, 0, 255))
    result = sheet(
        [("red", red), ("a caption wider than its picture", blue), ("", red)], height=100
    )
    pixels, top = np.asarray(result), 2 * GAP + TEXT
    assert result.height == top + 100 + GAP
    row = pixels[top + 50]
    assert (row[GAP : GAP + 200] == (255, 0, 0)).all()
    second = GAP + 200 + GAP
    assert (row[second : second + 50] == (0, 0, 255)).all()
    assert (pixels[:, -GAP:] == PAPER).all()
    assert (row[-GAP - 200 : -GAP] == (255, 0, 0)).all()
    gap = pixels[:top, result.width - 2 * GAP - 200 : result.width - GAP - 200]
    assert (gap == PAPER).all()  # between one caption and the next


def test_a_sheet_of_a_line():
    assert sheet([("thin", Image.new("RGB", (1, 4000)))]).height == 512 + 3 * GAP + TEXT


@pytest.mark.parametrize(
    "box",
    [(20, 40, 30, 60), (0, 64, 0, 80), (0, 1, 79, 80), (63, 64, 0, 80), (10, 11, 10, 11)],
    ids=str,
)
def test_an_outline_changes_the_border_only(box):
    top, bottom, left, right = box
    mask = np.zeros((64, 80), bool)
    mask[top:bottom, left:right] = True
    photo = Image.new("RGB", (80, 64), (GREY,) * 3)
    pixels = np.asarray(outlined(photo, mask))
    changed = (pixels != GREY).any(-1)
    assert (pixels[changed] == OUTLINE).all()
    border = np.zeros_like(mask)
    border[top : bottom + 1, left : right + 1] = True
    border[top + 2 : bottom - 1, left + 2 : right - 1] = False
    assert not changed[~border].any()
    for row, column in ((top, left), (top, right - 1), (bottom - 1, left), (bottom - 1, right - 1)):
        assert changed[row, column]
    assert mask.sum() == (bottom - top) * (right - left)  # the given mask is left alone
