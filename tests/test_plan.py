"""Plans: what must hold of every one, for random masks, grids and options."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hilotoken import METHODS, Dense, HiLo, plan_tokens
from hilotoken.grid import dilate, touch
from hilotoken.methods import build
from hilotoken.methods.hilo import COARSE_CELLS, CONTEXTS
from hilotoken.plan import POSITIONS, TokenPlan, cells_of, gather, scatter, token_positions
from hilotoken.scores import SCORES, score

CELL = 4  # pixels a side of a token here
PLAIN = HiLo(dilate=1, detail=0, coarse=0, bucket=1)


@st.composite
def options(draw: st.DrawFn) -> HiLo:
    """Any that have an effect, which some have beside others alone."""
    share = st.sampled_from([0.0, 0.03, 0.1, 0.25, 0.5, 1.0])
    context, coarse = draw(st.sampled_from(CONTEXTS)), draw(st.sampled_from([0, 2, 3, 4, 7]))
    given: dict[str, Any] = {draw(st.sampled_from(["detail", "detail", "energy"])): draw(share)}
    if coarse:
        given["coarse_cells"] = draw(st.sampled_from(COARSE_CELLS))
        given["positions"] = draw(st.sampled_from(POSITIONS))
    if context == "sampled":
        given["cell"] = draw(st.sampled_from([2, 3, 4, 1]))
    if coarse or context == "sampled":
        given["weights"] = draw(st.booleans())
    return HiLo(
        **given,
        dilate=draw(st.sampled_from([0, 1, 2, 3])),
        score=draw(st.sampled_from([*SCORES, "random"])),
        coarse=coarse,
        context=context,
        bucket=draw(st.sampled_from([1, 7, 16, 64])),
        seed=draw(st.integers(0, 9)),
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A photo with texture in places, a mask of a few boxes (or none, or all), and their grid."""
    h, w = (draw(st.sampled_from([9, 13, 12, 6, 2, 1])) for _ in range(2))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    photo = torch.rand(1, 3, h * CELL, w * CELL, generator=random)
    busy = torch.rand(1, 1, h, w, generator=random) ** 3
    photo = 0.5 + (photo - 0.5) * busy.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    mask = torch.zeros(1, 1, h * CELL, w * CELL)
    for _ in range(draw(st.sampled_from([1, 2, 0]))):
        top, left = (draw(st.integers(0, n * CELL - 1)) for n in (h, w))
        mask[..., top : top + draw(st.integers(1, 12)), left : left + draw(st.integers(1, 12))] = 1
    if draw(st.sampled_from([False] * 9 + [True])):
        mask[:] = 1
    return photo, mask, (h, w)


def runs(plan: TokenPlan) -> Tensor:
    return torch.zeros(plan.tokens_full, dtype=torch.bool).index_fill(0, plan.keep_K, True)


def photo_of(grid: tuple[int, int], seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, grid[0] * CELL, grid[1] * CELL, generator=random)


def dot(grid: tuple[int, int], row: int = 0, column: int = 0) -> Tensor:
    """A mask of one pixel."""
    mask = torch.zeros(1, 1, grid[0] * CELL, grid[1] * CELL)
    mask[..., row, column] = 1
    return mask


every_plan = given(scenes(), options())
quick = settings(deadline=None, max_examples=150)


@quick
@every_plan
def test_every_edit_token_runs_and_order_is_raster(scene, method):
    photo, mask, grid = scene
    plan = method.plan(photo, mask, grid)
    expected = dilate(touch(mask, grid), method.dilate).flatten()
    assert torch.equal(plan.edit_N, expected)
    assert runs(plan)[plan.edit_N].all()
    for index in (plan.keep_K, plan.cells_M):
        assert (index.diff() > 0).all()  # ascending, and so unique
        assert index.dtype == torch.int64
    assert len(plan.count_S) == plan.tokens_run == sum(plan.counts.values())
    assert plan.positions == (method.positions or "interpolated")
    assert plan.weighted == method.weights


@quick
@every_plan
def test_lengths_are_whole_buckets_or_everything(scene, method):
    plan = method.plan(*scene)
    assert plan.tokens_run <= plan.tokens_full
    if plan.tokens_run % method.bucket:
        assert len(plan.keep_K) == plan.tokens_full
    if len(plan.keep_K) == plan.tokens_full:
        assert plan.keep_ratio == 1
        assert not len(plan.cells_M)
        assert (plan.count_S == 1).all()


@quick
@every_plan
def test_counts_account_for_every_token(scene, method):
    """With a coarse token wherever one was dropped, or a kept one in every sampled cell."""
    plan = method.plan(*scene)
    assert (plan.count_S >= 1).all()
    K, total = len(plan.keep_K), plan.count_S.sum().item()
    if method.coarse and method.coarse_cells == "open":
        assert total == plan.tokens_full
    if not method.coarse and method.context == "sampled":
        assert total == pytest.approx(plan.tokens_full, rel=1e-5)
        assert (plan.count_S[plan.edit_N[plan.keep_K]] == 1).all()
    if not method.coarse and method.context == "frequency":
        assert total == K
    assert (plan.count_S[:K] == 1).all() or not len(plan.cells_M)


@quick
@every_plan
def test_coarse_cells_are_those_asked_for(scene, method):
    photo, mask, grid = scene
    plan = method.plan(photo, mask, grid)
    if not method.coarse or len(plan.keep_K) == plan.tokens_full:
        assert not len(plan.cells_M)
        return
    assert plan.stride == method.coarse
    cell_N = cells_of(grid, method.coarse)
    is_open, touched = set(cell_N[~runs(plan)].tolist()), touch(mask, grid).flatten()
    expected = {
        "all": set(cell_N.tolist()),
        "open": is_open,
        "clear": is_open - set(cell_N[touched].tolist()),
    }[method.coarse_cells]
    assert set(plan.cells_M.tolist()) == expected


@quick
@every_plan
def test_gather_and_scatter_are_a_round_trip(scene, method):
    plan = method.plan(*scene)
    x, fill = torch.randn(2, plan.tokens_full, 3), torch.randn(2, plan.tokens_full, 3)
    short = torch.cat([gather(x, plan), torch.full((2, len(plan.cells_M), 3), torch.nan)], 1)
    back = scatter(short, plan, fill)
    assert torch.equal(back[:, runs(plan)], x[:, runs(plan)])
    assert torch.equal(back[:, ~runs(plan)], fill[:, ~runs(plan)])
    assert torch.equal(gather(back, plan), gather(x, plan))


@quick
@given(scenes(), st.floats(0, 1), st.sampled_from([*SCORES]))
def test_detail_is_a_share_of_the_grid_and_the_best_of_it(scene, detail, name):
    photo, mask, grid = scene
    plan = replace(PLAIN, detail=detail, score=name).plan(photo, mask, grid)
    outside = ~plan.edit_N
    wanted = min(round(detail * plan.tokens_full), int(outside.sum()))
    assert plan.counts["detail"] == wanted
    detail_N = runs(plan) & outside
    score_N = score(photo, grid, name)[0]
    if detail_N.any() and (outside & ~detail_N).any():
        assert score_N[detail_N].min() >= score_N[outside & ~detail_N].max()


@quick
@given(scenes(), st.floats(0, 1))
def test_energy_takes_the_fewest_tokens_that_hold_it(scene, energy):
    photo, mask, grid = scene
    plan = replace(PLAIN, detail=None, energy=energy).plan(photo, mask, grid)
    score_N = score(photo, grid, "laplacian")[0].double()
    total, chosen = score_N[~plan.edit_N].sum(), score_N[runs(plan) & ~plan.edit_N]
    if not len(chosen):
        assert energy * total <= 1e-9 * total
        return
    assert chosen.sum() >= energy * total * (1 - 1e-6)
    assert chosen.sum() - chosen.min() <= energy * total * (1 + 1e-6)


@quick
@given(scenes(), st.integers(1, 5), st.integers(0, 99), st.sampled_from([0.0, 0.2]))
def test_sampling_takes_one_token_of_every_open_cell(scene, cell, seed, detail):
    """Besides those of detail."""
    sure = runs(replace(PLAIN, detail=detail).plan(*scene))
    method = replace(PLAIN, detail=detail, context="sampled", cell=cell, seed=seed)
    plan, cell_N = method.plan(*scene), cells_of(scene[2], cell)
    assert runs(plan)[sure].all()
    picked = cell_N[runs(plan) & ~sure].tolist()
    assert sorted(picked) == sorted(set(cell_N[~sure].tolist()))


def test_a_busy_photo_gets_more_tokens_than_a_plain_one():
    grid, method = (12, 12), replace(PLAIN, detail=None, energy=0.9)
    busy = photo_of(grid)
    plain = torch.full_like(busy, 0.5)
    lone = plain.clone()
    lone[..., 20:24, 20:24] = busy[..., 20:24, 20:24]
    some, few, none = (
        method.plan(photo, dot(grid), grid).counts["detail"] for photo in (busy, lone, plain)
    )
    assert some > 5 * few > 5 * none == 0


def test_equal_scores_are_taken_in_raster_order():
    grid = (6, 7)
    flat = torch.full((1, 3, 24, 28), 0.3)
    plan = replace(PLAIN, dilate=0, detail=5 / 42).plan(flat, dot(grid, row=0, column=9), grid)
    assert plan.keep_K.tolist() == [0, 1, 2, 3, 4, 5]  # token 2 is the edited one


@pytest.mark.parametrize("changes", [{"score": "random", "detail": 0.3}, {"context": "sampled"}])
def test_random_choices_follow_the_seed_alone(changes):
    grid = (12, 12)
    photo, other, mask = photo_of(grid), photo_of(grid, 1), dot(grid)

    def kept(seed, photo=photo):
        return replace(PLAIN, seed=seed, **changes).plan(photo, mask, grid).keep_K

    before = torch.get_rng_state()
    assert torch.equal(kept(3), kept(3))
    assert torch.equal(kept(3), kept(3, other))
    assert not torch.equal(kept(3), kept(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_shares_the_union_of_its_masks_and_weighs_photos_alike():
    grid = (8, 8)
    masks = torch.cat([dot(grid), dot(grid, 31, 31)])
    quiet, loud = 0.5 + 0.01 * (photo_of(grid) - 0.5), photo_of(grid, 1)
    plan = replace(PLAIN, detail=0.25).plan(torch.cat([quiet, loud]), masks, grid)
    assert plan.edit_N.nonzero().flatten().tolist() == [0, 1, 8, 9, 54, 55, 62, 63]
    alone = [replace(PLAIN, detail=0.25).plan(p, masks[:1], grid) for p in (quiet, loud)]
    shared = [int((runs(plan) & runs(one) & ~plan.edit_N).sum()) for one in alone]
    assert min(shared) > 4


def test_a_cell_that_the_bucket_fills_up_lets_its_coarse_token_go():
    """Of 5 tokens 12 are made: 1 to 7 come in, cells 0 and 1 are whole, so 8 and 9 come in too."""
    flat, mask = torch.full((1, 3, 16, 16), 0.3), dot((4, 4))
    plan = HiLo(dilate=0, detail=0, coarse=2, bucket=12).plan(flat, mask, (4, 4))
    assert plan.keep_K.tolist() == list(range(10))
    assert plan.cells_M.tolist() == [2, 3]
    assert plan.count_S.tolist() == [1] * 10 + [2, 4]


def test_places_by_hand():
    """A grid of 3 x 5: cells of 2 reach beyond it, below and to the right."""
    nothing = torch.zeros(15, dtype=torch.bool)
    plan = TokenPlan((3, 5), torch.tensor([0, 7]), nothing, 2, torch.tensor([1, 5]), torch.ones(4))
    native = [[0, 0], [1, 2]]
    assert token_positions(plan).tolist() == [*native, [0.5, 2.5], [2.5, 4.5]]
    assert token_positions(replace(plan, positions="aligned")).tolist() == [
        *native, [0.5, 2.5], [2.5, 4.5],
    ]  # fmt: skip
    assert token_positions(replace(plan, positions="native")).tolist() == [*native, [0, 2], [2, 4]]
    three = TokenPlan((7, 7), torch.tensor([8]), nothing, 3, torch.tensor([4]), torch.ones(2))
    assert token_positions(three).tolist() == [[1, 1], [4, 4]]
    assert cells_of((3, 5), 2).view(3, 5).tolist() == [
        [0, 0, 1, 1, 2],
        [0, 0, 1, 1, 2],
        [3, 3, 4, 4, 5],
    ]


BAD = {
    "dilate": (-1, 1.5, "2", True),
    "detail": (-0.1, 1.1, float("nan"), True, "much"),
    "energy": (-0.1, 1.1, float("nan"), "much"),
    "score": ("entropy", {}, {"laplacian": -1.0}, {"entropy": 1.0}, {"sobel": 0.0}),
    "coarse": (-1, 1, 2.0),
    "coarse_cells": ("some", 1),
    "positions": ("anywhere",),
    "context": ("all",),
    "cell": (0, -1, 1.5),
    "bucket": (0, -64, 1.0),
    "weights": ("yes", 1, 0.5),
    "seed": (-1, 0.5),
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, values in BAD.items() for v in values])
def test_bad_options_are_refused_by_name_with_what_is_allowed(name, value):
    allowed = r"0 or more|1 or more|2 or more|\[0, 1\]|choose from|in \[0, 1e|True or False"
    with pytest.raises(ValueError, match=allowed) as error:
        HiLo(**{name: value})
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coarse": 0, "weights": True}, "weights=True .* each stands for itself: leave it out"),
        ({"cell": 2}, "cell=2 is of sampled context"),
        ({"coarse": 0, "positions": "native"}, "positions='native' is of coarse tokens"),
        ({"coarse": 0, "coarse_cells": "all"}, "coarse_cells='all' is of coarse tokens"),
        ({"context": "sampled", "positions": "interpolated"}, "is of coarse tokens"),
        ({"detail": 0.1, "energy": 0.5}, "detail=0.1 and energy=0.5 .*: give one"),
        ({"detail": 0, "energy": 0}, "detail=0 and energy=0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HiLo(**options)


def test_what_is_not_given_follows_from_the_rest():
    def usual(**options):
        made = HiLo(**options)
        return made.detail, made.coarse, made.coarse_cells, made.positions, made.cell, made.weights

    assert usual() == (0.1, 4, "open", "interpolated", None, False)
    assert usual(energy=0.5) == (None, 4, "open", "interpolated", None, False)
    assert usual(coarse=0) == (0.1, 0, None, None, None, False)
    assert usual(context="sampled") == (0.1, 0, None, None, 2, True)
    assert usual(context="sampled", coarse=4) == (0.1, 4, "open", "interpolated", 2, True)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_built_by_name(name):
    assert build(name) == METHODS[name]()
    with pytest.raises(ValueError, match=r"unknown method 'none'; choose from \["):
        build("none")


def test_the_defaults_are_the_papers_shape():
    method = HiLo()
    assert (method.context, method.coarse, method.score) == ("frequency", 4, "laplacian")
    assert HiLo(context="sampled").coarse == 0
    assert HiLo(context="sampled", coarse=3).coarse == 3


def test_sampled_context_is_weighted_unless_told_otherwise():
    assert HiLo(context="sampled").weights
    assert not HiLo(context="sampled", weights=False).weights
    assert not HiLo().weights
    assert HiLo(weights=True).weights


@pytest.mark.parametrize("method", [HiLo(), HiLo(context="sampled"), Dense()])
@pytest.mark.parametrize("pixels", ["one", "all"])
def test_the_smallest_and_the_largest_mask(method, pixels):
    grid = (12, 10)
    mask = dot(grid, 20, 20) if pixels == "one" else torch.ones(1, 1, 48, 40)
    plan = plan_tokens(photo_of(grid), mask, grid=grid, method=method)
    assert plan.counts["edit"] == {"one": plan.edit_N.sum(), "all": 120}[pixels]
    assert plan.counts["edit"] > 0
    if pixels == "all" or method == Dense():
        assert plan.keep_ratio == 1
    else:
        assert plan.keep_ratio < 1


def test_a_large_photo_is_planned_in_whole_buckets():
    photo = torch.rand(1, 3, 1024, 1024)
    mask = torch.zeros(1, 1, 1024, 1024)
    mask[..., 300:500, 400:700] = 1
    plan = plan_tokens(photo, mask, grid=(64, 64))
    assert plan.tokens_run % 64 == 0
    assert plan.counts["detail"] >= 410
    assert plan.counts["coarse"] > 200
    assert 0.2 < plan.keep_ratio < 0.4


def test_pictures_arrays_and_tensors_give_one_plan():
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (48, 64, 3), np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[5:9, 30:40] = 255
    photo_1, mask_1 = np.float32(photo) / 255, np.float32(mask) / 255
    tensor, mask_2 = torch.from_numpy(photo_1).permute(2, 0, 1), torch.from_numpy(mask_1)
    forms = [
        (Image.fromarray(photo), Image.fromarray(mask)),
        (photo_1, mask_1),
        (photo_1[None], mask_1[..., None]),
        (photo_1[::-1][::-1], mask_1[None, ..., None]),
        (tensor, mask_2),
        (tensor[None], mask_2[None]),
        (Image.fromarray(photo), mask_2[None, None]),
    ]
    plans = [plan_tokens(*form, grid=(12, 16), method=HiLo(bucket=8)) for form in forms]
    for plan in plans:
        assert torch.equal(plan.keep_K, plans[0].keep_K)
        assert torch.equal(plan.edit_N, plans[0].edit_N)


@pytest.mark.parametrize(
    ("photo", "mask", "message"),
    [
        (torch.rand(3, 32, 32), torch.zeros(32, 40), "photo is 32x32 but the mask is 40x32"),
        (torch.full((3, 32, 32), torch.nan), torch.zeros(32, 32), "photo has .* NaN"),
        (torch.rand(3, 32, 32), torch.full((32, 32), torch.inf), "mask has .* infinite"),
        (torch.rand(3, 32, 32) * 255, torch.zeros(32, 32), r"photo must lie in \[0, 1\]"),
        (torch.rand(3, 32, 32), torch.full((32, 32), 255.0), r"mask must lie in \[0, 1\]"),
        (np.zeros((32, 32, 3), np.uint8), torch.zeros(32, 32), "photo must be floating point"),
        (torch.rand(3, 32, 32), np.zeros((32, 32), bool), "mask must be floating point"),
        (torch.rand(4, 32, 32), torch.zeros(32, 32), r"photo must have shape \[B, 3, H, W\]"),
        (torch.rand(3, 4, 4), torch.zeros(4, 4), "grid of 8x8 tokens does not fit"),
    ],
)
def test_what_cannot_be_planned_is_refused(photo, mask, message):
    with pytest.raises(ValueError, match=message):
        plan_tokens(photo, mask, grid=(8, 8))


def test_a_plan_moves_and_reports():
    plan = plan_tokens(photo_of((8, 8)), dot((8, 8)), grid=(8, 8), method=HiLo(bucket=8))
    moved = plan.to(torch.device("meta"))
    assert moved.keep_K.device.type == moved.count_S.device.type == "meta"
    assert (moved.grid, moved.tokens_run) == (plan.grid, plan.tokens_run)
    assert plan.keep_ratio == plan.tokens_run / 64


@pytest.mark.parametrize("cell", [2, 3])
@pytest.mark.parametrize("options", [{"bucket": 1}, {"bucket": 16}, {"bucket": 64}, {"coarse": 0}])
def test_no_token_weighs_more_than_another_on_the_mean(options, cell):
    """Horvitz and Thompson: of 600 draws the mean weight is 1, whatever fills the bucket."""
    score_N = torch.rand(256, generator=torch.Generator().manual_seed(0))
    touched = torch.zeros(16, 16, dtype=torch.bool)
    touched[5:9, 6:11] = True
    weight_N, draws = torch.zeros(256), 600
    for seed in range(draws):
        method = HiLo(context="sampled", cell=cell, seed=seed, **options)
        plan = method.select(score_N, touched, (16, 16))
        weight_N[plan.keep_K] += plan.count_S / draws
    # One token of k weighs k, the others nothing: a variance of k - 1 for each draw.
    bound = 5 * ((cell**2 - 1) / draws) ** 0.5
    assert (weight_N - 1).abs().max() < bound
    assert weight_N.mean() == pytest.approx(1, rel=1e-5)


def test_in_a_sampled_cell_the_sampled_token_alone_stands_for_the_dropped():
    score_N = torch.zeros(16)
    score_N[[0, 2]] = 1  # two certain tokens, in the two upper cells of a 4x4 grid
    untouched = torch.zeros(4, 4, dtype=torch.bool)
    plan = HiLo(context="sampled", detail=2 / 16, bucket=1, dilate=0).select(
        score_N, untouched, (4, 4)
    )
    counts = dict(zip(plan.keep_K.tolist(), plan.count_S.tolist(), strict=True))
    assert counts.pop(0) == counts.pop(2) == 1
    assert sorted(counts.values()) == [3, 3, 4, 4]
