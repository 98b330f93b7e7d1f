"""Qwen-Image beyond the table of `families.py`: places, references, guidance, sizes."""

from typing import Any

import family_qwen
import numpy as np
import pytest
import torch
from contract import FEW, KEEP_ALL, Edit, worst
from diffusers import FlowMatchEulerDiscreteScheduler
from families import BY_NAME
from family_qwen import PIPELINES, arguments, embeds, source
from tiny import TOKENS, inside, make_mask, make_photo
from torch import Tensor

from hilotoken import HiLo, compress
from hilotoken.adapters.qwen import QwenShort, _exponentials

INPAINT, EDIT, PLUS = (f"QwenImage{kind}Pipeline" for kind in ("Inpaint", "Edit", "EditPlus"))
CONTROL = "QwenImageControlNetInpaintPipeline"
MASKED = [name for name in PIPELINES if name.endswith("InpaintPipeline") and name != CONTROL]


def make(name: str = INPAINT, dtype: torch.dtype = torch.float32) -> Any:
    return family_qwen.make(name, dtype)


def worst_turn(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.fixture
def pipe():
    lent = Edit(BY_NAME[INPAINT])
    yield lent.pipe
    lent.check()


@pytest.mark.parametrize("grid", [(16, 16), (5, 8), (31, 64)])
def test_coarse_places_continue_the_models_own(pipe, grid):
    """At whole places the table is the module's own; between them its turns are halved."""
    h, w = grid
    module = pipe.transformer.pos_embed
    own_TD, _ = module([[(1, 2, 2), (1, h, w)]], max_txt_seq_len=3, device=torch.device("cpu"))
    own_TD = own_TD[4:]  # the second frame, as references are
    place_T2 = torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()
    place_T2 -= torch.tensor([h - h // 2, w - w // 2])
    assert torch.equal(_exponentials(module, own_TD, place_T2), own_TD)
    rows = slice(2, 5)  # of 2 + 3 + 3 exponentials a place
    between_TD = _exponentials(module, own_TD, place_T2 + 0.5)[:-w, rows]
    assert worst_turn(between_TD**2, own_TD[:-w, rows] * own_TD[w:, rows]) <= 1e-5  # angles add up


def test_aligned_places_are_those_of_a_picture_so_much_smaller(pipe, monkeypatch):
    made, fast = [], compress(pipe, HiLo(positions="aligned", dilate=0, detail=0.0, bucket=1))
    align = QwenShort.align
    monkeypatch.setattr(
        QwenShort, "align", lambda short, *of: made.append(short) or align(short, *of)
    )
    fast(**arguments(INPAINT, num_inference_steps=1))
    image_SD, text_LD = made[0].aligned_rotary
    small_TD, small_LD = pipe.transformer.pos_embed([[(1, 4, 4)]], max_txt_seq_len=len(text_LD))
    assert worst_turn(text_LD, small_LD) <= 1e-6
    plan = fast.last_run.plan
    coarse_MD, small_MD = image_SD[len(plan.keep_K) :], small_TD[plan.cells_M]
    shift_MD = coarse_MD / small_MD  # the middle of a cell and its corner: the same for all
    assert worst_turn(shift_MD, shift_MD[:1]) <= 1e-5


@pytest.mark.parametrize("name", [EDIT, "QwenImageImg2ImgPipeline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_guidance_bears_a_token_that_is_on_the_source_already(name, dtype):
    """Its velocity is nothing, and the pipeline divides by the norm of each token's."""
    pipe = make(name, dtype)
    given = arguments(name, dtype=dtype, true_cfg_scale=3.0) | embeds(1, dtype, 2, "negative_")
    x0 = source(pipe, given | {"generator": torch.Generator().manual_seed(0)})
    fast = compress(pipe, FEW)
    end = fast(**given | {"latents": x0}).images
    assert end.isfinite().all()
    dropped_N = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, fast.last_run.plan.keep_K, False)
    assert worst(end[:, dropped_N], x0[:, dropped_N]) <= 1e-6


def test_a_reference_of_another_grid_stays_whole():
    """Of one megapixel, through the VAE's own convolutions."""
    pipe = family_qwen.make(EDIT, patches=False)
    photo, mask = make_photo(), make_mask()
    given = arguments(EDIT, image=photo, mask_image=mask, height=256, width=256, output_type="pil")
    fast = compress(pipe, FEW)
    image = fast(**given | {"num_inference_steps": 1}).images[0]
    assert fast.last_run.sequence == (TOKENS + 64 * 64, fast.last_run.tokens_run + 64 * 64)
    assert fast.last_run.tokens_run < TOKENS / 2
    assert np.array_equal(np.asarray(image)[~inside(mask)], np.asarray(photo)[~inside(mask)])


def test_of_several_references_the_photo_alone_is_shortened():
    pipe = make(PLUS)
    photo, other = arguments(PLUS)["image"], make_photo(seed=1)
    fast = compress(pipe, FEW)
    given = arguments(PLUS, image=[photo, other], output_type="pil")
    image = np.asarray(fast(**given).images[0])
    assert fast.last_run.sequence == (3 * TOKENS, 2 * fast.last_run.tokens_run + TOKENS)
    outside = ~inside(given["mask_image"])
    assert np.array_equal(image[outside], np.asarray(photo)[outside])


@pytest.mark.parametrize("name", MASKED)
def test_a_crop_around_the_mask_is_planned_and_overlaid_by_the_pipeline(name):
    pipe = make(name)
    fast = compress(pipe, HiLo(dilate=0, detail=0.0, coarse=0, bucket=1))
    given = arguments(name, output_type="pil", strength=0.7, num_inference_steps=4)
    photo, mask = np.asarray(given["image"]), inside(given["mask_image"])
    fast(**given)
    whole = fast.last_run.tokens_run
    given = arguments(name, output_type="pil", strength=0.7, num_inference_steps=4)
    image = np.asarray(fast(**given, padding_mask_crop=8).images[0])
    assert fast.last_run.tokens_run > 2 * whole  # the mask fills the crop
    assert np.array_equal(image[~mask], photo[~mask])
    assert (image[mask] != photo[mask]).any(-1).mean() > 0.5


@pytest.mark.parametrize("name", [INPAINT, "QwenImageImg2ImgPipeline", CONTROL])
def test_a_size_that_the_pipeline_rounds(name):
    pipe = make(name)
    photo, mask = make_photo(231, 250), make_mask(231, 250)
    names = ("control_image", "control_mask") if name == CONTROL else ("image", "mask_image")
    images = dict(zip(names, (photo, mask), strict=True))

    def given():
        torch.manual_seed(0)  # the control image is sampled with no generator
        return arguments(name, height=231, width=250) | images

    fast = compress(pipe, FEW)
    image = fast(**given() | {"output_type": "pil"}).images[0]
    assert fast.last_run.plan.grid == (14, 15)
    assert image.size == (240, 224)
    ours = compress(pipe, KEEP_ALL)(**given()).images
    own = given()
    if "Img2Img" in name:
        del own["mask_image"]
    assert torch.equal(ours, pipe(**own).images)


@pytest.mark.parametrize("name", PIPELINES)
def test_callbacks_read_whole_latents(name):
    seen = []

    def keep(pipe, step, timestep, given):
        seen.append(given["latents"].shape)
        return given

    compress(make(name), FEW)(**arguments(name, callback_on_step_end=keep))
    assert seen
    assert set(seen) == {(1, TOKENS, 16)}


@pytest.mark.parametrize("positions", ["interpolated", "aligned"])
def test_a_negative_prompt_of_another_length(pipe, positions):
    """Its own text places, and its own keys to be weighed beside the coarse ones."""
    negative = {k: v[:, :3] for k, v in embeds(1, torch.float32, 2, "negative_").items()}
    fast = compress(pipe, HiLo(positions=positions, weights=True, bucket=1))
    given = arguments(INPAINT, true_cfg_scale=3.0, output_type="np")
    image = fast(**given | negative).images[0]
    assert np.isfinite(image).all()
    assert fast.last_run.counts["coarse"] > 4


def test_a_control_image_that_is_a_tensor_is_refused():
    given = arguments(CONTROL, control_image=torch.rand(1, 3, 256, 256) * 2 - 1)
    with pytest.raises(ValueError, match="give pictures or arrays"):
        compress(make(CONTROL))(**given)


def test_other_schedulers_of_flow_matching():
    pipe = make()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    fast = compress(pipe, KEEP_ALL)
    ours = fast(**arguments(INPAINT)).images
    assert torch.equal(ours, pipe(**arguments(INPAINT)).images)
