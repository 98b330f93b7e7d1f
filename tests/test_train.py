"""Training: one command that may be killed at any moment, and learns what an edit will ask."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from tiny import make_photo
from toys import curve, interrupt_at, small_transformer, some_distance, training_photos

from hilotoken import Dense, HiLo, compress, load_model
from hilotoken.adapters.coarse import Coarse
from hilotoken.data import manifest as data
from hilotoken.data.manifest import random_crop, read_manifest
from hilotoken.grid import touch
from hilotoken.model import REGISTERS, quiet
from hilotoken.plan import gather
from hilotoken.train import autoencoder, refine, run, transformer
from hilotoken.train import latent_cache as views
from hilotoken.train.autoencoder import AutoencoderOptions, train_autoencoder
from hilotoken.train.checkpoint import Average, load_if_any
from hilotoken.train.latent_cache import (
    GRID,
    SIZE,
    LatentCache,
    ViewOptions,
    chances_of_masks,
    latent_scale,
    read_batch,
)
from hilotoken.train.refine import RefineOptions
from hilotoken.train.run import TrainOptions, train
from hilotoken.train.transformer import TransformerOptions, train_transformer

CPU = torch.device("cpu")
DISTANCE = Path("weights of LPIPS")  # read by `some_distance` in these tests
OPTIONS = TrainOptions(
    AutoencoderOptions(samples=16, batch=4, crop=32, checkpoint_seconds=0),
    ViewOptions(groups=3, photos=2, masks=2),
    TransformerOptions(samples=48, mosaic=0.5, checkpoint_seconds=0, blocks=2),
    RefineOptions(samples=24, batches=1, mosaic=0.5, checkpoint_seconds=0),
    labels="kind",
)
SHORT = TrainOptions(
    AutoencoderOptions(samples=4, batch=4, crop=32),
    ViewOptions(groups=1, photos=2, masks=1),
    TransformerOptions(samples=2, batches=1, blocks=2),
    RefineOptions(samples=2, batches=1),
)


@pytest.fixture(scope="module", autouse=True)
def small_models():
    """The recipe on models a hundred times smaller."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "WIDTH", 8)
        patch.setattr(transformer, "new_transformer", small_transformer)
        patch.setattr(run, "load_lpips", lambda path: some_distance())
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return training_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def whole_run(photos, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("run")
    train(photos, folder, OPTIONS, CPU, DISTANCE)
    return folder


def test_a_run_makes_a_pipeline_that_edits(whole_run):
    pipe = load_model(whole_run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    given = {"image": make_photo(128, 128), "mask_image": Image.new("L", (128, 128), 255)}
    image = pipe(**given, height=128, width=128, num_inference_steps=1).images[0]
    assert image.size == (128, 128)
    assert pipe.vae.config.scaling_factor == latent_scale(
        LatentCache.open(whole_run / "views", OPTIONS.views, 8)
    )
    assert Image.open(whole_run / "curves.png").width > 500
    assert Image.open(whole_run / "samples.png").height > 2 * SIZE  # a row for each held-out photo


@pytest.fixture(scope="module")
def broken_run(photos, whole_run, tmp_path_factory) -> Path:
    """The same run, interrupted in every stage and started again each time."""
    folder = tmp_path_factory.mktemp("run")
    for owner, name, call in (
        (Average, "update", 1),  # the autoencoder, before its first checkpoint
        (Average, "update", 3),
        (torch, "save", 2),  # while a checkpoint is written
        (views, "open_memmap", 4),  # while the views are laid out
        (views, "_make_group", 2),
        (Average, "update", 3),  # the transformer
        (torch, "save", 2),
        (Average, "update", 2),  # in its second half, on mosaics
        (refine._Refiner, "_compare", 2),
        (refine._Refiner, "_match", 1),
        (run, "write_checksums", 1),
    ):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, owner, name, call)
            with pytest.raises(KeyboardInterrupt):
                train(photos, folder, OPTIONS, CPU, DISTANCE)
    train(photos, folder, OPTIONS, CPU, DISTANCE)
    return folder


@pytest.mark.parametrize("stage", ["autoencoder", "transformer", "refine"])
def test_an_interrupted_run_ends_with_the_same_weights(whole_run, broken_run, stage):
    whole, broken = (load_if_any(r / f"{stage}.pt") for r in (whole_run, broken_run))
    assert whole is not None
    assert broken is not None
    assert whole["done"] == broken["done"] >= getattr(OPTIONS, stage).samples
    for part in ("model", "average"):
        left, right = (s[part].get("weights", s[part]) for s in (whole, broken))
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert all(left[name].stride() == right[name].stride() for name in left)


def test_an_interrupted_run_ends_with_the_same_views_and_files(whole_run, broken_run):
    for file in (whole_run / "views").iterdir():
        assert file.read_bytes() == (broken_run / "views" / file.name).read_bytes(), file.name
    sums = (whole_run / "pipeline" / "checksums.json").read_text()
    assert sums == (broken_run / "pipeline" / "checksums.json").read_text()
    assert "transformer/diffusion_pytorch_model.safetensors" in json.loads(sums)


def test_a_finished_run_is_passed_over(whole_run, photos, monkeypatch):
    before = (whole_run / "pipeline" / "checksums.json").read_bytes()
    for owner, name in ((autoencoder, "_loss"), (transformer, "_loss"), (views, "_make_group")):
        monkeypatch.setattr(owner, name, None)
    monkeypatch.setattr(refine._Refiner, "gradients", None)
    monkeypatch.setattr(run, "sample_sheet", None)  # the last minute is not repeated either
    written = {path: path.stat().st_mtime_ns for path in whole_run.glob("*.p*")}
    train(photos, whole_run, OPTIONS, CPU, DISTANCE)
    assert (whole_run / "pipeline" / "checksums.json").read_bytes() == before
    assert written == {path: path.stat().st_mtime_ns for path in whole_run.glob("*.p*")}


def test_export_writes_bfloat16(whole_run):
    for part in ("vae", "transformer"):
        file = whole_run / "pipeline" / part / "diffusion_pytorch_model.safetensors"
        assert {w.dtype for w in load_file(file).values()} == {torch.bfloat16}


def test_what_is_held_out_is_not_looked_at_while_training(photos, tmp_path, monkeypatch):
    events, decode_one, export = [], data._decode_one, run.export
    monkeypatch.setattr(
        data, "_decode_one", lambda f, size: events.append(f.name) or decode_one(f, size)
    )
    monkeypatch.setattr(run, "export", lambda *args: events.append("export") or export(*args))
    train(photos, tmp_path, SHORT, CPU, DISTANCE)
    split = events.index("export")
    assert set(events[:split]) == {"0.png", "1.png", "3.png", "5.png"}
    assert set(events[split + 1 :]) == {"2.png", "4.png"}


def test_an_enlarged_photo_does_not_train_the_autoencoder(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "decode", lambda entries, size: [e.file.name for e in entries])
    monkeypatch.setattr(run, "train_autoencoder", lambda names, *_: names)
    training = [e for e in read_manifest(photos) if e.split == "train"]
    assert run._autoencoder(training, tmp_path, OPTIONS, CPU, None) == ["0.png", "3.png", "5.png"]
    only = [e for e in training if e.enlarged]
    assert run._autoencoder(only, tmp_path, OPTIONS, CPU, None) == ["1.png"]


def test_training_further_makes_the_views_anew(photos, tmp_path, monkeypatch):
    """Latents of an autoencoder that has been trained on since are of no use."""
    (tmp_path / "views").mkdir()
    (tmp_path / "views" / "done.npy").write_bytes(b"of an older autoencoder")
    monkeypatch.setattr(run, "train_autoencoder", lambda *_: None)
    run._autoencoder(read_manifest(photos), tmp_path, OPTIONS, CPU, None)
    assert not (tmp_path / "views" / "done.npy").exists()


def test_nothing_to_train_on(tmp_path):
    make_photo(64, 64).save(tmp_path / "a.png")
    (tmp_path / "manifest.csv").write_text("file,split,kind\na.png,val,owl\n")
    with pytest.raises(FileNotFoundError, match="split 'train'"):
        train(tmp_path, tmp_path / "run", OPTIONS, CPU, None)


# Views


def test_views_of_another_size_are_all_made_anew(tmp_path):
    first = LatentCache.open(tmp_path, ViewOptions(2, 1, 1), 8)
    first.latents[:], first.done[0] = 1, 2
    again = LatentCache.open(tmp_path, ViewOptions(2, 1, 1), 8)
    assert again.done[0] == 2
    assert again.latents.min() == 1
    for options in (ViewOptions(3, 1, 1), ViewOptions(2, 1, 2)):
        assert LatentCache.open(tmp_path, options, 8).done[0] == 0


@pytest.mark.parametrize("left", [0, 60, 3000])
def test_views_cut_short_are_all_made_anew(tmp_path, left):
    LatentCache.open(tmp_path, ViewOptions(2, 1, 1), 8).done[0] = 2
    os.truncate(tmp_path / "masked.npy", left)
    assert LatentCache.open(tmp_path, ViewOptions(2, 1, 1), 8).done[0] == 0


def test_views_tell_nothing_of_what_is_under_the_mask(tmp_path):
    made, seen = LatentCache.open(tmp_path, ViewOptions(1, 2, 1), 8), []

    def encode(photo: torch.Tensor) -> np.ndarray:
        seen.append(photo)
        return np.zeros((len(photo), 8, *(side // 8 for side in photo.shape[-2:])), np.float16)

    picture = np.full((SIZE, SIZE, 3), 255, np.uint8)  # 1 for the model, where blank is 0
    views._make_group(made, 0, [picture], [], encode, CPU)
    mask = torch.from_numpy(np.unpackbits(made.masks[0, 0], axis=1)).bool()
    cells = mask.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).any(3).any(1)
    photo, masked, small = (picture[0, 0] for picture in seen)
    assert (photo == 1).all()
    assert torch.equal(masked, (~mask).float())
    assert torch.equal(small, (~cells).float())


def test_a_mosaic_sets_groups_side_by_side(whole_run):
    made = LatentCache.open(whole_run / "views", OPTIONS.views, 8)
    one, four = (read_batch(made, np.random.default_rng(3), tiles, 2.0) for tiles in (1, 2))
    assert one.latents.shape == one.masked.shape == (2, 8, 32, 32)
    assert four.latents.shape == four.masked.shape == (2, 8, 64, 64)
    assert four.coarse_masked.shape == (2, 8, 16, 16)
    assert four.mask.shape == (1, 1, 512, 512)
    assert four.score_N.shape == (4 * 256,)
    assert len(set(four.groups)) > 1
    scores = four.score_N.reshape(32, 32).numpy()
    for i, g in enumerate(four.groups):
        row, column = divmod(i, 2)
        corner = four.latents[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert np.array_equal(corner, 2 * made.latents[g].astype(np.float32))
        part = scores[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert np.array_equal(part.ravel(), made.scores[g])


@pytest.mark.parametrize("tilt", [0, 0.5, 1])
def test_large_masks_are_drawn_more_often_as_told(tmp_path, tilt):
    made = LatentCache.open(tmp_path, ViewOptions(3, 1, 2), 8)
    made.done[0] = 2  # so that the third group is never drawn
    shares = np.array([[1 / 32, 1 / 8], [1 / 2, 1 / 8]])
    for mask, share in zip(made.masks[:2].reshape(4, SIZE, SIZE // 8), shares.flat, strict=True):
        mask[: round(SIZE * share)] = 255
    chances = chances_of_masks(made, tilt)
    assert chances == pytest.approx(shares.ravel() ** tilt / (shares**tilt).sum())
    rng = np.random.default_rng(0)
    drawn = [read_batch(made, rng, 1, 1.0, chances) for _ in range(400)]
    found = [(batch.groups[0], float(batch.mask.mean())) for batch in drawn]
    for g, share in np.ndindex(2, 2):
        often = found.count((g, shares[g, share])) / len(found)
        assert often == pytest.approx(chances[2 * g + share], abs=0.08)


# What the transformer is trained on is what an edit gives it


@pytest.fixture
def one_photo(whole_run, tmp_path):
    """One photo and mask: as a batch of training, and as an edit by the same pipeline."""
    pipe = load_model(whole_run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    made = LatentCache.open(tmp_path, ViewOptions(1, 1, 1), 8)
    picture = np.asarray(make_photo(300, 310, seed=9))
    views.make_views(made, [picture], [], pipe.vae, tmp_path, CPU)
    rng = np.random.default_rng((2, 0))
    rng.choice(1, 1)
    crop = random_crop(picture, SIZE, rng)
    mask = np.unpackbits(made.masks[0, 0], axis=1) * np.uint8(255)
    given = {
        "image": Image.fromarray(crop),
        "mask_image": Image.fromarray(mask),
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    batch = read_batch(made, np.random.default_rng(0), 1, pipe.vae.config.scaling_factor)
    return pipe, given, batch


def near(left: torch.Tensor, right: torch.Tensor) -> bool:
    """But for float16 storage and bfloat16 arithmetic."""
    return bool((left - right).abs().mean() < 0.02 * left.abs().mean())


@pytest.mark.parametrize("cells", ["open", "clear", "all"])
def test_coarse_tokens_are_those_of_an_edit(one_photo, monkeypatch, cells):
    pipe, given, batch = one_photo
    made, encode = [], Coarse.encode
    monkeypatch.setattr(Coarse, "encode", lambda *args: made.append(encode(*args)) or made[-1])
    method = HiLo(dilate=1, detail=0.05, bucket=16, coarse_cells=cells)
    fast = compress(pipe, method)
    fast(**given)
    (edit,), plan = made, fast.last_run.plan
    assert len(plan.cells_M) > 3
    trained = transformer._coarse(batch, plan, edit.noise_BMC)
    assert near(edit.x0_BMC, trained.x0_BMC)
    assert near(edit.condition_BMD, trained.condition_BMD)
    assert torch.equal(edit.condition_BMD[..., 32:], trained.condition_BMD[..., 32:])
    assert torch.equal(edit.touched_BM1, trained.touched_BM1)
    x_BNC = torch.randn(1, 256, 32, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((1, 1, 1), 0.6)
    assert near(edit.tokens(x_BNC, 0.6), trained.tokens(x_BNC, sigma))
    assert not torch.equal(trained.x0_BMC, torch.zeros_like(trained.x0_BMC))


def test_the_plan_is_that_of_an_edit(one_photo):
    pipe, given, batch = one_photo
    method = HiLo(dilate=1, detail=0.1, bucket=16)
    fast = compress(pipe, method)
    fast(**given)
    plan = method.select(batch.score_N, touch(batch.mask, GRID)[0], GRID)
    assert torch.equal(plan.keep_K, fast.last_run.plan.keep_K)
    assert torch.equal(plan.cells_M, fast.last_run.plan.cells_M)


@pytest.mark.parametrize(
    "method", [Dense(), HiLo(dilate=1, detail=0.05, bucket=16, weights=True)], ids=["dense", "HiLo"]
)
def test_the_transformer_is_given_what_an_edit_gives_it(one_photo, monkeypatch, method):
    pipe, given, batch = one_photo
    calls, answers, forward = [], [], FluxTransformer2DModel.forward

    def noted(model, **call):
        calls.append(call)
        answers.append(forward(model, **call))
        return answers[-1]

    monkeypatch.setattr(FluxTransformer2DModel, "forward", noted)
    fast = compress(pipe, method)
    fast(**given)
    plan = None if isinstance(method, Dense) else fast.last_run.plan
    generator = torch.Generator().manual_seed(0)
    transformer._loss(pipe.transformer, batch, plan, 0.1, generator, CPU)
    edit, trained = calls[0], calls[-1]
    assert edit["guidance"] is None
    assert edit["timestep"] == pipe.scheduler.sigmas[0]
    for name in ("encoder_hidden_states", "pooled_projections", "txt_ids", "img_ids"):
        assert torch.equal(edit[name], trained[name]), name
    native = 256 if plan is None else len(plan.keep_K)
    condition = [call["hidden_states"][..., 32:] for call in (edit, trained)]
    assert near(*condition)
    assert torch.equal(*(part[:, :native, 32:] for part in condition))  # the mask
    if plan is not None:
        bias = trained["joint_attention_kwargs"]["attention_mask"].float()
        counts = torch.cat([torch.ones(REGISTERS), plan.count_S])
        assert torch.allclose(bias, counts.log(), rtol=0.01)
        assert bias.max() > 1
        exact = {"joint_attention_kwargs": {"attention_mask": counts.log()[None, None, None]}}
        plain, masked = (forward(pipe.transformer, **edit | more)[0] for more in ({}, exact))
        torch.testing.assert_close(answers[0][0], masked)  # weights, whatever way they come about
        assert not torch.allclose(plain, masked)


# The loss


@pytest.fixture
def batch(whole_run):
    made = LatentCache.open(whole_run / "views", OPTIONS.views, 8)
    return read_batch(made, np.random.default_rng(1), 1, latent_scale(made))


def loss_of(batch, plan, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(0)
    model = small_transformer()  # not zero at the start, as `_start` would make it
    generator = torch.Generator().manual_seed(seed)
    return transformer._loss(model, batch, plan, 0.05, generator, CPU)


def test_keeping_every_token_is_the_dense_loss(batch, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args: torch.enable_grad())  # all in float32
    plan = HiLo(detail=1.0).select(batch.score_N, touch(batch.mask, GRID)[0], GRID)
    assert plan.tokens_run == plan.tokens_full
    dense = loss_of(batch, None)
    assert abs(dense - loss_of(batch, plan)) <= 1e-6 * dense
    assert abs(dense - loss_of(batch, None, seed=1)) > 1e-3 * dense


def test_the_loss_counts_masked_tokens_and_a_little_the_rest(batch):
    """By hand, for a transformer that answers nothing: the target itself remains."""
    model = small_transformer()
    transformer._shut_gates(model)
    touched = touch(batch.mask, GRID).flatten()
    for plan in (None, HiLo(detail=0.1).select(batch.score_N, touch(batch.mask, GRID)[0], GRID)):
        loss = transformer._loss(model, batch, plan, 0.05, torch.Generator().manual_seed(0), CPU)
        generator = torch.Generator().manual_seed(0)
        torch.randn(2, generator=generator)
        noise = transformer.pack(quiet(torch.randn(2, 8, 32, 32, generator=generator)))
        error = (noise - transformer.pack(batch.latents)).square().mean(-1).mean(0)
        runs = torch.arange(256) if plan is None else plan.keep_K
        weight = torch.where(touched, 1.0, 0.05)[runs]
        expected = (error[runs] * weight).sum() / touched.sum()
        torch.testing.assert_close(loss, expected)


def test_the_velocity_of_the_sampler_has_no_loss(batch):
    """v = (x_t - x0) / sigma, by which a sampler comes to x0, is what the transformer learns."""

    class KnowAll(torch.nn.Module):
        def forward(self, hidden_states, timestep, **_):
            x0_BNC = transformer.pack(batch.latents)
            return ((hidden_states[..., :32] - x0_BNC) / timestep[:, None, None],)

    loss = transformer._loss(KnowAll(), batch, None, 0.05, torch.Generator().manual_seed(0), CPU)
    assert loss < 1e-6


def test_no_two_steps_draw_alike(whole_run, monkeypatch):
    made, drawn = LatentCache.open(whole_run / "views", OPTIONS.views, 8), []

    def note(model, batch, plan, outside, generator, device):
        drawn.append(torch.randn(4, generator=generator).tolist())
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr(transformer, "_loss", note)
    for done in (0, 8, 16):
        transformer._gradients(None, made, 1.0, OPTIONS.transformer, done, CPU, None)
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn) == 12


def test_plans_are_of_many_budgets(batch):
    plans = [transformer.draw_plan(batch, np.random.default_rng(seed)) for seed in range(60)]
    touched = set(touch(batch.mask, GRID).flatten().nonzero().flatten().tolist())
    assert all(touched <= set(plan.keep_K.tolist()) for plan in plans)
    assert len({plan.tokens_run for plan in plans}) > 5
    assert {plan.weighted for plan in plans} == {True, False}
    assert {len(plan.cells_M) > 0 for plan in plans} == {True, False}
    shapes = {gather(transformer.pack(batch.latents), plan).shape[1] for plan in plans}
    assert max(shapes) <= 256


@pytest.mark.parametrize("name", ["elastic", "mosaic"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(name, share):
    with pytest.raises(ValueError, match=rf"{name} .* \[0, 1\], got {share}"):
        TransformerOptions(**{name: share})


def test_the_autoencoder_learns(tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.train.log.EVERY_SECONDS", 0)
    options = AutoencoderOptions(samples=160, batch=2, crop=64)
    model = train_autoencoder([np.asarray(make_photo(64, 64))], tmp_path, options, CPU, None)
    losses = curve(tmp_path / "autoencoder.csv", "l1", "l1_half")
    assert len(losses) == 80
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert not model.training


def test_the_transformer_learns(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.train.log.EVERY_SECONDS", 0)
    made = LatentCache.open(whole_run / "views", OPTIONS.views, 8)
    options = TransformerOptions(samples=160, batches=2, mosaic=0, blocks=2)
    train_transformer(made, latent_scale(made), tmp_path, options, CPU)
    losses = curve(tmp_path / "transformer.csv", "dense", "compressed")
    assert np.mean(losses[-12:]) < 0.8 * np.mean(losses[:4])
