"""Windows of a stack of layers: what comes of them is what comes of the whole."""

import pytest
import torch
from diffusers import AutoencoderTiny
from tiny import make_vae
from torch import nn

from hilotoken.encode import Encoding
from hilotoken.memory import Memory
from hilotoken.windows import (
    layers_of,
    run_windows,
    whole_windows,
    windows_changed,
    windows_for,
    work_of,
)

SIDE = 24  # latents
BOXES = [(0, 8, 0, 8), (88, 96, 40, 192), (57, 58, 191, 192), (0, 192, 0, 192)]  # pixels


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderTiny(
        decoder_block_out_channels=(8,) * 4, encoder_block_out_channels=(8,) * 4, latent_channels=4,
        num_encoder_blocks=(0, 1, 2, 1), num_decoder_blocks=(2, 1, 1, 1),
    ).eval()  # fmt: skip


def box_of(top, bottom, left, right):
    return slice(top, bottom), slice(left, right)


@pytest.mark.parametrize("box", BOXES)
@torch.no_grad()
def test_a_window_of_the_output_is_that_of_the_whole(vae, box):
    layers, wanted = layers_of(vae.decoder), box_of(*box)
    x = torch.randn(2, 4, SIDE, SIDE)
    windows = windows_for(layers, (SIDE, SIDE), wanted)
    found = run_windows(layers, windows, x[..., windows[0][0], windows[0][1]])
    meant = vae.decoder.layers(x)[..., wanted[0], wanted[1]]
    assert (found - meant).abs().max() <= 1e-6 * meant.abs().max().clamp_min(1)
    whole = work_of(layers, whole_windows(layers, (SIDE, SIDE)))
    assert work_of(layers, windows) <= whole
    assert (work_of(layers, windows) < whole / 2) == (box != BOXES[-1])


@pytest.mark.parametrize("box", BOXES)
@torch.no_grad()
def test_all_that_a_change_reaches_is_in_its_windows(vae, box):
    layers, (rows, columns) = layers_of(vae.encoder)[:5], box_of(*box)
    before = torch.randn(1, 3, 8 * SIDE, 8 * SIDE)
    after = before.clone()
    after[..., rows, columns] += 1
    windows = windows_changed(layers, before.shape[-2:], (rows, columns))
    one, other = (nn.Sequential(*[layer.module for layer in layers])(x) for x in (before, after))
    one[..., windows[-1][0], windows[-1][1]] = run_windows(
        layers, windows, after[..., windows[0][0], windows[0][1]]
    )
    assert (one - other).abs().max() <= 1e-6 * other.abs().max().clamp_min(1)


@torch.no_grad()
def test_a_picture_is_encoded_behind_what_the_first_layers_made_of_another(vae):
    memory, ran = Memory(), []

    def encode(picture):
        return AutoencoderTiny.encode(vae, picture)

    picture = torch.rand(1, 3, 8 * SIDE, 8 * SIDE) * 2 - 1
    for box in ((0, 0, 0, 0), BOXES[0], BOXES[1]):  # each differs from the one before
        rows, columns = box_of(*box)
        picture = picture.clone()
        picture[..., rows, columns] = 0
        encoding = Encoding.of(vae, "region", memory)
        found = encoding(encode, picture).latents
        assert (found - encode(picture).latents).abs().max() <= 1e-6
        ran.append(encoding.share)
    assert ran[0] == 1
    assert max(ran[1:]) < 0.7
    assert "forward" not in vars(vae.encoder.layers)


def test_layers_that_look_around_in_another_way_are_not_run_by_windows(vae, monkeypatch):
    assert layers_of(vae.decoder)
    assert layers_of(make_vae("kl").decoder) == layers_of(None) == []
    for layer in (
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 5, padding=1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
    ):
        monkeypatch.setitem(vae.decoder.layers._modules, "1", layer)
        assert layers_of(vae.decoder) == []
