"""The neighbouring methods against reference outputs, cases worked by hand, and their laws.

`golden/` holds seeded inputs and what the released code of each method made of them on a CPU in
float32, where that code does what its paper says; `manifest.json` names the arguments.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from hilotoken.blocks.matching import Match
from hilotoken.methods import bigain, sdtm, todo, tome
from hilotoken.methods.pooling import cluster

GOLDEN = Path(__file__).parent / "golden"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())
HALVES = (torch.float16, torch.bfloat16)


def golden(prefix: str) -> Any:
    """One test for every golden case of that name: its arguments and its tensors."""
    names = [name for name in MANIFEST if name.startswith(prefix)]
    return pytest.mark.parametrize("name", names)


def load(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return MANIFEST[name], load_file(GOLDEN / f"{name}.safetensors")


def tokens(seed: int, *shape: int, coarse: bool = False) -> Tensor:
    """Noise; the coarse kind has many equal and some zero tokens."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.round().clamp(-1, 1) if coarse else x


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


# Reference outputs


@golden("tome")
def test_tome_equals_the_reference(name):
    case, tensor = load(name)
    stride = case["stride_y"], case["stride_x"]
    size, removed = (case["height"], case["width"]), case["removed"]
    match = tome.match(tensor["metric"], *size, removed=removed, stride=stride)
    merged = match.merge(tensor["x"])
    assert merged.shape[1] == match.tokens == case["merged_tokens"]
    assert_same(match.unmerge(merged), tensor["unmerged"])


@golden("todo")
def test_todo_equals_the_reference(name):
    case, tensor = load(name)
    mode = {"avg_pool": "average"}.get(case["method"], case["method"])
    size = case["height"], case["width"]
    assert_same(
        todo.downsample(tensor["x"], *size, factor=case["factor"], mode=mode), tensor["down"]
    )


@golden("bigain_td")
def test_bigain_downsampling_equals_the_reference(name):
    case, tensor = load(name)
    size, options = (case["height"], case["width"]), {k: case[k] for k in ("factor", "alpha")}
    assert_same(bigain.downsample(tensor["x"], *size, **options), tensor["down"])


@golden("bigain_tm")
def test_bigain_score_equals_the_reference(name):
    case, tensor = load(name)
    size = case["height"], case["width"]
    score_BN = bigain.laplacian_score(tensor["x"], *size, norm=case["norm"])
    assert_same(score_BN, tensor["score"])
    assert torch.equal(score_BN.argsort(), tensor["score"].argsort())


@golden("sdtm_structure")
def test_sdtm_structure_stage_equals_the_reference(name):
    case, tensor = load(name)
    match, staleness_BN = sdtm.match_structure(
        tensor["metric"],
        case["side"],
        case["side"],
        removed=case["removed_requested"],
        staleness=tensor["staleness_before"] if case["has_staleness"] else None,
        weight=case["a_s"],
    )
    check_sdtm(match, staleness_BN, case, tensor)


@golden("sdtm_detail")
def test_sdtm_detail_stage_equals_the_reference(name):
    case, tensor = load(name)
    match, staleness_BN = sdtm.match_detail(
        tensor["metric"],
        case["side"],
        case["side"],
        removed=case["removed_requested"],
        staleness=tensor["staleness_before"],
    )
    check_sdtm(match, staleness_BN, case, tensor)


def check_sdtm(match: Match, staleness_BN: Tensor, case: dict, tensor: dict[str, Tensor]) -> None:
    merged = match.merge(tensor["x"])
    assert merged.shape[1] == match.tokens == case["merged_tokens"]
    assert_same(match.unmerge(merged), tensor["unmerged"])
    assert torch.equal(staleness_BN, tensor["staleness_after"])


@pytest.mark.parametrize("case", MANIFEST["sdtm_ratio"])
def test_sdtm_schedule_equals_the_reference(case):
    schedule = sdtm.ratio_schedule(case["ratio"], case["deviation"], case["steps"])
    assert schedule == pytest.approx(case["values"], abs=1e-12)


# Laws of every match


@st.composite
def cases(draw: st.DrawFn) -> tuple[Callable[[slice], Match], Tensor, int]:
    """How to match some samples of a batch, the batch, and how many tokens must be left of each."""
    name = draw(st.sampled_from(["tome", "random", "bigain", "structure", "detail"]))
    seed, coarse = draw(st.integers(0, 999)), draw(st.booleans())
    if name in ("structure", "detail"):
        size = 2 * draw(st.integers(1, 6)), 2 * draw(st.integers(1, 6))
        stride = sdtm.WINDOW
    else:
        size = draw(st.integers(2, 9)), draw(st.integers(2, 9))
        stride = draw(st.integers(1, min(4, size[0]))), draw(st.integers(1, min(4, size[1])))
    N = size[0] * size[1]
    sources = N - (size[0] // stride[0]) * (size[1] // stride[1])
    removed = draw(st.integers(0, sources))
    x_BNC = tokens(seed, 3, N, 4, coarse=coarse)
    staleness = tokens(seed + 1, 3, N).abs().mul(4).int()

    def match(samples: slice) -> Match:
        some_BNC, options = x_BNC[samples], dict[str, Any](removed=removed)
        match name:
            case "structure":
                options |= {"staleness": staleness[samples], "weight": 0.05}
                return sdtm.match_structure(some_BNC, *size, **options)[0]
            case "detail":
                options |= {"staleness": staleness[samples]}
                return sdtm.match_detail(some_BNC, *size, **options)[0]
            case "bigain":
                return bigain.match(some_BNC, *size, stride=stride, **options)
        generator = torch.Generator().manual_seed(seed) if name == "random" else None
        return tome.match(some_BNC, *size, stride=stride, generator=generator, **options)

    group = {"structure": 48, "detail": 16}.get(name, 1)
    return match, x_BNC, N - removed // group * group


@settings(deadline=None, max_examples=200)
@given(cases())
def test_every_token_is_in_one_slot_and_every_slot_has_its_home(case):
    function, x_BNC, left = case
    match = function(slice(None))
    assert match.home_BM.shape == (3, left)
    assert (match.home_BM.diff(dim=1) > 0).all()
    at_home_BM = match.slot_BN.gather(1, match.home_BM)
    assert torch.equal(at_home_BM, torch.arange(left).expand(3, -1))
    assert match.count_BM.sum(1).tolist() == [x_BNC.shape[1]] * 3
    assert match.count_BM.min() >= 1


@settings(deadline=None, max_examples=200)
@given(cases())
def test_merging_is_the_mean_of_each_slot_and_unmerging_its_copy(case):
    function, x_BNC, left = case
    match = function(slice(None))
    merged_BMC = match.merge(x_BNC)
    returned_BNC = match.unmerge(merged_BMC)
    member_BNM = torch.nn.functional.one_hot(match.slot_BN, left).float()
    mean_BMC = member_BNM.mT @ x_BNC / member_BNM.sum(1)[..., None]
    assert_same(merged_BMC, mean_BMC)
    assert torch.equal(returned_BNC, member_BNM @ merged_BMC)
    alone_BN = (match.count_BM == 1).gather(1, match.slot_BN)
    assert torch.equal(returned_BNC[alone_BN], x_BNC[alone_BN])
    flat_BNC = torch.full_like(x_BNC, 0.3)
    assert_same(match.unmerge(match.merge(flat_BNC)), flat_BNC)
    total_BC = (merged_BMC * match.count_BM[..., None]).sum(1)
    torch.testing.assert_close(total_BC, x_BNC.sum(1), rtol=1e-5, atol=1e-5)
    if left == x_BNC.shape[1]:
        assert torch.equal(merged_BMC, x_BNC)


@settings(deadline=None, max_examples=200)
@given(cases())
def test_a_sample_is_matched_alike_alone_and_in_a_batch(case):
    function, _, _ = case
    match = function(slice(None))
    for b in range(3):
        alone = function(slice(b, b + 1))
        assert torch.equal(alone.slot_BN, match.slot_BN[b : b + 1])
        assert torch.equal(alone.home_BM, match.home_BM[b : b + 1])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_mean_of_hundreds_in_half_precision_loses_none(dtype):
    x_BNC = torch.full((1, 1024, 2), 300, dtype=dtype)  # a sum beyond float16
    match = tome.match(x_BNC, 32, 32, removed=1023, stride=(32, 32))
    assert match.merge(x_BNC).dtype == dtype
    assert torch.equal(match.unmerge(match.merge(x_BNC)), x_BNC)


def test_a_match_refuses_tokens_of_another_length():
    match = tome.match(tokens(0, 2, 16, 3), 4, 4, removed=4)
    with pytest.raises(ValueError, match=r"\[2, 16, C\], got \[2, 12, 3\]"):
        match.merge(tokens(0, 2, 12, 3))
    with pytest.raises(ValueError, match=r"\[2, 12, C\], got \[1, 12, 3\]"):
        match.unmerge(tokens(0, 1, 12, 3))
    with pytest.raises(ValueError, match=r"\[2, 16, C\], got \[2, 16\]"):
        match.merge(tokens(0, 2, 16))


# ToMe


def test_tome_by_hand():
    # One cell of 2 x 2 and an edge column that no cell covers: token 0 alone is a destination.
    x_16C = torch.tensor([[[1.0, 0], [0, 1], [3, 4], [-1, 0], [5, 0], [4, 3]]])
    match = tome.match(x_16C, 2, 3, removed=2)  # cosines to token 0: 0, .6, -1, 1, .8
    assert match.slot_BN.tolist() == [[0, 1, 2, 3, 0, 0]]
    assert match.home_BM.tolist() == [[0, 1, 2, 3]]
    assert_same(match.merge(x_16C)[0, 0], torch.tensor([10 / 3, 1]))


def test_equal_similarities_go_to_the_lower_index():
    x_BNC = torch.ones(1, 16, 3)
    match = tome.match(x_BNC, 4, 4, removed=5)
    assert match.home_BM.tolist() == [[0, 2, *range(7, 16)]]
    assert match.slot_BN[0, [1, 3, 4, 5, 6]].tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_zero_tokens_are_like_none_and_give_no_nan(dtype):
    x_BNC = torch.ones(1, 16, 3, dtype=dtype)
    x_BNC[0, [1, 10, 15]] = 0  # two sources and a destination
    match = tome.match(x_BNC, 4, 4, removed=10)
    removed = set(range(16)) - set(match.home_BM[0].tolist())
    assert removed == {3, 4, 5, 6, 7, 9, 11, 12, 13, 14}
    assert not match.unmerge(match.merge(x_BNC)).isnan().any()
    assert tome.match(torch.zeros_like(x_BNC), 4, 4, removed=12).tokens == 4


def test_a_seed_draws_one_destination_a_cell_for_the_whole_batch():
    x_BNC, before = tokens(0, 3, 99, 4), torch.get_rng_state()
    match, again, other = (
        tome.match(x_BNC, 9, 11, removed=79, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(match.slot_BN, again.slot_BN)
    assert not torch.equal(match.home_BM, other.home_BM)
    # The released code draws in this shape: the same seed names the same tokens.
    offset = torch.randint(4, (4, 5, 1), generator=torch.Generator().manual_seed(0))[..., 0]
    rows, columns = torch.arange(4)[:, None] * 2 + offset // 2, torch.arange(5) * 2 + offset % 2
    home_D = (rows * 11 + columns).flatten().sort().values
    assert torch.equal(match.home_BM, home_D.expand(3, -1))


def test_equally_similar_destinations_are_settled_by_the_lower_index():
    x_BNC = torch.ones(1, 16, 3)
    for seed in range(9):
        match = tome.match(x_BNC, 4, 4, removed=12, generator=torch.Generator().manual_seed(seed))
        assert match.count_BM.tolist() == [[13, 1, 1, 1]]


# BiGain


def test_laplacian_by_hand():
    x_1N2 = torch.zeros(1, 12, 2)
    x_1N2[0, 5] = torch.tensor([3.0, -4.0])  # row 1, column 1 of 3 x 4
    ring = [0, 1, 0, 0, 1, 4, 1, 0, 0, 1, 0, 0]
    for norm, size in (("l1", 7), ("l2", 5)):
        score_1N = bigain.laplacian_score(x_1N2, 3, 4, norm=norm)
        assert_same(score_1N, torch.tensor([ring]).float() * size)
    flat_1N = bigain.laplacian_score(
        torch.ones(1, 12, 1), 3, 4
    )  # zeros around it: the border scores
    assert flat_1N.tolist() == [[2, 1, 1, 2, 1, 0, 0, 1, 2, 1, 1, 2]]


def test_bigain_merges_into_the_true_minimum_of_each_cell():
    x_1N1 = torch.ones(1, 16, 1)
    x_1N1[0, 5] = 2  # row 1, column 1
    score = [[2, 0, 1, 2], [0, 4, 1, 1], [1, 1, 0, 1], [2, 1, 1, 2]]
    expected_1N = torch.tensor([score]).flatten(1).float()
    assert torch.equal(bigain.laplacian_score(x_1N1, 4, 4), expected_1N)
    match = bigain.match(x_1N1, 4, 4, removed=12)
    # The first minimum of each cell of 2 x 2. Of each *row* of four, as the released code has it,
    # the minima are at offsets 1, 0, 2 and 1, which in the cells are tokens 1, 2, 12 and 11.
    assert match.home_BM.tolist() == [[1, 2, 8, 10]]


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(2, 9), st.integers(2, 9), st.integers(1, 3))
def test_bigain_destinations_equal_brute_force(seed, height, width, side):
    stride = min(side, height), min(side, width)
    x_BNC = tokens(seed, 2, height * width, 3)
    score_BN = bigain.laplacian_score(x_BNC, height, width)
    home_BD: list[list[int]] = [[], []]
    for b in range(2):
        for row in range(height // stride[0]):
            for column in range(width // stride[1]):
                cell = [
                    (row * stride[0] + y) * width + column * stride[1] + x
                    for y in range(stride[0])
                    for x in range(stride[1])
                ]
                home_BD[b].append(min(cell, key=lambda n: score_BN[b, n].item()))
    removed = height * width - len(home_BD[0])
    match = bigain.match(x_BNC, height, width, removed=removed, stride=stride)
    assert match.home_BM.tolist() == [sorted(home_D) for home_D in home_BD]


# Downsampling


def test_downsampling_by_hand():
    x_1N1 = torch.arange(16.0).view(1, 16, 1)
    expected = {
        "nearest": [0, 2, 8, 10],
        "nearest-exact": [5, 7, 13, 15],
        "average": [2.5, 4.5, 10.5, 12.5],
        "area": [2.5, 4.5, 10.5, 12.5],
    }
    for mode, values in expected.items():
        assert todo.downsample(x_1N1, 4, 4, factor=2, mode=mode).flatten().tolist() == values
    blend = bigain.downsample(x_1N1, 4, 4, factor=2, alpha=1.2)
    assert blend.flatten().tolist() == pytest.approx([5.5, 7.5, 13.5, 15.5])
    # 4 x 4 read as 2 x 8: rows and columns are not mixed up.
    assert todo.downsample(x_1N1, 2, 8, factor=2, mode="nearest").flatten().tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("mode", todo.MODES)
@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_downsampling_has_the_right_size_and_keeps_constants(mode, height, width, factor, seed):
    factor = min(factor, height, width)
    x_BNC = tokens(seed, 2, height * width, 3)
    down_BMC = todo.downsample(x_BNC, height, width, factor=factor, mode=mode)
    assert down_BMC.shape == (2, (height // factor) * (width // factor), 3)
    alone_BMC = todo.downsample(x_BNC[1:], height, width, factor=factor, mode=mode)
    assert torch.equal(alone_BMC, down_BMC[1:])
    flat_BNC = torch.full_like(x_BNC, 0.3)
    assert_same(
        todo.downsample(flat_BNC, height, width, factor=factor, mode=mode), 0.3 + 0 * down_BMC
    )
    if factor == 1:
        assert torch.equal(down_BMC, x_BNC)


# SDTM


def test_structure_stage_collapses_the_windows_alike_within():
    x_1NC = tokens(0, 1, 128, 8)
    row, column = torch.arange(128) // 16, torch.arange(128) % 16
    window_N = row // 2 * 8 + column // 2  # 32 windows on a grid of 8 x 16
    alike_N = window_N % 2 == 1
    x_1NC[0, alike_N] = 1 + window_N[alike_N, None].float().expand(-1, 8)
    match, staleness_1N = sdtm.match_structure(
        x_1NC, 8, 16, removed=50, staleness=None, weight=0.05
    )
    assert match.tokens == 80
    assert torch.equal(staleness_1N[0] == 1, alike_N)
    assert torch.equal(match.unmerge(match.merge(x_1NC)), x_1NC)
    first_N = (row % 2 == 0) & (column % 2 == 0)
    assert torch.equal(match.home_BM[0], (~alike_N | first_N).nonzero()[:, 0])
    # Enough staleness outweighs likeness; merged tokens grow staler, the others are fresh again.
    stale_1N = torch.where(alike_N, 0, 3)[None]
    options: dict[str, Any] = {"removed": 48, "staleness": stale_1N, "weight": 9.0}
    match, staleness_1N = sdtm.match_structure(x_1NC, 8, 16, **options)
    assert torch.equal(staleness_1N, torch.where(alike_N, 0, 4)[None])


def test_detail_stage_merges_into_the_stalest_token_of_each_window():
    x_1NC = tokens(0, 1, 64, 4)
    stale_1N = torch.zeros(1, 64, dtype=torch.int64)
    stale_1N[0, [9, 10, 3]] = torch.tensor([2, 1, 1])  # windows 0, 1 and again 1: 3 comes first
    match, staleness_1N = sdtm.match_detail(x_1NC, 8, 8, removed=64, staleness=stale_1N)
    destinations = [9, 3, 4, 6, *(16, 18, 20, 22), *(32, 34, 36, 38), *(48, 50, 52, 54)]
    assert match.home_BM.tolist() == [sorted(destinations)]
    assert torch.equal(staleness_1N, stale_1N + 1)
    match, staleness_1N = sdtm.match_detail(x_1NC, 8, 8, removed=31, staleness=stale_1N)
    assert match.tokens == 48
    stays_N = torch.zeros(64, dtype=torch.bool).index_fill(0, match.home_BM[0], True)
    fresh_N = stays_N.index_fill(0, torch.tensor(destinations), False)
    assert torch.equal(staleness_1N, (stale_1N + 1).masked_fill(fresh_N, 0))


def test_ratio_falls_from_the_sum_to_the_difference_around_the_mean():
    schedule = sdtm.ratio_schedule(0.3, 0.2, 50)
    assert schedule[0] == pytest.approx(0.5)
    assert schedule[-1] == pytest.approx(0.1)
    assert sorted(schedule, reverse=True) == list(schedule)
    assert sdtm.ratio_schedule(0.3, 0.2, 1) == pytest.approx((0.5,))
    assert sdtm.ratio_schedule(0.4, 0, 3) == pytest.approx((0.4, 0.4, 0.4))


# Token Pooling


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_weighted_medoids_by_hand():
    # Six points, two clusters. Costs in the first: 1 + 10 = 11, 1 + 5 = 6, 2 + 1 = 3: token 2; the
    # third-party port would name tokens 1 and 3.
    x_1N1 = line(0, 1, 2, 10, 11, 12)
    weights = torch.tensor([[1.0, 1, 5, 1, 1, 5]])
    assignment_BN, centres_BKC = cluster(x_1N1, clusters=2, weights=weights, kind="medoids")
    assert assignment_BN.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert centres_BKC.flatten().tolist() == [2, 12]
    unweighted = cluster(x_1N1, clusters=2, kind="medoids")
    assert unweighted[1].flatten().tolist() == [1, 11]
    # Distances are not squared: 2 + 1 + 4 + 28 = 35 is least, where squares would choose 6.
    assert cluster(line(0, 1, 2, 6, 30), clusters=1, kind="medoids")[1].item() == 2


def test_weighted_means_by_hand():
    x_1N1 = line(0, 1, 2, 10, 11, 12)
    weights = torch.tensor([[1.0, 1, 5, 1, 1, 5]])
    assignment_BN, centres_BKC = cluster(x_1N1, clusters=2, weights=weights)
    assert assignment_BN.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert centres_BKC.flatten().tolist() == pytest.approx([11 / 7, 81 / 7])
    # Without weights it starts at tokens 0 and 1: {0}, {rest}; then 1 and 2 change sides.
    for iterations, second in ((1, 36 / 5), (2, 11)):
        centres_BKC = cluster(x_1N1, clusters=2, iterations=iterations)[1]
        assert centres_BKC.flatten().tolist()[1] == pytest.approx(second)
    assert cluster(x_1N1, clusters=2)[1].flatten().tolist() == [1, 11]


@pytest.mark.parametrize("kind", ["means", "medoids"])
def test_ties_go_to_the_lowest_index_and_an_empty_cluster_keeps_its_centre(kind):
    # Both starts are at 4: all tokens tie and go to cluster 0, cluster 1 stays where it began.
    weights = torch.tensor([[1.0, 2, 2, 1]])
    assignment_BN, centres_BKC = cluster(
        line(3, 4, 4, 5), clusters=2, weights=weights, kind=kind, iterations=1
    )
    assert assignment_BN.tolist() == [[0, 0, 0, 0]]
    assert centres_BKC.flatten().tolist() == [4, 4]
    # Token 1 is as far from 0 as from 2.
    weights = torch.tensor([[2.0, 1, 2]])
    assignment_BN, _ = cluster(line(0, 1, 2), clusters=2, weights=weights, kind=kind, iterations=1)
    assert assignment_BN.tolist() == [[0, 0, 1]]
    # No weight at all: the centre stays.
    zeros = torch.tensor([[0.0, 0, 0]])
    assert cluster(line(7, 8, 9), clusters=1, weights=zeros, kind=kind)[1].item() == 7


def test_the_first_of_a_pair_is_its_medoid():
    x_BNC = tokens(0, 50, 7, 33)
    x_BNC += torch.tensor([100, 200, 300, 400, 500, 0, 0]).view(7, 1)  # the last two are a pair
    assert torch.equal(cluster(x_BNC, clusters=6, kind="medoids")[1], x_BNC[:, :6])


@pytest.mark.parametrize("kind", ["means", "medoids"])
def test_clusters_are_found_far_from_the_origin(kind):
    side_N = torch.arange(40) % 2
    x_BNC = 1000 + 0.1 * side_N[:, None] + 0.01 * tokens(0, 1, 40, 64)
    assert torch.equal(cluster(x_BNC, clusters=2, kind=kind)[0][0], side_N)


@st.composite
def clusterings(draw: st.DrawFn) -> tuple[Tensor, int, Tensor | None, int]:
    N, seed = draw(st.integers(1, 40)), draw(st.integers(0, 999))
    weights = tokens(seed + 1, 2, N).abs() if draw(st.booleans()) else None
    x_BNC = tokens(seed, 2, N, 3, coarse=draw(st.booleans()))
    return x_BNC, draw(st.integers(1, N)), weights, draw(st.integers(1, 6))


@settings(deadline=None)
@given(clusterings())
def test_means_are_the_means_of_what_is_assigned_to_them(case):
    x_BNC, K, weights, iterations = case
    options: dict[str, Any] = {"clusters": K, "weights": weights, "iterations": iterations}
    assignment_BN, centres_BKC = cluster(x_BNC, **options)
    assert assignment_BN.shape == x_BNC.shape[:2]
    assert centres_BKC.shape == (2, K, 3)
    assert 0 <= assignment_BN.min() <= assignment_BN.max() < K
    mass_BN = torch.ones(x_BNC.shape[:2]) if weights is None else weights
    share_BNK = torch.nn.functional.one_hot(assignment_BN, K) * mass_BN[..., None]
    total_BC = (centres_BKC * share_BNK.sum(1)[..., None]).sum(1)
    expected_BC = (x_BNC * mass_BN[..., None]).sum(1)
    torch.testing.assert_close(total_BC, expected_BC, rtol=1e-4, atol=1e-4)
    alone = cluster(x_BNC[1:], **options | {"weights": None if weights is None else weights[1:]})
    assert torch.equal(alone[0], assignment_BN[1:])
    assert torch.equal(alone[1], centres_BKC[1:])


@settings(deadline=None)
@given(clusterings())
def test_medoids_are_the_best_tokens_of_their_clusters(case):
    x_BNC, K, weights, iterations = case
    options: dict[str, Any] = {"clusters": K, "weights": weights, "iterations": iterations}
    assignment_BN, centres_BKC = cluster(x_BNC, kind="medoids", **options)
    mass_BN = torch.ones(x_BNC.shape[:2]) if weights is None else weights
    for b in range(2):
        for k in range(K):
            assert (x_BNC[b] == centres_BKC[b, k]).all(-1).any()
            inside_N = assignment_BN[b] == k
            if inside_N.any():
                members_RC, mass_R = x_BNC[b, inside_N].double(), mass_BN[b, inside_N].double()
                cost_R = (members_RC[:, None] - members_RC).norm(dim=-1) @ mass_R
                cost = (members_RC - centres_BKC[b, k]).norm(dim=-1) @ mass_R
                assert cost <= cost_R.min() + 1e-3


@pytest.mark.parametrize("kind", ["means", "medoids"])
@settings(deadline=None)
@given(st.integers(0, 999), st.integers(2, 30))
def test_more_rounds_never_fit_worse_and_all_clusters_are_the_identity(kind, seed, N):
    x_BNC, power = tokens(seed, 1, N, 3), 2 if kind == "means" else 1

    def loss(iterations: int) -> float:
        _, centres_BKC = cluster(x_BNC, clusters=(N + 3) // 4, kind=kind, iterations=iterations)
        return torch.cdist(x_BNC, centres_BKC).amin(-1).pow(power).sum().item()

    assert loss(1) >= loss(3) - 1e-3 >= loss(9) - 2e-3
    for weights in (None, tokens(seed + 1, 1, N).abs() + 0.1):
        assignment_BN, centres_BKC = cluster(x_BNC, clusters=N, weights=weights, kind=kind)
        assert assignment_BN.tolist() == [list(range(N))]
        assert_same(centres_BKC, x_BNC)


@pytest.mark.parametrize("kind", ["means", "medoids"])
def test_pooling_keeps_the_precision_and_lets_gradients_through(kind):
    x_BNC = tokens(0, 1, 12, 3)
    x_BNC[0, 1] = x_BNC[0, 0]  # an empty cluster
    assert cluster(x_BNC.bfloat16(), clusters=4, kind=kind)[1].dtype == torch.bfloat16
    x_BNC.requires_grad_()
    for weights in (None, (x_BNC.detach()[..., 0] > 0).float()):  # some clusters of no weight
        x_BNC.grad = None
        cluster(x_BNC, clusters=8, weights=weights, kind=kind)[1].sum().backward()
        assert x_BNC.grad is not None
        assert x_BNC.grad.isfinite().all()
        assert x_BNC.grad.any()


# Refusals

X = tokens(0, 2, 16, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tome.match(X, 4, 4, removed=13), r"removed must lie in \[0, 12\] tokens, got 13"),
        (lambda: tome.match(X, 4, 4, removed=-1), r"removed must lie in \[0, 12\] tokens, got -1"),
        (lambda: tome.match(X, 4, 5, removed=0), r"4x5 must have shape \[B, 20, C\].*\[2, 16, 3\]"),
        (lambda: tome.match(X, -4, -4, removed=0), "both sides 1 or more"),
        (lambda: tome.match(X[0], 4, 4, removed=0), r"got \[16, 3\]"),
        (lambda: tome.match(X, 4, 4, removed=0, stride=(5, 2)), r"\[1, 4\] x \[1, 4\].*got 5 x 2"),
        (lambda: tome.match(X, 4, 4, removed=0, stride=(2, 0)), "got 2 x 0"),
        (lambda: bigain.match(X, 4, 4, removed=13), "got 13"),
        (lambda: bigain.match(X, 4, 4, removed=0, norm="l3"), r"unknown norm 'l3'.*\['l1', 'l2'\]"),
        (lambda: bigain.match(X, 8, 4, removed=0), "8x4"),
        (lambda: bigain.downsample(X, 4, 4, factor=2, alpha=float("nan")), "alpha .* got nan"),
        (lambda: bigain.downsample(X, 4, 4, factor=5, alpha=1), r"factor .*\[1, 4\].* got 5"),
        (lambda: todo.downsample(X, 4, 4, factor=0, mode="area"), r"factor .*\[1, 4\].* got 0"),
        (lambda: todo.downsample(X, 4, 4, factor=2, mode="bicubic"), "unknown mode 'bicubic'"),
        (lambda: todo.downsample(X, 2, 4, factor=2, mode="area"), "2x4"),
        (lambda: structure(removed=13), r"removed must lie in \[0, 12\] tokens, got 13"),
        (lambda: structure(size=(2, 7)), "2x7"),
        (lambda: structure(size=(1, 16)), "even height and width, got a grid of 1x16"),
        (lambda: structure(staleness=X[..., :1]), r"shape \[2, 16\], got \[2, 16, 1\]"),
        (lambda: structure(weight=float("inf")), "weight .* got inf"),
        (lambda: sdtm.match_detail(X, 4, 4, removed=17, staleness=None), r"\[0, 16\] .* got 17"),
        (lambda: sdtm.match_detail(X, 4, 4, removed=0, staleness=X[0, :, 0]), r"got \[16\]"),
        (lambda: sdtm.ratio_schedule(0.3, 0.4, 5), r"\[0, 1\].*0.3 \+- 0.4"),
        (lambda: sdtm.ratio_schedule(0.9, 0.2, 5), r"0.9 \+- 0.2"),
        (lambda: sdtm.ratio_schedule(0.3, -0.1, 5), r"0.3 \+- -0.1"),
        (lambda: sdtm.ratio_schedule(0.3, 0.1, 0), "steps must be 1 or more, got 0"),
        (lambda: cluster(X, clusters=17), r"clusters must lie in \[1, 16\].* got 17"),
        (lambda: cluster(X, clusters=0), "got 0"),
        (lambda: cluster(X[0], clusters=1), r"got \[16, 3\]"),
        (lambda: cluster(X, clusters=2, kind="modes"), r"'modes'.*\['means', 'medoids'\]"),
        (lambda: cluster(X, clusters=2, iterations=0), "iterations .* got 0"),
        (lambda: cluster(X, clusters=2, weights=X), r"weights .*\[2, 16\], got \[2, 16, 3\]"),
        (lambda: cluster(X, clusters=2, weights=X[..., 0]), "0 or more, got values from -"),
        (lambda: cluster(X, clusters=2, weights=X[..., 0].abs() / 0), "finite"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def structure(size: tuple[int, int] = (4, 4), **options: Any) -> object:
    defaults: dict[str, Any] = {"removed": 0, "staleness": None, "weight": 0.05}
    return sdtm.match_structure(X, *size, **defaults | options)
