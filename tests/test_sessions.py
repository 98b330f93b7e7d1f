"""What methods answer at a site, against their pure cores and brute force."""

import pytest
import torch
from torch import Tensor

from hilotoken.blocks.method import Site, Tokens
from hilotoken.methods import (
    SDTM,
    BiGainTD,
    BiGainTM,
    ToDo,
    TokenPooling,
    ToMe,
    bigain,
    sdtm,
    todo,
    tome,
)
from hilotoken.methods.pooling import cluster, pool

GRID, N = (8, 8), 64


def tokens(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (2, N, 6), generator=torch.Generator().manual_seed(seed))


def site(block_input: Tensor | None = None, **changes) -> Site:
    given = {
        "part": "attention", "block": 0, "blocks": 3, "step": 0, "steps": 4, "branch": 0,
        "noise": 1.0, "tokens": Tokens(GRID), "input_BNC": tokens(1),
    }  # fmt: skip
    if block_input is not None:
        given["input_BNC"] = block_input
    return Site(**(given | changes))


def test_tome_matches_by_the_blocks_input_and_bigain_by_its_norm():
    x, normed = tokens(1), tokens(2)
    for ratio, removed in ((0.5, 32), (0.3, 19), (0.75, 48)):
        match = ToMe(ratio=ratio).session().attention(site(x), normed)
        expected = tome.match(x, *GRID, removed=removed)
        assert torch.equal(match.slot_BN, expected.slot_BN)
        match = BiGainTM(ratio=ratio, norm="l2").session().attention(site(x), normed)
        expected = bigain.match(normed, *GRID, removed=removed, norm="l2")
        assert torch.equal(match.slot_BN, expected.slot_BN)


def test_one_match_serves_all_modules_of_a_block():
    session = ToMe(feed_forward=True).session()
    first = session.attention(site(tokens(1)), tokens(2))
    assert session.attention(site(tokens(3), part="attention2"), tokens(4)) is first
    assert session.feed_forward(site(tokens(3), part="feed_forward"), tokens(4)) is first
    assert session.attention(site(block=1), tokens(2)) is not first
    assert session.attention(site(branch=1), tokens(2)) is not first
    assert ToMe().session().feed_forward(site(), tokens(2)) is None
    assert ToMe(attention=False, feed_forward=True).session().attention(site(), tokens(2)) is None


@pytest.mark.parametrize("mode", todo.MODES)
@pytest.mark.parametrize("grid", [(8, 8), (9, 7)])
def test_keys_are_downsampled_and_stand_where_their_cells_middle_does(mode, grid):
    x = tokens(0, 2, grid[0] * grid[1], 6)
    keys = ToDo(factor=3, mode=mode).session().keys(site(x, tokens=Tokens(grid)), x)
    assert torch.equal(keys.merge(x), todo.downsample(x, *grid, factor=3, mode=mode))
    places = torch.arange(grid[0] * grid[1]).float().view(1, -1, 1)
    pick = mode if mode == "nearest" else "nearest-exact"
    home_M = todo.downsample(places, *grid, factor=3, mode=pick).flatten().long()
    assert torch.equal(keys.home_BM, home_M.expand(2, -1))
    assert keys.count_BM.sum(1).tolist() == pytest.approx([grid[0] * grid[1]] * 2)
    with pytest.raises(TypeError, match="never put back"):
        keys.unmerge(x)


@pytest.mark.parametrize(
    ("options", "noise", "alpha"),
    [
        ({"alpha": 1.2}, 0.3, 1.2),
        ({"alpha": 0.9, "alpha_end": 0.1}, 1.0, 0.9),
        ({"alpha": 0.9, "alpha_end": 0.1}, 0.0, 0.1),
        ({"alpha": 0.9, "alpha_end": 0.1}, 0.25, 0.3),
    ],
)
def test_the_blend_of_keys_goes_along_with_the_noise(options, noise, alpha):
    x = tokens()
    keys = BiGainTD(**options).session().keys(site(x, noise=noise), x)
    expected = bigain.downsample(x, *GRID, factor=2, alpha=alpha)
    torch.testing.assert_close(keys.merge(x), expected)


@pytest.mark.parametrize("kind", ["means", "medoids"])
@pytest.mark.parametrize("weighted", [False, True])
def test_pools_are_the_clusters_and_stand_at_the_token_nearest_the_centre(kind, weighted):
    x = tokens(3, 2, 40, 5)
    weights = tokens(4, 2, 40).abs() if weighted else None
    options = {"clusters": 9, "weights": weights, "kind": kind, "iterations": 5}
    made, (slot_BN, centres) = pool(x, **options), cluster(x, **options)
    assert torch.equal(made.slot_BN, slot_BN)
    merged = made.merge(x)
    assert torch.equal(made.unmerge(merged), merged.gather(1, slot_BN[..., None].expand_as(x)))
    for b in range(2):
        for k in range(9):
            members = (slot_BN[b] == k).nonzero().flatten()
            if not len(members):
                continue
            torch.testing.assert_close(merged[b, k], centres[b, k])
            away = (x[b, members] - centres[b, k]).square().sum(-1)
            home = int(made.home_BM[b, k])
            assert home in members
            assert (x[b, home] - centres[b, k]).square().sum() <= 1.001 * away.min()
            assert made.count_BM[b, k] == len(members)


def test_an_empty_cluster_stands_as_a_copy_and_counts_for_next_to_nothing():
    x = torch.tensor([[[0.0], [0.0], [0.0], [9.0]]])
    made = pool(x, clusters=3, weights=None, kind="means", iterations=3)  # starts at three equals
    empty = made.count_BM[0] < 0.5
    assert empty.any()
    assert made.merge(x)[0, empty].flatten().tolist() == [0.0] * int(empty.sum())
    assert made.count_BM.sum() == pytest.approx(4, abs=1e-4)


def received(query: Tensor, key: Tensor) -> Tensor:
    """The attention each key receives, over heads and queries."""
    logits = query.transpose(1, 2) @ key.transpose(1, 2).mT * query.shape[-1] ** -0.5
    return logits.softmax(-1).sum((1, 2))


def test_significance_is_what_the_attention_before_gave():
    query, key = tokens(5, 2, 70, 3, 4), tokens(6, 2, 70, 3, 4)
    image = slice(6, 70)
    attention = (query.transpose(1, 2) @ key.transpose(1, 2).mT / 2).softmax(-1)
    expected = {
        "attention": attention.sum((1, 2))[:, image],
        "key": key[:, image].norm(dim=-1).sum(-1),
    }
    for significance, weight in expected.items():
        session = TokenPooling(significance=significance).session()
        session.attended(site(), query, key, image, None)
        torch.testing.assert_close(session.weight[0], weight)
        assert 1 not in session.weight
        x = tokens(7)
        made = session.attention(site(block=1), x)
        like = pool(x, clusters=32, weights=weight, kind="means", iterations=5)
        assert torch.equal(made.slot_BN, like.slot_BN)
        short_key = key[:, : 6 + 32]
        session.attended(site(block=1), query, short_key, slice(6, 38), made)
        total = session.weight[0].sum(1)
        short = received(query, short_key), short_key.norm(dim=-1).sum(-1)
        found = short[significance == "key"][:, 6:]
        full = (made.count_BM > 0.5).float()
        torch.testing.assert_close(total, (found * full).sum(1))
    session = TokenPooling().session()
    session.attended(site(), query, key, image, None)
    assert not session.weight


def test_sdtm_asks_for_its_schedules_share_in_both_stages():
    grid, x = (16, 16), tokens(0, 2, 256, 6)
    method = SDTM(ratio=0.5, deviation=0.2, structure=0.5, protect=0)
    schedule, session = sdtm.ratio_schedule(0.5, 0.2, 4), method.session()
    stale = None
    for step in range(2):
        at = site(x, step=step, tokens=Tokens(grid))
        match = session.attention(at, x)
        removed = int(schedule[step] * 256)
        expected, stale = sdtm.match_structure(
            x, *grid, removed=removed, staleness=stale, weight=0.05
        )
        assert torch.equal(match.slot_BN, expected.slot_BN)
        feed = site(x, step=step, tokens=Tokens(grid), part="feed_forward")
        assert session.feed_forward(feed, tokens(9, 2, 256, 6)) is match
    for step in range(2, 4):
        at = site(x, step=step, tokens=Tokens(grid))
        assert session.attention(at, x) is None
        removed = int(schedule[step] * 256)
        expected, stale = sdtm.match_detail(x, *grid, removed=removed, staleness=stale)
        other = tokens(9, 2, 256, 6)  # the metric is the norm before attention, not this
        match = session.feed_forward(site(x, step=step, tokens=Tokens(grid)), other)
        assert torch.equal(match.slot_BN, expected.slot_BN)
    assert torch.equal(session.staleness[0], stale)


def test_text_is_emphasised_in_the_structure_stage_alone():
    session = SDTM(structure=0.5, emphasis=2.0).session()
    assert [session.text_count(site(step=s)) for s in range(4)] == [2.0, 2.0, 1.0, 1.0]
