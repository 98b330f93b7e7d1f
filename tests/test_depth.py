"""Going on from a pipeline: made deeper it computes what it did, and learns from there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_pipe, widen
from toys import small_transformer, some_distance, training_photos

from hilotoken import load_model
from hilotoken.model import LABELS, REGISTERS
from hilotoken.train import autoencoder, run, transformer
from hilotoken.train.autoencoder import new_autoencoder
from hilotoken.train.checkpoint import load_if_any
from hilotoken.train.depth import deepen_decoder, deepen_transformer, start_from
from hilotoken.train.latent_cache import LatentCache, ViewOptions, latent_scale
from hilotoken.train.refine import RefineOptions
from hilotoken.train.run import TrainOptions, export, train
from hilotoken.train.transformer import TransformerOptions

CPU, DISTANCE = torch.device("cpu"), Path("weights of LPIPS")
SCALE = 1.7  # of the start, and of no views


@pytest.fixture(scope="module", autouse=True)
def small_models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "WIDTH", 8)
        patch.setattr(autoencoder, "DECODER", (2, 1, 1, 1))
        patch.setattr(run, "DECODER", (3, 2, 1, 1))
        patch.setattr(transformer, "new_transformer", small_transformer)
        patch.setattr(run, "load_lpips", lambda path: some_distance())
        yield


def wide_transformer(blocks: int = 2):
    model = small_transformer(blocks)
    widen(model)
    return model


def velocity(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(
        hidden_states=torch.randn(2, 16, model.config.in_channels, generator=generator),
        timestep=torch.tensor([0.3, 0.9]),
        encoder_hidden_states=torch.eye(REGISTERS).expand(2, -1, -1),
        pooled_projections=torch.zeros(2, LABELS),
        img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
        txt_ids=torch.zeros(REGISTERS, 3),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("blocks", [2, 3, 5, 8])
def test_a_deeper_transformer_is_the_same_until_it_learns(blocks):
    model = wide_transformer()
    before, old = velocity(model), {id(block) for block in model.single_transformer_blocks}
    deepen_transformer(model, blocks)
    assert len(model.single_transformer_blocks) == model.config["num_single_layers"] == blocks
    assert torch.equal(velocity(model), before)
    velocity(model).square().mean().backward()
    for block in model.single_transformer_blocks:
        gate = block.norm.linear.weight.grad.chunk(3)[2]
        assert gate.abs().max() > 0
        if id(block) not in old:  # no weight of a new block is another's
            with torch.no_grad():
                block.norm.linear.bias.chunk(3)[2].fill_(0.5)
    assert len({id(w) for w in model.parameters()}) == len(list(model.parameters()))
    assert (not torch.equal(velocity(model), before)) == (blocks > 2)


@pytest.mark.parametrize("blocks", [(2, 1, 1, 1), (4, 1, 1, 1), (2, 3, 1, 2), (3, 3, 3, 3)])
def test_a_deeper_decoder_is_the_same_until_it_learns(blocks):
    model = new_autoencoder()
    widen(model)
    latents = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    before, count = model.decode(latents).sample, len(model.decoder.layers)
    deepen_decoder(model, blocks)
    assert torch.equal(model.decode(latents).sample, before)
    assert len(model.decoder.layers) - count == sum(blocks) - 5
    again = type(model).from_config(model.config)
    again.load_state_dict(model.state_dict())  # the places are those of the config
    torch.testing.assert_close(again.decode(latents).sample, before)


def test_nothing_is_made_shallower():
    with pytest.raises(ValueError, match="2 single blocks of the transformer, got 1"):
        deepen_transformer(wide_transformer(), 1)
    with pytest.raises(ValueError, match="2 blocks of the decoder, got 1"):
        deepen_decoder(new_autoencoder(), (1, 1, 1, 1))
    with pytest.raises(ValueError, match="4 sizes, got blocks for 3"):
        deepen_decoder(new_autoencoder(), (2, 1, 1))


def test_a_pipeline_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr("hilotoken.train.depth.load_model", lambda name: make_pipe("kl"))
    with pytest.raises(ValueError, match=r"flux-fill has a AutoencoderKL.*'embedded'"):
        start_from("flux-fill", 2, (1, 1, 1, 1))


@pytest.fixture(scope="module")
def beginning(tmp_path_factory) -> Path:
    vae = new_autoencoder()
    widen(vae)
    return export(vae, wide_transformer(), SCALE, tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return training_photos(tmp_path_factory.mktemp("photos"))


def options(start: Path, blocks: int, samples: int = 0, refined: int = 0) -> TrainOptions:
    return TrainOptions(
        views=ViewOptions(groups=1, photos=2, masks=1),
        transformer=TransformerOptions(samples=samples, batches=1, mosaic=0, blocks=blocks),
        refine=RefineOptions(samples=refined, batches=1, mosaic=0),
        start=str(start),
    )


def test_a_run_goes_on_from_a_pipeline_and_keeps_its_scale(beginning, photos, tmp_path):
    given = load_model(beginning)
    same = load_model(train(photos, tmp_path / "same", options(beginning, 4), CPU, DISTANCE))
    for ours, theirs in ((same.transformer, given.transformer), (same.vae, given.vae)):
        weights = ours.state_dict()
        assert all(torch.equal(weights[name], w) for name, w in _kept(theirs, ours).items())
    assert same.transformer.config["num_single_layers"] == 4
    assert tuple(same.vae.config["num_decoder_blocks"]) == (3, 2, 1, 1)
    views = LatentCache.open(tmp_path / "same" / "views", options(beginning, 4).views, 8)
    assert same.vae.config["scaling_factor"] == SCALE != latent_scale(views)
    assert not (tmp_path / "same" / "autoencoder.pt").exists()
    for config in (tmp_path / "same" / "pipeline").rglob("*.json"):
        assert str(beginning) not in config.read_text()

    folder = tmp_path / "more"
    more = load_model(train(photos, folder, options(beginning, 3, 4, 4), CPU, DISTANCE))
    assert torch.equal(velocity(same.transformer), velocity(given.transformer))
    assert not torch.equal(velocity(more.transformer), velocity(given.transformer))
    state = load_if_any(folder / "refine.pt")
    assert state is not None
    assert state["done"] >= 4
    for other in (replace(options(beginning, 3, 4, 4), start=""), options(beginning, 5, 4, 4)):
        with pytest.raises(ValueError, match=r"was begun with --start .* and --blocks 3"):
            train(photos, folder, other, CPU, DISTANCE)


def test_a_start_keeps_its_phases(beginning, photos, tmp_path):
    given = options(beginning, 2)
    phases = replace(given.transformer, phases=2, elastic=0)
    given = replace(given, transformer=phases, refine=replace(given.refine, elastic=0))
    with pytest.raises(ValueError, match="start was trained with phases=1, got 2"):
        train(photos, tmp_path, given, CPU, None)


def _kept(old, new) -> dict[str, torch.Tensor]:
    """What has the same name and place before and after: all but what comes after new blocks."""
    names = new.state_dict().keys()
    moved = ("single_transformer_blocks", "decoder.layers")
    return {k: w for k, w in old.state_dict().items() if k in names and not k.startswith(moved)}
