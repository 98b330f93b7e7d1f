"""The nodes by themselves: widgets, the composite, the map, the example."""

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, example
from comfyui.method import OPTION_WIDGETS, PRESETS, changes, method_from
from comfyui.nodes import HiLoComposite, HiLoModel, HiLoOptions, HiLoTokens
from hilotoken.composite import feather_weight
from hilotoken.methods.hilo import HiLo
from hilotoken.methods.refresh import Refresh

AS_THEY_ARE = {name: given["default"] for name, (_, given) in OPTION_WIDGETS.items()}


def inputs(node):
    given = node.INPUT_TYPES()
    return given.get("required", {}) | given.get("optional", {})


def test_every_node_and_input_is_explained():
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    for node in NODE_CLASS_MAPPINGS.values():
        assert node.DESCRIPTION
        assert node.CATEGORY.split("/")[0] == "hilo"
        assert callable(getattr(node, node.FUNCTION))
        for name, (kind, given) in inputs(node).items():
            assert given["tooltip"], name
            if kind in ("INT", "FLOAT"):
                assert given["min"] <= given["default"] <= given["max"]


def test_the_preset_comes_first_and_options_are_a_node_of_their_own():
    assert list(inputs(HiLoModel))[:2] == ["model", "preset"]
    options = {*HiLo.__dataclass_fields__, *Refresh.__dataclass_fields__}
    assert set(inputs(HiLoOptions)) == set(OPTION_WIDGETS) <= options
    for node in (HiLoModel, HiLoTokens):
        assert inputs(node)["options"][0] == HiLoOptions.RETURN_TYPES[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_untouched_options_are_the_preset(preset):
    assert HiLoOptions().change(**AS_THEY_ARE) == ({},)
    assert method_from(preset, {}) == PRESETS[preset] == method_from(preset)


def test_each_widget_changes_its_option():
    given = {"dilate": 5, "detail": 0.25, "coarse": 8, "context": "sampled", "cell": 4,
             "weights": "on", "refresh": 3, "store": "float8", "references": "whole"}  # fmt: skip
    assert set(given) == set(OPTION_WIDGETS)
    made = method_from("paper", changes(**given))
    assert (made.dilate, made.detail, made.coarse, made.cell) == (5, 0.25, 8, 4)
    assert made.refresh == Refresh(3, store="float8")
    assert (made.weights, made.references) == (True, "whole")
    assert changes(refresh=0, store="as they are") == {"refresh": None, "store": None}
    assert changes(dilate=0, detail=0.0, weights="off") == {
        "dilate": 0,
        "detail": 0.0,
        "weights": False,
    }
    sampled = method_from("paper", changes(context="sampled"))
    assert (sampled.coarse, sampled.weights) == (0, True)  # as HiLo(context="sampled") has them


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="unknown preset 'best'"):
        method_from("best")
    with pytest.raises(ValueError, match="coarse"):
        method_from("paper", {"coarse": 1})
    with pytest.raises(ValueError, match="store is of keys"):
        method_from("paper", {"store": "float8"})
    assert method_from("paper", {"coarse": 0}) == HiLo(coarse=0)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    photo = (torch.rand(1, 69, 93, 3, generator=generator) * 255).round() / 255
    edited = torch.rand(2, 64, 88, 3, generator=generator)
    mask = torch.zeros(1, 69, 93)
    mask[:, 20:50, 30:70] = 1
    return photo, edited, mask


def composite(*args):
    return HiLoComposite().composite(*args)[0]


@pytest.mark.parametrize("feather", [0, 5])
@pytest.mark.parametrize("match_colours", [False, True])
def test_outside_the_mask_is_the_photo_bit_for_bit(pictures, feather, match_colours):
    photo, edited, mask = pictures
    before = photo.clone()
    out = composite(photo, edited, mask, feather, match_colours)
    assert out.shape == (2, 69, 93, 3)
    assert torch.equal(out[:, mask[0] < 0.5], photo.expand(2, -1, -1, -1)[:, mask[0] < 0.5])
    assert torch.equal(photo, before)
    inside = (out - photo)[:, mask[0] >= 0.5]
    assert (inside.abs() > 1e-3).float().mean() > 0.8


def test_inside_is_the_edit_from_the_middle_of_the_photo(pictures):
    """VAE Encode cuts 69 x 93 to 64 x 88, 2 rows and 2 columns in."""
    photo, edited, mask = pictures
    out = composite(photo, edited, mask, 0, False)
    assert torch.equal(out[:, 20:50, 30:70], edited[:, 18:48, 28:68])


def test_a_rim_that_the_autoencoder_cut_off_stays_the_photos(pictures):
    photo, edited, _ = pictures
    out = composite(photo, edited, torch.ones(1, 69, 93), 0, False)
    assert torch.equal(out[:, 2:66, 2:90], edited)
    assert torch.equal(out[:, :2], photo[:, :2].expand(2, -1, -1, -1))


def test_feathering_is_the_engines(pictures):
    _, edited, mask = pictures
    photo = torch.zeros(1, 64, 88, 3)
    weight = composite(photo, torch.ones_like(edited), mask[:, :64, :88], 6, False)[0, ..., 0]
    expected = feather_weight(mask[0, :64, :88].bool().numpy(), 6)
    np.testing.assert_allclose(weight.numpy(), expected, atol=1e-5)


def test_sizes_that_do_not_fit_are_named(pictures):
    photo, edited, _ = pictures
    with pytest.raises(ValueError, match="the mask is 64x64 and the photo 93x69"):
        composite(photo, edited, torch.ones(1, 64, 64), 0, True)
    with pytest.raises(ValueError, match="the edit is 88x64 and the photo 200x69"):
        composite(torch.rand(1, 69, 200, 3), edited, torch.ones(1, 69, 200), 0, True)


def test_the_map_and_its_counts():
    photo, mask = example.load()
    assert photo.shape == (1, 512, 512, 3)
    assert set(mask.unique().tolist()) == {0, 1}
    drawn, counts = HiLoTokens().show(photo, mask, "paper")
    assert drawn.shape[0] == 1
    assert drawn.shape[-1] == 3
    run, full = (int(word) for word in counts.split(" tokens")[0].split(" of "))
    assert full == 32 * 32
    assert 0 < run < full
    every = {"detail": 1.0, "coarse": 0}
    assert HiLoTokens().show(photo, mask, "paper", every)[1].startswith("1024 of 1024")


def test_the_example_is_the_one_of_the_repository(request):
    examples = request.config.rootpath / "examples"
    region = (314, 555, 826, 1067)
    whole = Image.open(examples / "extreme-desert-hike.jpg").convert("RGB").crop(region)
    photo, mask = example.load()
    assert np.abs(photo[0].numpy() * 255 - np.asarray(whole, np.float32)).mean() < 3
    drawn = Image.open(examples / "extreme-desert-hike_mask.png").convert("L").crop(region)
    assert torch.equal(mask[0] > 0, torch.from_numpy(np.asarray(drawn) >= 128))
