"""The embedded model in ComfyUI, against the same in diffusers."""

import subprocess
import sys

import comfy.sample
import comfy.supported_models
import find_comfy
import nodes as comfy_nodes
import numpy as np
import pytest
import torch
from families import runs
from methods import METHODS, STEPS, photo_and_mask, white

from comfyui import embedded
from comfyui.ribbon import to_tokens
from comfyui.run import Wanted, attach


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Made in a process of its own: diffusers does not like the stand-ins for torchvision."""
    out = tmp_path_factory.mktemp("reference") / "made.pt"
    script = find_comfy.HERE / "reference.py"
    subprocess.run([sys.executable, str(script), str(out)], check=True)
    return torch.load(out)


@pytest.fixture(scope="module")
def loaded():
    return embedded.load()


@pytest.fixture(scope="module")
def inputs(loaded):
    """Photo and mask, and what Inpaint Model Conditioning makes of them."""
    photo, mask = photo_and_mask()
    image = torch.from_numpy(np.asarray(photo.convert("RGB"), np.float32) / 255)[None]
    area = torch.from_numpy((np.asarray(mask) >= 128).astype(np.float32))[None]
    encode = comfy_nodes.InpaintModelConditioning().encode
    positive, _, latent = encode(loaded[2], loaded[2], image, loaded[1], area, noise_mask=False)
    return image, area, positive, latent["samples"]


def sampled(model, inputs):
    _, _, positive, latent = inputs
    return comfy.sample.sample(
        model, white(), STEPS, 1.0, "euler", "simple", positive, positive, latent,
        disable_pbar=True, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_as_in_diffusers(loaded, inputs, reference, name):
    model, expected = loaded[0].clone(), reference[name]["latents"]
    if METHODS[name] is not None:
        attach(model, Wanted(METHODS[name], inputs[0], inputs[1]))
        kept = runs(model)
    out = sampled(model, inputs)
    if METHODS[name] is not None:
        assert kept[0].plan.tokens_run == reference[name]["tokens"]
        assert len(kept[0].edit.keep_K) < kept[0].plan.tokens_full / 2
    tokens = to_tokens(out * embedded.EmbeddedLatent().scale_factor, 2)
    refresh = getattr(METHODS[name], "refresh", None)
    bound = 1e-3 if refresh and refresh.store else 1e-5
    assert (tokens - expected).abs().max() < bound * expected.abs().max()


def test_its_autoencoder_cuts_a_photo_in_its_middle(loaded, inputs):
    vae, image = loaded[1], inputs[0]
    cut = vae.encode(image[:, : 8 * 20 + 5, : 8 * 16 + 7])
    assert cut.shape == (1, 8, 20, 16)
    assert torch.equal(cut, vae.encode(image[:, 2 : 2 + 160, 3 : 3 + 128]))
    assert vae.decode(cut).shape == (1, 160, 128, 3)
    assert torch.equal(vae.decode(cut), vae.decode_tiled(cut, tile_x=64))
    assert (vae.decode(vae.encode(image)) - image).abs().mean() < 0.05


def test_its_noise_has_little_below(loaded, inputs):
    """Whatever is drawn: made so in the run, and the drawn noise is left as it is."""
    seen = []

    def look(executor, guider, sigmas, extra, callback, noise, *args):
        seen.append(noise)
        return executor(guider, sigmas, extra, callback, noise, *args)

    model, drawn = loaded[0].clone(), white()
    model.add_wrapper_with_key("sampler_sample", "look", look)
    sampled(model, inputs)
    power = lambda x: torch.fft.fft2(x).abs().square().mean((0, 1))[0, 1]  # noqa: E731
    assert power(seen[0]) < power(drawn) / 100
