"""LoRA that makes a model robust: asked as an edit asks, resumed, saved for diffusers."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from families import BY_NAME, arguments
from safetensors.torch import load_file
from tiny import make_photo
from torch import Tensor
from toys import interrupt_at, saved_model, write_mask

from hilotoken import Dense, HiLo, Refresh, compress, load_model
from hilotoken.lending import Opened
from hilotoken.memory import Memory
from hilotoken.photo import load_photo
from hilotoken.request import Request
from hilotoken.train import lora, throughput
from hilotoken.train.at_step import at_step
from hilotoken.train.lora import (
    LoraOptions,
    add_adapter,
    check_pipeline,
    imitate,
    photo_draw,
    train_lora,
)

pytest.importorskip("peft")


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    """How fast this machine is takes a second of its time."""
    monkeypatch.setattr(throughput, "matrix_rate", lambda device: 1e9)


ROWS = [
    *("FluxFillPipeline", "FluxInpaintPipeline", "FluxKontextPipeline", "ChromaInpaintPipeline"),
    *("Flux2KleinInpaintPipeline", "QwenImageInpaintPipeline", "BriaFiboEditPipeline"),
]
FEW = HiLo(dilate=1, detail=0.05, coarse=0, bucket=1)
SHORT = LoraOptions(samples=4, batch=2, rank=2, rate=1e-2, checkpoint_seconds=0)


def opened() -> Opened:
    return Opened(Memory(2**24))


def given(name: str, **changes: Any) -> dict[str, Any]:
    return arguments(BY_NAME[name], num_inference_steps=8, **changes)


def first_rows(pipe: Any, method: Any, call: dict[str, Any]) -> Tensor:
    """What the transformer says in the first call of an edit, before it is put back."""
    said: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        said.append(output[0])

    hook = pipe.transformer.register_forward_hook(keep)
    try:
        with torch.no_grad():
            compress(pipe, method)(**call)
    finally:
        hook.remove()
    return said[0]


@pytest.mark.parametrize("name", ROWS)
def test_the_pupil_is_asked_as_an_edit_asks(name):
    pipe = BY_NAME[name].make()
    whole = first_rows(pipe, FEW, given(name))
    with at_step(pipe, FEW, given(name), 0.0, opened()) as at:
        assert torch.allclose(at.velocity_BKC, whole[:, at.keep_K], atol=1e-5)
        assert 0 < at.inside_K.sum() < len(at.keep_K) < whole.shape[1]
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks
    assert "forward" not in vars(pipe.transformer)


@pytest.mark.parametrize("name", ROWS)
def test_an_adapter_begins_as_nothing_and_every_token_is_the_teacher(name):
    pipe = BY_NAME[name].make()
    add_adapter(check_pipeline(pipe), 2)
    kept = opened()
    for method, at in ((Dense(), 0.6), (HiLo(detail=1.0, coarse=0), 0.3)):
        assert imitate(pipe, method, given(name), at, kept, 1.0)[1] < 1e-8
    assert imitate(pipe, FEW, given(name), 0.6, kept, 1.0)[1] > 1e-4


def test_x_t_is_on_the_line_from_the_photo_to_the_noise(pipe):
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["hidden_states"][..., :16])

    hook = pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    ends = []
    for at in (0.3, 0.8):
        with torch.no_grad(), at_step(pipe, Dense(), given("FluxFillPipeline"), at, opened()) as s:
            noise, x_t = seen[0], seen[-1]
            ends.append((x_t - s.sigma * noise) / (1 - s.sigma))
        seen.clear()
    hook.remove()
    assert torch.allclose(*ends, atol=1e-4)


def test_context_at_every_step_is_no_reuse(pipe):
    for refresh, same in ((Refresh(range(8)), True), (Refresh(1), False)):
        rows = []
        for method in (FEW, HiLo(dilate=1, detail=0.05, coarse=0, bucket=1, refresh=refresh)):
            with at_step(pipe, method, given("FluxFillPipeline"), 0.7, opened()) as at:
                rows.append(at.velocity_BKC[:, at.inside_K].detach())
        assert torch.allclose(*rows, atol=1e-5) is same


@pytest.mark.parametrize("refresh", [None, Refresh(1, text=True)])
def test_activations_may_be_computed_again(refresh):
    gradients = []
    for again in (False, True):
        pipe = BY_NAME["FluxFillPipeline"].make()
        torch.manual_seed(0)
        pupil = add_adapter(check_pipeline(pipe), 2)
        if again:
            pipe.transformer.enable_gradient_checkpointing()
        method = HiLo(detail=0.1, refresh=refresh, weights=True)
        imitate(pipe, method, given("FluxFillPipeline"), 0.6, opened(), 1.0)
        gradients.append([w.grad for w in pupil.values()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


def draw(number: int) -> dict[str, Any]:
    return given("FluxFillPipeline", generator=torch.Generator().manual_seed(number))


def trained(run: Any) -> Any:
    pipe = BY_NAME["FluxFillPipeline"].make()
    return pipe, train_lora(pipe, draw, run, SHORT)


def test_a_run_broken_off_ends_with_the_same_weights_which_diffusers_loads(tmp_path, monkeypatch):
    pipe, file = trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, lora, "imitate", 3)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "broken")
    _, again = trained(tmp_path / "broken")
    assert file.read_bytes() == again.read_bytes()

    other = BY_NAME["FluxFillPipeline"].make()
    before = other(**given("FluxFillPipeline")).images
    other.load_lora_weights(str(file.parent), weight_name=file.name)
    after = other(**given("FluxFillPipeline")).images
    assert not torch.equal(before, after)
    assert torch.allclose(after, pipe(**given("FluxFillPipeline")).images, atol=1e-5)
    with pytest.raises(ValueError, match="rank"):
        train_lora(
            BY_NAME["FluxFillPipeline"].make(), draw, file.parent, LoraOptions(rank=3, samples=2)
        )


def test_it_comes_nearer_to_the_teacher():
    pipe = BY_NAME["FluxFillPipeline"].make()
    torch.manual_seed(0)
    pupil = add_adapter(check_pipeline(pipe), 4)
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=2e-2)
    distances, kept = [], opened()
    for _ in range(15):
        optimizer.zero_grad()
        distances.append(imitate(pipe, FEW, given("FluxFillPipeline"), 0.0, kept, 1.0)[1])
        optimizer.step()
    assert min(distances[-3:]) < 0.7 * distances[0]


def test_photos_come_in_squares_under_masks(tmp_path):
    make_photo(90, 300).save(tmp_path / "wide.png")
    pipe = load_model(saved_model())
    picture = photo_draw(pipe, tmp_path, 128, Request())
    one, again, other = picture(3), picture(3), picture(4)
    assert one["image"].size == one["mask_image"].size == (128, 128)
    assert np.array_equal(one["image"], again["image"])
    assert np.array_equal(one["mask_image"], again["mask_image"])
    assert not np.array_equal(one["mask_image"], other["mask_image"])
    with pytest.raises(ValueError, match="a multiple of 16"):
        photo_draw(pipe, tmp_path, 130, Request())


def test_what_cannot_be_trained_is_refused(monkeypatch):
    with pytest.raises(TypeError, match="StableDiffusion3InpaintPipeline"):
        check_pipeline(BY_NAME["StableDiffusion3InpaintPipeline"].make())
    with pytest.raises(TypeError, match="takes no LoRA in diffusers"):
        check_pipeline(BY_NAME["LongCatImageEditPipeline"].make())
    pipe = BY_NAME["FluxFillPipeline"].make()
    add_adapter(check_pipeline(pipe), 2)
    with pytest.raises(ValueError, match="robust is on the transformer"):
        check_pipeline(pipe)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        lora.check_installed(LoraOptions(eight_bit=True))
    with pytest.raises(ValueError, match="rate must be more than 0"):
        LoraOptions(rate=0.0)


def test_the_command_makes_what_edit_takes(hilo, tmp_path):
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "a.png"
    make_photo(150, 170).save(photo)
    mask = write_mask(tmp_path, load_photo(photo), (40, 60, 90, 100))
    done = hilo(
        "lora", saved_model(), tmp_path / "photos", tmp_path / "run", "--samples", 4,
        "--batch", 1, "--size", 128, "--rank", 2, "--rate", 0.1,
    )  # fmt: skip
    assert done.code == 0, done.err
    file = tmp_path / "run" / "pytorch_lora_weights.safetensors"
    assert f"wrote {file}" in done.err
    learned = [w for name, w in load_file(file).items() if "lora_B" in name]
    assert any(weight.abs().max() > 0 for weight in learned)
    done = hilo(
        "edit", photo, "--mask", mask, "-o", tmp_path / "out.png", "--model", saved_model(),
        "--size", 128, "--steps", 1, "--lora", file,
    )  # fmt: skip
    assert done.code == 0, done.err
