"""Training within phases of the grid, as U-DiT does, and the model that comes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, configuration_utils
from PIL import Image
from tiny import make_photo, widen
from toys import interrupt_at, small_transformer

from hilotoken import Dense, HiLo, compress, load_model
from hilotoken.blocks.attach import placed
from hilotoken.methods import FewerSteps, ToMe, UDiTAttention
from hilotoken.train import autoencoder, sheet, transformer
from hilotoken.train.checkpoint import Average, load_if_any
from hilotoken.train.latent_cache import LatentCache, ViewOptions
from hilotoken.train.refine import RefineOptions
from hilotoken.train.run import TrainOptions, export
from hilotoken.train.transformer import TransformerOptions, train_transformer

CPU = torch.device("cpu")
PHASES = TransformerOptions(samples=6, batches=1, elastic=0, mosaic=0, phases=2, blocks=2)


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    monkeypatch.setattr(autoencoder, "WIDTH", 8)
    monkeypatch.setattr(transformer, "new_transformer", small_transformer)


@pytest.fixture
def views(tmp_path) -> LatentCache:
    """Views of noise."""
    made = LatentCache.open(tmp_path / "views", ViewOptions(groups=2, photos=2), 8)
    rng = np.random.default_rng(0)
    for array in (made.latents, made.masked, made.coarse_masked):
        array[:] = rng.standard_normal(array.shape)
    made.masks[:] = 15
    made.scores[:] = 1
    made.done[0] = 2
    return made


def weights(run) -> dict[str, torch.Tensor]:
    state = load_if_any(run / "transformer.pt")
    assert state is not None
    return state["average"]["weights"]


def test_an_interrupted_run_goes_on_and_under_no_other_phases(views, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_transformer(views, 1.0, whole, PHASES, CPU)
    often = replace(PHASES, checkpoint_seconds=0)
    with monkeypatch.context() as patch:
        interrupt_at(patch, Average, "update", 3)
        with pytest.raises(KeyboardInterrupt):
            train_transformer(views, 1.0, broken, often, CPU)
    for phases in (1, 4):
        other = replace(PHASES, phases=phases)
        with pytest.raises(ValueError, match=rf"of phases=2, got {phases}: name another folder"):
            train_transformer(views, 1.0, broken, other, CPU)
    train_transformer(views, 1.0, broken, often, CPU)
    left, right = weights(whole), weights(broken)
    assert all(torch.equal(left[name], right[name]) for name in left)
    train_transformer(views, 1.0, tmp_path / "plain", replace(PHASES, phases=1), CPU)
    plain = weights(tmp_path / "plain")
    assert any(not torch.equal(left[name], plain[name]) for name in left)


def test_a_run_of_before_is_ordinary(views, tmp_path):
    plain = replace(PHASES, phases=1)
    train_transformer(views, 1.0, tmp_path, plain, CPU)
    (tmp_path / "phases.txt").unlink()
    train_transformer(views, 1.0, tmp_path, plain, CPU)
    with pytest.raises(ValueError, match="of phases=1, got 2"):
        train_transformer(views, 1.0, tmp_path, PHASES, CPU)


@pytest.fixture
def folder(tmp_path):
    """What training within phases writes, its weights drawn wide."""
    model, vae = small_transformer(), autoencoder.new_autoencoder()
    model.register_to_config(phases=2)
    torch.manual_seed(0)
    widen(model)
    widen(vae)
    return export(vae, model, 1.0, tmp_path / "pipeline")


def given() -> dict[str, object]:
    mask = Image.new("L", (128, 128))
    mask.paste(255, (30, 40, 90, 100))
    return {"image": make_photo(128, 128), "mask_image": mask, "height": 128, "width": 128,
            "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0),
            "output_type": "np"}  # fmt: skip


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_loaded_pipeline_attends_as_it_was_trained(folder):
    pipe, plain = quiet(load_model(folder)), quiet(load_model(folder))
    found = pipe(**given()).images
    assert not pipe.transformer._forward_pre_hooks
    plain.transformer.register_to_config(phases=1)
    assert np.abs(plain(**given()).images - found).max() > 1e-3
    with placed(plain.transformer, UDiTAttention(), plain.scheduler):
        assert np.array_equal(plain(**given()).images, found)
    dense = compress(pipe, Dense())(**given()).images
    inside = np.asarray(given()["mask_image"]) > 0
    assert np.array_equal(dense[0][inside], found[0][inside])
    compress(pipe, FewerSteps())(**given())
    sheet.sample_sheet(folder, [np.asarray(make_photo(256, 256))], folder / "sheet.png", steps=1)


@pytest.mark.parametrize("method", [HiLo(), ToMe(), UDiTAttention()], ids=repr)
def test_what_would_break_its_phases_is_refused(folder, method):
    with pytest.raises(ValueError, match=f"{type(method).__name__} would break: use Dense"):
        compress(load_model(folder), method)
    with pytest.raises(ValueError, match="ToMe would break"):
        compress(load_model(folder), Dense(), inside=ToMe())


@pytest.fixture
def said(monkeypatch):
    """What diffusers warns of."""
    logger, found = configuration_utils.logger, []
    monkeypatch.setattr(logger, "callHandlers", lambda record: found.append(record.getMessage()))
    logger.setLevel("WARNING")
    yield found
    logger.setLevel("NOTSET")


def test_diffusers_alone_says_what_it_leaves_out(folder, said):
    load_model(folder)
    assert not said
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxFillPipeline.from_pretrained(folder, **none)
    assert pipe.transformer.config.phases == 2
    assert any("{'phases': 2}" in text and "will be ignored" in text for text in said)
    with pytest.raises(ValueError, match="HiLo would break"):
        compress(pipe, HiLo())


@pytest.mark.parametrize(("phases", "message"), [(0, "whole number of 1"), (3, "divide the 16")])
def test_phases_that_a_view_does_not_have_are_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        TransformerOptions(phases=phases)


@pytest.mark.parametrize(("own", "refined"), [(0.5, 0.0), (0.0, 0.5)])
def test_compressed_batches_are_refused_before_anything_is_trained(own, refined):
    with pytest.raises(ValueError, match=r"phases=2 needs a whole grid, and elastic=0\.5"):
        TrainOptions(
            transformer=TransformerOptions(elastic=own, phases=2),
            refine=RefineOptions(elastic=refined),
        )
