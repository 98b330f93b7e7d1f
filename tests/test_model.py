"""The embedded model's pipeline, loading, and the weights in the package."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline
from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift
from tiny import make_mask, make_photo, make_pipe
from torch import Tensor
from toys import saved_model, saved_reader

from hilotoken import HiLo, compress, load_model
from hilotoken.edit import edit_photo
from hilotoken.model import (
    REGISTERS,
    WEIGHTS,
    EmbeddedFillPipeline,
    find_device,
    new_scheduler,
    quiet,
    verify,
)
from hilotoken.photo import load_mask, load_photo
from hilotoken.train.run import write_checksums
from hilotoken.train.transformer import pack

SIDE = 128


def arguments(**changes):
    given = {
        "image": make_photo(SIDE, SIDE),
        "mask_image": make_mask(SIDE, SIDE, (40, 40, 90, 80)),
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(5),
        "output_type": "np",
    }
    return given | changes


@pytest.fixture(scope="module")
def model() -> EmbeddedFillPipeline:
    pipe = load_model(saved_model())
    assert isinstance(pipe, EmbeddedFillPipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain() -> FluxFillPipeline:
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxFillPipeline.from_pretrained(saved_model(), dtype=torch.float32, **none)
    pipe.vae.to(memory_format=torch.channels_last)  # convolutions round by it
    pipe.set_progress_bar_config(disable=True)
    return pipe


def white() -> Tensor:
    """The noise that `arguments` draw."""
    return torch.randn(1, 8, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(5))


def test_it_is_a_plain_fill_pipeline_given_its_prompt_and_noise(model, plain):
    assert type(plain) is FluxFillPipeline
    mine = model(**arguments()).images
    given = model.prompt() | {"latents": pack(quiet(white()))}
    theirs = plain(**arguments(**given)).images
    assert np.array_equal(mine, theirs)
    other = {"prompt_embeds": -model.prompt()["prompt_embeds"]}
    assert not np.array_equal(mine, model(**arguments(**model.prompt() | other)).images)


def test_noise_is_quiet_where_it_is_slow():
    drawn = torch.randn(64, 8, 32, 48, generator=torch.Generator().manual_seed(0))
    left, whole = (torch.fft.fft2(x).abs().square().mean((0, 1)) for x in (quiet(drawn), drawn))
    kept = left / whole
    assert kept[0, 0] < 1e-9
    assert kept[1, 1] < 0.01  # a wave of 32 latents
    assert kept[8, 0] > 0.95  # one of 4
    assert kept[0, 12] > 0.95
    assert quiet(drawn.bfloat16()).dtype == torch.bfloat16


def test_latents_that_are_given_are_not_made_quiet(model, plain):
    given = arguments(latents=pack(white()), output_type="latent")
    theirs = plain(**given, **model.prompt()).images
    assert torch.equal(model(**given).images, theirs)
    assert not torch.equal(model(**arguments(output_type="latent")).images, theirs)


def test_the_photo_that_an_edit_begins_from_keeps_its_slow_waves(model, plain):
    """At a strength below 1 noise is added to a photo, and only the noise is made quiet."""
    begun, photo = [], torch.full((1, 3, SIDE, SIDE), 0.9)
    for pipe in (model, plain):
        pipe.scheduler.set_timesteps(4, mu=-3.0)
        timestep, generator = pipe.scheduler.timesteps[1:2], torch.Generator().manual_seed(5)
        given = photo, timestep, 1, 8, SIDE, SIDE, torch.float32, "cpu", generator
        begun.append(pipe.prepare_latents(*given)[0])
    sigma = float(plain.scheduler.sigmas[1])
    assert 0 < sigma < 1
    slow = sigma * pack(white() - quiet(white()))
    torch.testing.assert_close(begun[0], begun[1] - slow)
    assert "scale_noise" not in vars(model.scheduler)


def test_the_prompt_is_the_identity(model):
    given = model.prompt(3)
    assert torch.equal(given["prompt_embeds"], torch.eye(REGISTERS).expand(3, -1, -1))
    assert not given["pooled_prompt_embeds"].any()


def test_a_prompt_is_refused(model):
    with pytest.raises(ValueError, match="leave it out"):
        model("a cat", **arguments())
    assert np.array_equal(model("", **arguments()).images, model(**arguments()).images)


def test_two_photos_of_a_batch_are_what_each_is_alone(model):
    photos = [make_photo(SIDE, SIDE, seed) for seed in (0, 1)]
    masks = [make_mask(SIDE, SIDE, box) for box in ((40, 40, 90, 80), (0, 90, 30, 128))]
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    both = model(**arguments(image=photos, mask_image=masks, generator=seeds)).images
    for i, (photo, mask) in enumerate(zip(photos, masks, strict=True)):
        generator = torch.Generator().manual_seed(5 + i)
        alone = model(**arguments(image=photo, mask_image=mask, generator=generator)).images
        np.testing.assert_allclose(both[i], alone[0], atol=1e-4)
    assert not np.allclose(both[0], both[1])


@pytest.mark.parametrize("form", [list, np.stack, torch.from_numpy])
def test_a_batch_may_come_in_any_form(model, form):
    photos = [make_photo(SIDE, SIDE, seed) for seed in (0, 1)]
    if form is not list:
        photos = np.stack([np.asarray(p, np.float32) / 255 for p in photos])
    if form is torch.from_numpy:
        photos = torch.from_numpy(photos).movedim(-1, 1)
    assert len(model(**arguments(image=photos, num_inference_steps=1)).images) == 2


def test_the_size_is_512_unless_given(model):
    given = arguments(num_inference_steps=1, output_type="latent")
    given = {key: value for key, value in given.items() if key not in ("height", "width")}
    assert model(**given).images.shape == (1, 32 * 32, 32)


def test_eight_steps_unless_given(model):
    steps = []

    def count(pipe, step, timestep, given):
        steps.append(step)
        return {}

    given = arguments(callback_on_step_end=count)
    del given["num_inference_steps"]
    model(**given)
    assert steps == list(range(8))


def test_it_compresses(model):
    fast = compress(model, HiLo(dilate=0, detail=0.05, bucket=8))
    given = arguments(output_type="pil")
    image, mask = np.asarray(fast(**given).images[0]), np.asarray(given["mask_image"]) > 127
    assert fast.last_run is not None
    assert fast.last_run.tokens_run < fast.last_run.tokens_full == 64
    assert np.array_equal(image[~mask], np.asarray(given["image"])[~mask])
    assert (image[mask] != np.asarray(given["image"])[mask]).any()


def test_loading_is_silent(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(str(saved_model()), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_weights_are_float32_on_the_cpu(model):
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")


def test_a_pipeline_with_text_encoders_loads_as_it_is():
    pipe = load_model(saved_reader())
    assert type(pipe) is FluxFillPipeline
    assert pipe.dtype == torch.bfloat16
    pipe.set_progress_bar_config(disable=True)
    cat, dog = (pipe(p, **arguments(output_type="latent")).images for p in ("a cat", "a dog"))
    assert not torch.equal(cat, dog)


def test_other_pipelines_without_text_encoders_are_refused(tmp_path):
    make_pipe("kl").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="text_encoder"):
        load_model(tmp_path)


def test_other_sizes_of_the_embedded_model_need_no_prompt_either(tmp_path):
    make_pipe("tiny").save_pretrained(tmp_path)
    pipe = load_model(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(**arguments()).images.shape == (1, SIDE, SIDE, 3)


@pytest.fixture
def copy(tmp_path) -> Path:
    return shutil.copytree(saved_model(), tmp_path / "model")


def rewrite(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGE = {
    "no autoencoder": lambda m: shutil.rmtree(m / "vae"),
    "no scheduler": lambda m: shutil.rmtree(m / "scheduler"),
    "no weights": lambda m: (m / "vae/diffusion_pytorch_model.safetensors").unlink(),
    "weights cut short": lambda m: (
        m / "transformer/diffusion_pytorch_model.safetensors"
    ).write_bytes(b"1"),
    "no json": lambda m: (m / "transformer/config.json").write_text("{"),
    "no index": lambda m: (m / "model_index.json").write_text("{"),
    "an index that lists nothing": lambda m: (m / "model_index.json").write_text("{}"),
    "an index that is a list": lambda m: (m / "model_index.json").write_text("[]"),
    "an index that is no text": lambda m: (m / "model_index.json").write_bytes(b"\xff\xfe"),
    "a part without a class": lambda m: rewrite(m / "model_index.json", vae=["x"]),
    "a part that is no class": lambda m: rewrite(m / "model_index.json", vae=["diffusers", "X"]),
    "a part with code of its own": lambda m: rewrite(m / "model_index.json", vae=["code", "X"]),
    "other shapes": lambda m: rewrite(m / "transformer/config.json", num_attention_heads=2),
    "other layers": lambda m: rewrite(m / "transformer/config.json", num_layers=2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_holds_no_whole_pipeline(copy, monkeypatch, damage):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    DAMAGE[damage](copy)
    with pytest.raises(FileNotFoundError, match=r"no pipeline at '.*model': give a folder"):
        load_model(copy)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("DDPMPipeline", "supported:"), ("OmniGenPipeline", "numbers image tokens")],
)
def test_another_pipeline_is_refused_by_name(copy, name, reason):
    rewrite(copy / "model_index.json", _class_name=name)
    with pytest.raises(TypeError, match=f"{name} is not supported.*{reason}"):
        load_model(copy)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "nobody/nothing", "no such thing", ""])
def test_no_such_model(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=f"no pipeline at '{name}'"):
        load_model(name)


@pytest.mark.parametrize(
    ("error", "cached"),
    [(None, False), (ValueError("no id"), False), (TimeoutError(), True)],
    ids=str,
)
def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch, error, cached):
    """Its cache may still hold the model."""
    asked = []

    def answer(name, timeout):
        assert timeout <= 10
        if error:
            raise error

    def load(name, file, local_files_only):
        asked.append(local_files_only)
        raise OSError("not there")

    monkeypatch.setattr("hilotoken.model.load.model_info", answer)
    monkeypatch.setattr("hilotoken.model.load.hf_hub_download", load)
    with pytest.raises(FileNotFoundError, match=r"hub id, or 'embedded' \(not there\)"):
        load_model("some/model")
    assert asked == [cached]


@pytest.mark.parametrize("device", ["nonsense", "cuda:77", "meta", "mps:5", "hpu"])
def test_no_such_device(device):
    with pytest.raises(ValueError, match=f"no device '{device}' here: use 'cpu'"):
        load_model(saved_model(), device=device)


def test_devices():
    assert find_device(None) == find_device("cpu") == torch.device("cpu")
    assert find_device(torch.device("cpu")) == torch.device("cpu")


def test_checksums_tell_what_was_damaged(copy):
    verify(copy)
    listed = set(json.loads((copy / "checksums.json").read_text()))
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert files - listed == {"checksums.json"}
    for name in sorted(listed):
        file, whole = copy / name, (copy / name).read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} is damaged .*: install the package anew"):
            verify(copy)
        file.unlink()
        with pytest.raises(ValueError, match=f"{name} is damaged .sha256 nothing"):
            verify(copy)
        file.write_bytes(whole)
    verify(copy)


def test_checksums_are_checked_for_the_packaged_weights(copy, monkeypatch):
    monkeypatch.setattr("hilotoken.model.load.WEIGHTS", copy)
    assert isinstance(load_model(), EmbeddedFillPipeline)
    with (copy / "scheduler" / "scheduler_config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"scheduler_config\.json is damaged"):
        load_model("embedded")
    load_model(copy)  # a user's own folder may be changed
    write_checksums(copy)
    load_model()


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.model.load.WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights in .*: install the package anew"):
        load_model()


packaged = pytest.mark.skipif(
    not (WEIGHTS / "checksums.json").exists(), reason="the weights are not in the package yet"
)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"the network was asked for: {args}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@packaged
@pytest.mark.usefixtures("no_network")
def test_the_packaged_weights_are_whole_and_load_offline():
    verify(WEIGHTS)
    assert isinstance(load_model(), EmbeddedFillPipeline)
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 45e6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]


@packaged
@pytest.mark.parametrize("length", [256, 1024, 4096])
def test_the_embedded_model_takes_most_of_its_steps_at_little_noise(length):
    names = "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"
    scheduler, new = load_model().scheduler, new_scheduler()
    assert [scheduler.config[name] for name in names] == [new.config[name] for name in names]
    shift = calculate_shift(length, *(scheduler.config[name] for name in names))
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=shift)
    assert scheduler.sigmas[0] == 1
    assert scheduler.sigmas[2] < 0.3


@packaged
@pytest.mark.parametrize("method", [None, HiLo(dilate=0, detail=0.05, bucket=8)], ids=str)
def test_the_embedded_model_edits_an_example(method):
    examples = Path(__file__).parent.parent / "examples"
    photo = load_photo(examples / "canyon-wren.jpg")
    mask = load_mask(examples / "canyon-wren_mask.png", photo)
    pipe = load_model()
    pipe.set_progress_bar_config(disable=True)
    edit = edit_photo(pipe, photo, mask, method, size=128, steps=1)
    assert np.array_equal(edit.photo.pixels[~mask], photo.pixels[~mask])
    # A fill of a trained model has the colours of a photo, not those of noise.
    inside = edit.photo.pixels[mask].astype(float)
    assert 0 < inside.std() < 90
    assert abs(inside.mean() - photo.pixels[~mask].mean()) < 60
