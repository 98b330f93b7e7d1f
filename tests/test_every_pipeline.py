"""Every pipeline at the front: loaded from a folder, asked in one vocabulary, by a command too."""

from typing import Any

import numpy as np
import pytest
import torch
from complete import MAKERS, loaded, saved, with_small_shapes, without_torchvision
from PIL import Image
from tiny import make_mask, make_photo

from hilotoken import HiLo, edit_photo, load_model
from hilotoken.model.load import lora_from
from hilotoken.request import MEGAPIXEL, Request, arguments_for, working_size

HEIGHT, WIDTH = 150, 170
BOX = (40, 60, 90, 100)
FEW = HiLo(dilate=0, detail=0.05, bucket=8)
# They work at a megapixel, whatever the photo; the first in its reference alone.
SLOW = ("QwenImageEditPipeline", *(name for name in MAKERS if name in MEGAPIXEL))


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    without_torchvision(monkeypatch)
    with_small_shapes(monkeypatch)


@pytest.fixture
def files(tmp_path) -> dict[str, Any]:
    pictures = {
        "photo": make_photo(HEIGHT, WIDTH),
        "mask": make_mask(HEIGHT, WIDTH, BOX),
        "control": make_photo(HEIGHT, WIDTH, seed=3),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in pictures} | {"out": tmp_path / "out.png"}


@pytest.mark.parametrize("name", MAKERS)
def test_hilo_edit_takes_the_folder(hilo, files, name):
    extra = ("--control", files["control"]) if "Control" in name else ()
    size, steps = ((), 1) if name in MEGAPIXEL else (("--size", 128), 2)
    done = hilo(
        "edit", files["photo"], "--mask", files["mask"], "-o", files["out"], "--model", saved(name),
        "--dtype", "float32", "--prompt", "a cat", "--steps", steps, *size,
        "--set", "dilate=0", "--set", "detail=0.05", "--set", "bucket=8", *extra,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out == ""
    before, after, mask = (np.asarray(Image.open(files[x])) for x in ("photo", "out", "mask"))
    changed = (before != after).any(-1)
    assert not changed[mask < 128].any()
    assert changed[mask >= 128].mean() > 0.9
    assert size == () or "24 of 64 tokens ran" in " ".join(done.err.split())


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in SLOW])
def test_a_preview_has_half_the_size(name):
    given: dict[str, Any] = {"steps": 2, "size": 128}
    if "Control" in name:
        given["control"] = make_photo(HEIGHT, WIDTH, seed=3)
    shown = []

    def told(stage):
        if stage.name == "denoise":
            shown.append(stage.preview())

    photo, mask = make_photo(HEIGHT, WIDTH), make_mask(HEIGHT, WIDTH, BOX)
    edited = edit_photo(loaded(name), photo, mask, FEW, prompt="a cat", progress=told, **given)
    assert len(shown) == 2
    if name.startswith(("Flux2", "BriaFibo2")):  # whose latents are packed otherwise
        assert shown == [None, None]
        return
    assert [x.size for x in shown] == [(edited.before.width // 2, edited.before.height // 2)] * 2


@pytest.mark.parametrize("by", [(), ("--keep", "found")], ids=["found early", "kept"])
def test_hilo_edit_needs_no_mask(hilo, files, by):
    done = hilo(
        "edit", files["photo"], "-o", files["out"], "--model", saved("FluxKontextPipeline"),
        "--dtype", "float32", "--prompt", "a cat", "--steps", 4, "--size", 128, "--compare", *by,
    )  # fmt: skip
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert "of the photo was found to change" in said
    assert by or "4 steps, fewer than 12" in said
    region = np.asarray(Image.open(files["out"].with_name("out_region.png")).convert("L")) > 0
    before, after = (np.asarray(Image.open(files[x])) for x in ("photo", "out"))
    assert region.shape == before.shape[:2]
    assert not (before != after).any(-1)[~region].any()


def test_masks_own_options_go_with_a_mask(hilo, files):
    model = ("--model", saved("FluxKontextPipeline"))
    for words in (("--invert",), ("--grow", 3), ("--preset", "fast")):
        done = hilo("edit", files["photo"], "-o", files["out"], *model, *words)
        assert done.code == 2
        assert words[0] in done.err


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in SLOW])
def test_prompt_and_seed_decide(name):
    given: dict[str, Any] = {"steps": 2, "size": 128}
    if "Control" in name:
        given["control"] = make_photo(HEIGHT, WIDTH, seed=3)
    photo, mask = make_photo(HEIGHT, WIDTH), make_mask(HEIGHT, WIDTH, BOX)

    def pixels(prompt: str, seed: int) -> np.ndarray:
        made = edit_photo(loaded(name), photo, mask, FEW, prompt=prompt, seed=seed, **given)
        return made.photo.pixels

    first = pixels("a cat", 0)
    assert np.array_equal(first, pixels("a cat", 0))
    assert not np.array_equal(first, pixels("a dog", 0))
    assert not np.array_equal(first, pixels("a cat", 1))


REFERENCE = make_photo(96, 112, seed=5)
# pipeline, what is asked, what the pipeline is given for it or the error
ASKED: list[tuple[str, dict[str, Any], dict[str, Any] | str]] = [
    ("FluxFillPipeline", {"guidance": 20}, {"guidance_scale": 20.0}),
    ("FluxFillPipeline", {"negative_prompt": "dog"}, "takes no negative prompt"),
    ("FluxFillPipeline", {"cfg": 3}, "no second kind of guidance"),
    ("FluxFillPipeline", {"strength": 0.5, "steps": 4}, {"strength": 0.5}),
    ("FluxInpaintPipeline", {"guidance": 5}, {"guidance_scale": 5.0}),
    ("FluxInpaintPipeline", {"negative_prompt": "dog"}, "does nothing at cfg 1"),
    (
        "FluxInpaintPipeline",
        {"negative_prompt": "dog", "cfg": 3},
        {"negative_prompt": "dog", "true_cfg_scale": 3.0},
    ),
    ("FluxInpaintPipeline", {"cfg": 3}, {"negative_prompt": " ", "true_cfg_scale": 3.0}),
    ("FluxInpaintPipeline", {"steps": 1}, "give 2 or more"),
    ("FluxInpaintPipeline", {"references": (REFERENCE,)}, "takes no references"),
    ("FluxKontextPipeline", {"strength": 0.5}, "takes no strength"),
    ("FluxKontextPipeline", {}, {"_auto_resize": False, "max_area": 128 * 112}),
    ("FluxControlInpaintPipeline", {}, "needs a control picture"),
    ("FluxControlInpaintPipeline", {"control": REFERENCE}, {"control_image": REFERENCE}),
    ("FluxKontextPipeline", {"control": REFERENCE}, "takes no control picture"),
    (
        "QwenImageEditPipeline",
        {"guidance": 3},
        {"true_cfg_scale": 3.0, "negative_prompt": " "},
    ),
    ("QwenImageEditPipeline", {"negative_prompt": "dog"}, {"negative_prompt": "dog"}),
    ("QwenImageEditPipeline", {"guidance": 3, "cfg": 3}, "no second kind of guidance"),
    ("StableDiffusion3InpaintPipeline", {"guidance": 3}, {"guidance_scale": 3.0}),
    (
        "StableDiffusion3InpaintPipeline",
        {"guidance": 1, "negative_prompt": "dog"},
        "does nothing at guidance 1",
    ),
    ("StableDiffusion3InpaintPipeline", {"cfg": 3}, "no second kind of guidance"),
    ("ZImageInpaintPipeline", {"negative_prompt": "dog"}, {"negative_prompt": "dog"}),
    ("Flux2KleinPipeline", {"negative_prompt": "dog"}, "takes no negative prompt"),
    ("Flux2KleinPipeline", {"label": "cat"}, "knows no labels"),
    ("Flux2KleinInpaintPipeline", {"references": (REFERENCE,)}, {"image_reference": REFERENCE}),
]


@pytest.mark.parametrize(("name", "asked", "expected"), ASKED, ids=lambda x: str(x)[:40])
def test_one_vocabulary(name, asked, expected):
    before, mask = make_photo(112, 128), np.ones((112, 128), bool)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            arguments_for(loaded(name), Request(**asked), before, mask)
        return
    given = arguments_for(loaded(name), Request(**asked), before, mask)
    assert {key: given[key] for key in expected} == expected
    assert given["image"] is before


def test_references_follow_the_photo_in_a_list():
    photo, mask = make_photo(HEIGHT, WIDTH), make_mask(HEIGHT, WIDTH, BOX)
    pipe, given = loaded("Flux2KleinPipeline"), {"size": 128, "steps": 1, "prompt": "a cat"}
    alone = edit_photo(pipe, photo, mask, FEW, **given)
    beside = edit_photo(pipe, photo, mask, FEW, references=[REFERENCE], **given)
    assert beside.run.sequence[0] > alone.run.sequence[0]
    assert not np.array_equal(alone.photo.pixels, beside.photo.pixels)


def test_the_working_size():
    assert working_size(loaded("FluxFillPipeline"), None) == 1024
    assert working_size(loaded("FluxFillPipeline"), 640) == 640
    assert working_size(loaded("StableDiffusion3InpaintPipeline"), None) == 32 * 8


def test_weights_are_of_the_type_that_is_asked_for():
    assert load_model(saved("FluxInpaintPipeline")).dtype == torch.bfloat16
    assert load_model(saved("FluxInpaintPipeline"), dtype="float16").dtype == torch.float16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"offload": "disk"}, "unknown offload 'disk'"),
        ({"offload": "model"}, "name one that is no CPU"),
        ({"quantize": "2bit"}, "unknown quantize '2bit'"),
        ({"loras": ["none.safetensors"]}, "no LoRA at 'none.safetensors'"),
        ({"loras": ["none.bin:0.5"]}, "no LoRA at 'none.bin'"),
    ],
    ids=str,
)
def test_options_of_loading_are_checked_first(given, message):
    with pytest.raises(ValueError, match=message):
        load_model("/nowhere/at/all", **given)


def test_weights_in_eight_bits():
    pytest.importorskip("torchao")
    pipe = load_model(saved("FluxInpaintPipeline"), dtype="float32", quantize="int8")
    pipe.set_progress_bar_config(disable=True)
    kinds = {type(p).__name__ for p in pipe.transformer.parameters()}
    assert any("Int8" in kind or "Quant" in kind for kind in kinds), kinds
    photo, mask = make_photo(HEIGHT, WIDTH), make_mask(HEIGHT, WIDTH, BOX)
    given = {"size": 128, "steps": 2, "prompt": "a cat"}
    mine, whole = (
        edit_photo(one, photo, mask, FEW, **given).after
        for one in (pipe, loaded("FluxInpaintPipeline"))
    )
    difference = np.abs(np.asarray(mine, float) - np.asarray(whole, float))
    assert 0 < difference.mean() < 8


def test_a_lora_is_heard_by_its_scale(tmp_path):
    peft = pytest.importorskip("peft")
    pipe = load_model(saved("FluxInpaintPipeline"), dtype="float32")
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    weights = peft.get_peft_model_state_dict(pipe.transformer)
    type(pipe).save_lora_weights(tmp_path, transformer_lora_layers=weights)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    photo, mask = make_photo(HEIGHT, WIDTH), make_mask(HEIGHT, WIDTH, BOX)

    def pixels(*loras: str) -> np.ndarray:
        one = load_model(saved("FluxInpaintPipeline"), dtype="float32", loras=loras)
        one.set_progress_bar_config(disable=True)
        return edit_photo(one, photo, mask, FEW, size=128, steps=2, prompt="a").photo.pixels

    plain, off, on, half = pixels(), pixels(f"{file}:0"), pixels(str(file)), pixels(f"{file}:0.5")
    assert np.array_equal(plain, off)
    assert not np.array_equal(plain, on)
    assert not np.array_equal(half, on)


def test_no_lora_in_a_file_of_other_weights():
    weights = saved("FluxInpaintPipeline") / "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match=r"LoRA|no weights"):
        load_model(saved("FluxInpaintPipeline"), loras=[str(weights)])


def test_a_scale_follows_a_colon(tmp_path):
    file, odd = tmp_path / "a.safetensors", tmp_path / "b:c.safetensors"
    for one in (file, odd):
        one.touch()
    assert lora_from(str(file)) == (file, 1.0)
    assert lora_from(f"{file}:0.7") == (file, 0.7)
    assert lora_from(str(odd)) == (odd, 1.0)
    assert lora_from(f"{odd}:-2") == (odd, -2.0)
