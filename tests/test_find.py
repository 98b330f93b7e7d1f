"""A region found without a mask: each part of the search, and real pipelines steered to an edit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import steps
from families import BY_NAME, arguments
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_photo
from torch import Tensor

from benchmarks.found import fuzz
from hilotoken import Find, HiLo, Refresh, compress
from hilotoken.bench.measure.steer import KINDS, LOCAL, steered
from hilotoken.methods import Dense, find
from hilotoken.methods.parse import as_words, method_from
from hilotoken.search import Search

GRID = (16, 16)
INSTRUCTED = [
    "FluxKontextPipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline", "Flux2Pipeline",
    "Flux2KleinPipeline", "LongCatImageEditPipeline", "BriaFiboEditPipeline", "BriaFibo2Pipeline",
    "JoyImageEditPipeline", "JoyImageEditPlusPipeline", "Kandinsky5I2IPipeline",
]  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The parts.


def test_drift_of_a_channel_is_taken_off_and_told():
    source_NC, change_NC = noise(256, 8), torch.zeros(256, 8)
    change_NC[:40] = 3
    rest_NC, drift = find.without_drift(change_NC + 0.2, source_NC)
    assert torch.allclose(rest_NC, change_NC, atol=1e-6)
    assert drift == pytest.approx(0.2, rel=0.1)


def test_a_score_sees_size_and_direction():
    source_NC = noise(256, 16)
    turned_NC, grown_NC = source_NC.clone(), source_NC.clone()
    turned_NC[0], grown_NC[1] = -source_NC[0], 2 * source_NC[1]
    for changed_NC, token in ((turned_NC, 0), (grown_NC, 1)):
        score_N = find.scores(changed_NC - source_NC, source_NC)
        assert score_N[token] > 0.5
        assert (score_N > 1e-3).sum() == 1
    assert find.scores(turned_NC - source_NC, source_NC)[0] > 2  # both legs


@given(st.floats(0, 0.59), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_background_is_found_however_much_has_changed(share, seed):
    log_N = -2 + 0.2 * noise(1000, seed=seed)
    log_N[: round(1000 * share)] += 3
    level, deviation = find.background(log_N)
    assert level == pytest.approx(-2, abs=0.1)
    assert 0.1 < deviation < 0.3


def test_a_background_without_noise_is_no_deviation():
    assert find.background(torch.full((64,), math.log(find.FLOOR))) == (
        pytest.approx(math.log(find.FLOOR)), 0.0,
    )  # fmt: skip


def test_hysteresis_keeps_what_touches_and_lets_go_what_is_alone():
    weak_hw = torch.zeros(8, 8, dtype=torch.bool)
    weak_hw[0], weak_hw[7, 7] = True, True
    strong_hw = torch.zeros_like(weak_hw)
    strong_hw[0, 0] = True
    expected_hw = weak_hw.clone()
    expected_hw[7, 7] = False
    assert torch.equal(find.connected(strong_hw, weak_hw), expected_hw)


def test_a_few_doubtful_tokens_are_no_chance_where_they_stand_together():
    score_hw = 0.1 + 0.001 * noise(16, 16).abs()
    score_hw[3:6, 3:6] = 1.0
    expected_hw = score_hw == 1.0
    score_hw[10, 3] = score_hw[10, 12] = 0.25
    assert torch.equal(find.changed(score_hw, 1.0, Find())[0], expected_hw)
    score_hw[11, 13] = score_hw[12, 14] = 0.25
    expected_hw[[10, 11, 12], [12, 13, 14]] = True
    assert torch.equal(find.changed(score_hw, 1.0, Find())[0], expected_hw)


def test_closing_fills_a_gap_and_grows_nothing():
    region_hw = torch.zeros(9, 9, dtype=torch.bool)
    region_hw[2:7, 2:7] = True
    holed_hw = region_hw.clone()
    holed_hw[4, 4] = False
    assert torch.equal(find.closed(holed_hw, 1), region_hw)
    assert torch.equal(find.closed(region_hw, 0), region_hw)
    assert find.closed(torch.ones(5, 5, dtype=torch.bool), 2).all()


def uneven(level: float, deviation: float) -> Tensor:
    """Scores of a background alone, [20, 20], around a level and by a deviation of the logs."""
    return level * (deviation * noise(20, 20)).exp()


@pytest.mark.parametrize("seed", range(5))
def test_a_change_that_begins_where_the_background_ends_is_no_background(seed):
    """As a model fills a place that it hardly changes: no gap in the scores, 45 % of the grid."""
    score_hw = 0.13 * (0.3 * noise(20, 20, seed=seed)).exp()
    score_hw[:9] = torch.linspace(-1.6, 0.6, 180)[torch.randperm(180)].exp().view(9, 20)
    region_hw, reason = find.changed(score_hw, 0.6, Find())
    assert reason == ""
    assert find.grown(region_hw, Find())[:9].all()
    assert region_hw[11:].float().mean() < 0.02


def test_nothing_has_changed_is_not_said_of_what_can_be_seen():
    """A background so uneven that no token is certain, and a change of a tenth of the picture."""
    score_hw = uneven(0.08, 0.6).clamp(max=0.2)
    score_hw[:2] = torch.linspace(0.16, 0.24, 40).view(2, 20)
    region_hw, reason = find.changed(score_hw, 1.0, Find())
    assert not region_hw.any()
    assert "lies between changed and not" in reason
    assert find.changed(score_hw / 10, 1.0, Find())[1] == ""  # which nobody sees


def test_what_is_as_large_as_a_style_does_not_pass_for_background():
    assert find.changed(uneven(0.1, 0.3), 0.5, Find())[1] == ""
    assert "so uneven that a change of" in find.changed(uneven(0.2, 0.7), 0.5, Find())[1]
    assert "another style" in find.changed(uneven(0.6, 0.1), 0.5, Find())[1]


def test_what_lies_between_changed_and_not_is_a_doubt():
    score_hw = 0.1 + 0.001 * noise(16, 16).abs()
    score_hw[3:6, 3:6] = 1.0
    assert find.changed(score_hw, 1.0, Find())[1] == ""
    score_hw[8::2, ::2] = 0.25
    region_hw, reason = find.changed(score_hw, 1.0, Find())
    assert "between changed and not" in reason
    assert region_hw.sum() == 9


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, -2), (3, 2)])
def test_a_shift_is_seen_and_a_patch_is_none(down, right):
    latents = F.avg_pool2d(noise(1, 4, 34, 34), 3, 1)  # smooth, as pictures are
    source_NC = F.pixel_unshuffle(latents, 2).flatten(2)[0].T
    shifted = F.pixel_unshuffle(latents.roll((down, right), (2, 3)), 2).flatten(2)[0].T
    assert find.moved(shifted, source_NC, GRID, 2)
    assert not find.moved(source_NC, source_NC, GRID, 2)
    patched_NC = source_NC.clone()
    patched_NC[:64] = noise(64, 16, seed=1)
    assert not find.moved(patched_NC, source_NC, GRID, 2)


def test_tokens_join_and_none_leaves():
    source_BNC = noise(1, 256, 16)
    search = Search(Find(looks=1), source_BNC, GRID, 2, 20, early=True)
    x0 = source_BNC.clone()
    x0[:, :8] += 2
    search.see(3, 0.9, x0)
    first_hw = search.region_hw
    assert first_hw is not None
    x0 = source_BNC.clone()
    x0[:, 200:208] += 2
    search.see(9, 0.5, x0)
    assert search.region_hw is not None
    assert (search.region_hw >= first_hw).all()
    assert search.region_hw.sum() > first_hw.sum()
    search.see(12, 0.3, source_BNC + noise(1, 256, 16, seed=5))  # cannot be trusted: all run
    assert search.region_hw is None
    assert "step 12" in search.reason


# Options.


def test_a_run_without_a_step_to_shorten_says_why_it_stays_dense():
    searches = [Search(Find(last=n), noise(1, 256, 4), GRID, 1, 12, True) for n in (8, 9)]
    assert [search.early for search in searches] == [True, False]
    assert searches[1].reasons == ("12 steps, all of them dense ones or the last",)


def test_options_are_words_too():
    for method in (
        HiLo(find=True),
        HiLo(find=6),
        HiLo(find=Find(grow=1)),
        HiLo(find=Find(5, looks=1)),
    ):
        assert method_from(*as_words(method).split()) == method
    assert HiLo(find=True).refresh == Refresh(3)
    assert replace(HiLo(find=True), refresh=2).refresh == Refresh(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"detail": 0.2}, "detail=0.2"), ({"coarse": 4}, "coarse=4"), ({"dilate": 2}, "grow=2"),
        ({"context": "sampled"}, "context='sampled'"), ({"score": "random"}, "score='random'"),
        ({"find": 0}, "got 0"), ({"find": "yes"}, "'yes'"),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        HiLo(**{"find": True} | options)


@pytest.mark.parametrize(
    "options", [{"weak": 4}, {"looks": 3, "dense": 2}, {"most": 2}, {"grow": -1}, {"fewest": 0}]
)
def test_a_search_refuses_what_it_cannot_do(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Find(**options)


def test_calls_that_make_no_sense_are_refused(pipe):
    with pytest.raises(ValueError, match="given a mask"):
        compress(pipe, HiLo(find=True))
    kontext, prompt = fuzz.tiny_kontext()
    with pytest.raises(ValueError, match="runs a part by a mask"):
        compress(kontext, HiLo(), keep="found")
    with pytest.raises(ValueError, match="mask_image was given"):
        compress(kontext, keep="found")(**prompt, image=make_photo(), mask_image=make_photo())
    with pytest.raises(ValueError, match="find=True"):
        compress(kontext)(**prompt, image=make_photo())


# Pipelines.


def to_rows(latents: Tensor) -> Tensor:
    return F.pixel_unshuffle(latents, 2).flatten(2).mT


def to_latents(rows_BNC: Tensor) -> Tensor:
    return F.pixel_shuffle(rows_BNC.mT.unflatten(-1, GRID), 2)


# Transformers whose tokens are no rows: as rows, and other rows put in an answer.
LAID_OUT = {
    "BriaFibo2Pipeline": (to_rows, lambda velocity, rows_BNC: to_latents(rows_BNC)),
    "Kandinsky5I2IPipeline": (
        lambda x: to_rows(x[:, 0].movedim(-1, 1)),
        lambda velocity, rows_BNC: to_latents(rows_BNC).movedim(1, -1)[:, None],
    ),
    "JoyImageEditPipeline": (
        lambda x: to_rows(x[:, -1, :, 0]),
        lambda velocity, rows_BNC: torch.cat(
            [velocity[:, :-1], to_latents(rows_BNC)[:, None, :, None]], 1
        ),
    ),
    "JoyImageEditPlusPipeline": (
        lambda x: x.flatten(2),
        lambda velocity, rows_BNC: torch.cat(
            [rows_BNC.view(-1, 256, 4, 1, 2, 2), velocity[:, 256:]], 1
        ),
    ),
}


@pytest.mark.parametrize("name", INSTRUCTED)
def test_every_instruction_pipeline_finds_a_patch_and_keeps_the_rest(name):
    family = BY_NAME[name]
    pipe = family.make(torch.float32)
    source_1NC = family.source(pipe, arguments(family))
    changed_N = torch.zeros(GRID, dtype=torch.bool)
    changed_N[4:7, 5:9] = True
    changed_N = changed_N.flatten()
    target_1NC = source_1NC + changed_N[:, None] * source_1NC.std() * noise(*source_1NC.shape)
    fast = compress(pipe, HiLo(find=True))
    given = arguments(family, num_inference_steps=12)  # seeds the noise of the source's posterior
    del given["mask_image"]
    with steered(pipe, lambda sigma: target_1NC, source_1NC, *LAID_OUT.get(name, ())):
        ended = steps(family, pipe, fast, given)[-1].end
    run = fast.last_run
    assert run.reasons == ()
    assert run.refreshed[:3] == (0, 1, 2)
    assert len(run.refreshed) == 5
    side = run.mask.shape[-1] // GRID[1]
    shown_N = run.mask[0, 0, ::side, ::side].flatten() > 0
    assert shown_N[changed_N].all()
    assert shown_N.sum() == 7 * 8  # two rings around it
    assert torch.allclose(ended[:, shown_N], target_1NC[:, shown_N], atol=1e-4)
    assert torch.allclose(ended[:, ~shown_N], source_1NC[:, ~shown_N], atol=1e-5)


@pytest.mark.parametrize("seed", range(2 * len(KINDS)))
def test_known_edits(seed, kontext):
    row = fuzz.row(*kontext, seed)
    assert row.missed == 0
    assert row.equal
    assert row.dense == (row.kind not in LOCAL)
    if row.kind == "identity":
        assert row.region == 0
    elif row.kind not in LOCAL:
        assert row.region == 1


@pytest.mark.parametrize("last", [1, 2])
def test_last_dense_steps_show_what_comes_after_the_last_refresh(last, kontext):
    late = {"seed": LOCAL.index("late"), "from_sigma": 0.2 if last == 1 else 0.3}
    assert fuzz.row(*kontext, **late).missed > 0.1
    row = fuzz.row(*kontext, **late, find=Find(last=last))
    assert (row.missed, row.equal, row.dense, row.reasons) == (0, True, False, "")


@pytest.fixture(scope="module")
def kontext():
    return fuzz.tiny_kontext()


@pytest.mark.parametrize("by", ["found early", "kept"])
def test_an_identity_returns_the_photo_bit_for_bit(by, kontext):
    pipe, prompt = kontext
    photo = fuzz.photo(3)
    fast = compress(pipe, HiLo(find=True)) if by == "found early" else compress(pipe, keep="found")
    source_1NC = fuzz.source_of(pipe, photo, torch.Generator().manual_seed(1))
    with steered(pipe, lambda sigma: source_1NC, source_1NC):
        made = fast(**prompt, **fuzz.square(photo), num_inference_steps=12,
                    generator=torch.Generator().manual_seed(1)).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(made), np.asarray(photo))
    assert fast.last_run.mask.sum() == 0


def test_what_goes_dense_is_the_dense_run_and_its_picture(kontext):
    pipe, prompt = kontext
    given = prompt | fuzz.square(fuzz.photo(1)) | {"num_inference_steps": 12, "output_type": "np"}

    def run(of):
        return of(**given, generator=torch.Generator().manual_seed(1)).images

    fast = compress(pipe, HiLo(find=True))  # random weights make another picture altogether
    assert np.array_equal(run(fast), run(pipe))
    assert fast.last_run.refreshed is None
    assert fast.last_run.reasons
    for few in (HiLo(find=Find(fewest=13)), Dense()):
        kept = compress(pipe, few, keep=None if few.find else "found")
        assert np.array_equal(run(kept), run(pipe))


def test_another_size_of_the_output_goes_dense(kontext):
    pipe, prompt = kontext
    given = prompt | fuzz.square(fuzz.photo(1)) | {"height": 128, "max_area": 128 * 256}
    fast = compress(pipe, HiLo(find=True))
    fast(**given, num_inference_steps=12, output_type="latent")
    assert "the output is (128, 256)" in fast.last_run.reasons[0]
