"""Refinement: what is compared are pixels in the mask, at an x_t that a sampler could have."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_photo
from torch._subclasses.fake_tensor import FakeTensorMode
from toys import curve, small_transformer, small_views, some_distance

from hilotoken import HiLo, load_model
from hilotoken.data.manifest import to_model
from hilotoken.grid import touch
from hilotoken.model import SHIFT
from hilotoken.train import crops, refine, rollout, transformer
from hilotoken.train import latent_cache as views
from hilotoken.train.autoencoder import new_autoencoder
from hilotoken.train.latent_cache import (
    GRID,
    Batch,
    LatentCache,
    ViewOptions,
    group_crops,
    make_views,
)
from hilotoken.train.refine import RefineOptions
from hilotoken.train.transformer import pack

CPU = torch.device("cpu")


def some_batch(seed: int = 0, count: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, 8, 32, 32, generator=generator)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 40:120, 100:170] = 1
    score_N = torch.rand(256, generator=generator)
    return Batch(latents, latents, torch.zeros(count, 8, 8, 8), mask, score_N, (0,))


def some_plan(batch: Batch):
    plan = HiLo(detail=0.1, bucket=16).select(batch.score_N, touch(batch.mask, GRID)[0], GRID)
    assert plan.tokens_run < plan.tokens_full
    return plan


@pytest.mark.parametrize("shortened", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_true_velocity_ends_at_the_truth(seed, shortened):
    batch = some_batch(seed)
    plan = some_plan(batch) if shortened else None
    x0, noise = pack(batch.latents), torch.randn(2, 256, 32)
    sigma = torch.rand(2) * 0.9 + 0.1
    x = x0 + sigma[:, None, None] * (noise - x0)
    runs = torch.arange(256) if plan is None else plan.keep_K
    end = rollout.end_of(plan, x, x0, sigma, (noise - x0)[:, runs])
    torch.testing.assert_close(end, x0)
    moved = rollout.end_of(plan, x, x0, sigma, (noise - x0)[:, runs] + 1)
    changed = (moved - end).abs().amax((0, 2)) > 1e-3
    assert set(changed.nonzero().flatten().tolist()) == set(runs.tolist())


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.3], [1.0, 0.5, 0.2]])
@pytest.mark.parametrize("shortened", [False, True])
def test_a_rollout_is_the_straight_line_for_who_knows_the_truth(sigmas, shortened):
    """And for any other transformer, tokens that do not run are on that line."""
    batch = some_batch()
    plan = some_plan(batch) if shortened else None
    x0, noise = pack(batch.latents), torch.randn(2, 256, 32)
    runs = torch.arange(256) if plan is None else plan.keep_K
    line, visited = x0 + sigmas[-1] * (noise - x0), []

    def know_all(x, at):
        visited.append(at.unique().item())
        assert not torch.is_grad_enabled()
        return ((x - x0) / at[:, None, None])[:, runs]

    x = rollout.rollout(know_all, plan, x0, noise, sigmas, 0)
    torch.testing.assert_close(x, line)
    assert visited == pytest.approx(sigmas[:-1])
    other = rollout.rollout(lambda x, at: x[:, runs], plan, x0, noise, sigmas, 1)
    off = (other - line).abs().amax((0, 2)) > 1e-3
    assert set(off.nonzero().flatten().tolist()) == (set(runs.tolist()) if sigmas[1:] else set())


@pytest.mark.parametrize("through", [0, 1, 2, 5])
def test_the_last_steps_of_a_rollout_are_trained_with_the_one_after(through):
    sigmas, gains = [1.0, 0.5, 0.2, 0.1], torch.zeros(3, requires_grad=True)
    taken = iter(gains)

    def velocity(x, at):
        return x * (1 + next(taken))

    x = rollout.rollout(velocity, None, torch.zeros(2, 4, 8), torch.ones(2, 4, 8), sigmas, through)
    if not through:
        assert not x.requires_grad
        return
    (felt,) = torch.autograd.grad(x.sum(), gains)
    assert (felt != 0).tolist() == [place >= 3 - through for place in range(3)]


@pytest.mark.parametrize("shortened", [False, True])
def test_a_rollout_comes_back_from_an_accelerator(shortened):
    """Batches stay on the CPU. Fake tensors know a device that is not here, and hold no values."""
    batch = some_batch()
    plan = some_plan(batch) if shortened else None
    count, asked = 256 if plan is None else len(plan.keep_K), []
    with FakeTensorMode(allow_non_fake_inputs=True):

        def velocity(x, at):
            asked.append(x.device.type)
            return torch.empty(2, count, 32, device="cuda")

        x0, noise = torch.empty(2, 256, 32), torch.empty(2, 256, 32)
        x = rollout.rollout(velocity, plan, x0, noise, [1.0, 0.5, 0.2], 1)
    assert [*asked, x.device.type] == ["cpu"] * 3


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_a_rollout_is_that_of_the_pipelines_sampler(steps):
    """Where a batch starts from is what the pipeline itself has before that step."""
    pipe = load_model()
    pipe.set_progress_bar_config(disable=True)
    given = {"image": make_photo(64, 64), "mask_image": Image.new("L", (64, 64), 255)}
    pipe(**given, height=64, width=64, num_inference_steps=steps, output_type="latent")
    assert rollout.sampler_sigmas(steps, SHIFT) == pytest.approx(
        pipe.scheduler.sigmas[:-1].tolist()
    )


def test_a_way_is_the_beginning_of_a_samplers():
    rng = np.random.default_rng(0)
    drawn = {tuple(rollout.draw_sigmas((2, 4), (0, 1, 3), -2.0, rng)) for _ in range(200)}
    two, four = (rollout.sampler_sigmas(count, -2.0) for count in (2, 4))
    assert drawn == {(1.0,), tuple(two), tuple(four[:2]), tuple(four)}


@pytest.mark.parametrize("side", [4, 16, 32])
@pytest.mark.parametrize("seed", range(5))
def test_crops_lie_inside_and_hold_masked_pixels(seed, side):
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(views.random_mask(rng, (256, 256)))[None, None].float()
    places = [(8 * y, 8 * x) for y, x in crops.corners(mask, 20, side, rng)]
    cut = crops.cut(mask.expand(20, -1, -1, -1), places, 8 * side)
    assert cut.shape == (20, 1, 8 * side, 8 * side)
    assert (cut.amax((1, 2, 3)) == 1).all()


@pytest.mark.parametrize("side", [1, 8, 100, 150, 250])
def test_a_crop_is_as_large_as_its_mask_asks(side):
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., :side, 3 : 3 + side // 2 + 1] = 1
    crop = crops.crop_side(mask, 12, 24)
    assert crop == np.clip(-(-side // 8) * 5 // 4, 12, 24)


def test_crops_are_compared_off_the_grid_of_latents():
    column = torch.arange(64.0)[None, None, None, :].expand(1, 1, 64, -1)
    rng, found = np.random.default_rng(0), set()
    for _ in range(1000):
        cut, same = crops.off_grid((column, column.mT), rng)
        assert cut.shape == same.shape == (1, 1, 56, 56)
        found.add((int(cut[0, 0, 0, 0]), int(same[0, 0, 0, 0])))
    assert found == {(x, y) for x in range(8) for y in range(8)}


def test_a_mask_that_was_cut_off_counts_nothing():
    assert crops.weighted_mean(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 8, 8)).tolist() == [0, 0]


@pytest.fixture
def refiner(monkeypatch):
    """A refiner whose decoder shows three channels of a latent as a flat square of 8 x 8 pixels."""
    photos = [np.asarray(make_photo(256, 256, seed=seed)) for seed in range(2)]

    def decode(latents, return_dict):
        return (latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3),)

    monkeypatch.setattr(torch, "autocast", lambda *args: torch.enable_grad())  # all in float32
    parts = SimpleNamespace(decode=decode)
    options = RefineOptions(crop=(32, 32), clean=0)
    return refine._Refiner(None, parts, None, photos, 2.0, some_distance(), options, CPU)


def test_only_pixels_in_the_mask_are_compared(refiner):
    batch = some_batch()
    end = torch.randn(2, 32, 32, 8).permute(0, 3, 1, 2)
    touched = torch.nn.functional.max_pool2d(batch.mask, 8).bool()

    def loss(latents):
        return float(refiner._compare(batch, pack(latents), np.random.default_rng(0))[0])

    base = loss(end)
    assert loss(torch.where(touched, end, end + 1)) == base
    assert loss(torch.where(touched, end + 1, end)) != base
    truth = to_model(group_crops(refiner.photos, 0, 2))
    best = torch.nn.functional.avg_pool2d(truth, 8) * refiner.scale
    assert loss(torch.cat([best, torch.zeros(2, 5, 32, 32)], 1)) < 0.5 * base


def test_fills_are_seen_as_an_edit_hands_them_over(refiner):
    """Their colours led to the photograph's: LPIPS does not see what that mends, and L1 does."""
    batch, end = some_batch(), torch.randn(2, 32, 32, 8).permute(0, 3, 1, 2)
    figures = [
        refiner._compare(batch, pack(latents), np.random.default_rng(0))[1]
        for latents in (end, end + 0.5)
    ]
    assert figures[1]["lpips"] == pytest.approx(figures[0]["lpips"], rel=1e-4)
    assert figures[1]["l1"] != pytest.approx(figures[0]["l1"], rel=1e-2)


def test_the_views_are_of_the_crops_drawn_again(tmp_path):
    photos = [np.asarray(make_photo(280, 300, seed=seed)) for seed in range(5)]
    model = new_autoencoder().requires_grad_(False)
    made = LatentCache.open(tmp_path, ViewOptions(2, 3, 1), 8)
    make_views(made, photos, [], model, tmp_path, CPU)
    encode = views.encoder(model, CPU)
    for group in range(2):
        crops = group_crops(photos, group, 3)
        assert np.array_equal(encode(to_model(crops)), made.latents[group])
    assert not np.array_equal(group_crops(photos, 0, 3), group_crops(photos, 1, 3))
    made.done[0] = 2
    batch = views.read_batch(made, np.random.default_rng(0), 2, 1.0)
    assert len(set(batch.groups)) == 2
    whole = views.batch_crops(photos, batch.groups, 3)
    for rows in (slice(0, 256), slice(256, 512)):
        for columns in (slice(0, 256), slice(256, 512)):
            latents = batch.latents[..., rows.start // 8 : rows.stop // 8, :]
            latents = latents[..., columns.start // 8 : columns.stop // 8].numpy()
            assert np.array_equal(encode(whole[..., rows, columns]), latents.astype(np.float16))


@pytest.mark.parametrize("batches", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
def test_mosaics_have_their_share_of_the_samples(batches, share):
    steps = refine._mosaic_steps(RefineOptions(batches=batches, mosaic=share))
    groups = {1: batches, 2: 4 * max(1, batches // 4)}
    samples = steps * groups[2] / (steps * groups[2] + (1 - steps) * groups[1])
    assert samples == pytest.approx(share)


@pytest.mark.parametrize("name", ["rollout", "elastic", "mosaic"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(name, share):
    with pytest.raises(ValueError, match=rf"{name} .* \[0, 1\], got {share}"):
        RefineOptions(**{name: share})


def test_processes_side_by_side_do_work_of_one_kind(tmp_path, refiner, monkeypatch):
    """Of other pictures, though: nobody waits for one with a mosaic or a rollout."""
    made = LatentCache.open(tmp_path, ViewOptions(4, 2, 2), 8)
    made.masks[:, :, :64] = 255
    made.done[0] = 4
    drawn: list[tuple] = []

    def note(self, batch, plan, sigmas, through, rng, generator):
        drawn.append((plan is None, len(sigmas), batch.groups, int(rng.integers(1 << 30))))
        return torch.zeros((), requires_grad=True), {}

    monkeypatch.setattr(refine._Refiner, "_loss", note)
    options = RefineOptions(batches=1, mosaic=0, rollout=0.6, steps=(4,), before=(0, 1, 2))
    whole = replace(refiner, views=made, options=options)
    for done in range(0, 160, 4):
        for process in (0, 1):
            whole.gradients(done + process)
    one, other = drawn[::2], drawn[1::2]
    assert [kind[:2] for kind in one] == [kind[:2] for kind in other]
    assert {kind[1] for kind in one} == {0, 1, 2, 3}
    assert all(ours[3] != theirs[3] for ours, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_attention(masked):
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 3, 16, generator=draw) for n in (5, 7, 7))
    mask = torch.randn(1, 1, 1, 7, generator=draw) if masked else None
    ours = transformer._attend(torch.nn.Identity(), query, key, value, None, attn_mask=mask)
    heads = (x.transpose(1, 2) for x in (query, key, value))
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("steps", (2, 0), "got 0"),
        ("before", (1, -1), "got -1"),
        ("before", (1, 8), r"got \(1, 8\) of samplers of \(8,\)"),
        ("before", (), r"got \(\) of samplers"),
        ("through", -1, "got -1"),
        ("rate", 0.0, "got 0.0"),
        ("rate", float("nan"), "got nan"),
    ],
)
def test_what_cannot_be_is_named(name, given, told):
    with pytest.raises(ValueError, match=rf"{name} .* {told}"):
        RefineOptions(**{name: given})


@pytest.mark.parametrize("crop", [(8, 16), (24, 16)])
def test_a_crop_is_large_enough_to_be_looked_at(crop):
    with pytest.raises(ValueError, match=rf"crop .* 9, got \({crop[0]}, {crop[1]}\)"):
        RefineOptions(crop=crop)


def test_refining_learns_and_leaves_the_encoder_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.train.log.EVERY_SECONDS", 0)
    photos, model, made = small_views(tmp_path, ViewOptions(1, 2, 1))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(0)
    small = small_transformer()
    options = RefineOptions(samples=60, batches=1, rate=4e-3, decoder=1, mosaic=0, crop=(9, 9))
    refine.refine(small, model, made, photos, 1.0, some_distance(), tmp_path, options, CPU)
    losses = curve(tmp_path / "refine.csv", "l1", "l1_own")
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    changed = {n.split(".")[0] for n, w in model.state_dict().items() if not w.equal(before[n])}
    assert changed == {"decoder"}


def test_a_mosaic_does_not_hold_two_steps_at_once(refiner, tmp_path, monkeypatch):
    made = LatentCache.open(tmp_path, ViewOptions(4, 2, 2), 8)
    made.masks[:, :, :64] = 255
    made.done[0] = 4
    taken = set()

    def note(self, batch, plan, sigmas, through, rng, generator):
        taken.add((batch.latents.shape[-1], through))
        return torch.zeros((), requires_grad=True), {}

    monkeypatch.setattr(refine._Refiner, "_loss", note)
    options = RefineOptions(batches=1, mosaic=0.8, through=2)
    whole = replace(refiner, views=made, options=options)
    for done in range(40):
        whole.gradients(done)
    assert taken == {(32, 2), (64, 0)}


def test_mosaics_are_refined_by_their_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.train.log.EVERY_SECONDS", 0)
    photos, model, made = small_views(tmp_path, ViewOptions(2, 1, 1))
    before = model.decoder.layers[0].weight.clone()
    options = RefineOptions(samples=24, batches=1, rate=1e-3, mosaic=1, rollout=0.5, crop=(9, 9))
    parts = small_transformer(), model, made, photos, 1.0, some_distance()
    refine.refine(*parts, tmp_path, options, CPU)
    assert len(curve(tmp_path / "refine.csv", "l1_mosaic", "l1_own_mosaic")) == 6  # of 4 pictures
    assert curve(tmp_path / "refine.csv", "l1", "l1_own") == []
    assert not torch.equal(model.decoder.layers[0].weight, before)
