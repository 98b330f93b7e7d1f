"""FLUX.2, Chroma, LongCat and Fibo beyond the table of `families.py`."""

from typing import Any

import family_chroma
import family_flux2
import family_longcat
import numpy as np
import pytest
import torch
from contract import KEEP_ALL, worst
from diffusers import BriaFiboTransformer2DModel
from tiny import SIZE, TEXT, TOKENS, fixed, inside, make_mask, make_photo

from hilotoken import HiLo, compress
from hilotoken.plan import token_positions

FAMILIES = {
    family.name.removesuffix("Pipeline"): family
    for family in (*family_flux2.FAMILIES, *family_chroma.FAMILIES, *family_longcat.FAMILIES)
}


def edit(name: str, pipe: Any, method: Any, **changes: Any) -> tuple[Any, Any]:
    """What comes out, and the record of the run."""
    fast = compress(pipe, method)
    return fast(**FAMILIES[name].arguments(**changes))[0], fast.last_run


def plain(name: str, pipe: Any, **changes: Any) -> Any:
    given = FAMILIES[name].arguments(**changes)
    if "Inpaint" not in name:
        given.pop("mask_image")
    return pipe(**given)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["Flux2Klein", "ChromaInpaint", "LongCatImageEdit", "BriaFiboEdit"]
)
def test_places_are_those_of_the_plan(name, dtype):
    """Of the target and of its reference alike; halves survive integers and bfloat16."""
    pipe, seen = FAMILIES[name].make(dtype), []
    pipe.transformer.pos_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    _, run = edit(name, pipe, HiLo(bucket=1), dtype=dtype, num_inference_steps=2)
    image = run.sequence[1]
    places = next(ids for ids in seen if len(ids) >= image)[-image:, 1:3].float()
    text = TEXT if name == "LongCatImageEdit" else 0  # whose image places count on from the text's
    assert run.counts["coarse"] > 4
    for part in places.split(run.tokens_run):
        assert torch.equal(part, token_positions(run.plan) + text)


def test_aligned_places_are_for_coarse_queries_alone():
    """One block, no coarse query ever asked by another token: then aligning has no say."""
    ends = []
    for blocks in (0, 1):
        pipe = FAMILIES["Flux2Klein"].make(torch.float32)
        del pipe.transformer.single_transformer_blocks[blocks:]
        ends += [
            edit("Flux2Klein", pipe, HiLo(positions=kind, bucket=1), num_inference_steps=1)[0]
            for kind in ("interpolated", "aligned")
        ]
    assert torch.equal(ends[0], ends[1])
    assert worst(ends[2], ends[3]) > 5e-4


@pytest.mark.parametrize("square", [False, True])
def test_an_attention_mask_of_the_users_goes_with_its_keys(square):
    pipe = FAMILIES["Flux2"].make(torch.float32)
    length = TEXT + 2 * TOKENS
    mask = torch.ones(1, 1, length if square else 1, length, dtype=torch.bool)
    mask[..., TEXT + 100 : TEXT + 120] = False
    given = {"attention_kwargs": {"attention_mask": mask}, "num_inference_steps": 2}
    expected = plain("Flux2", pipe, **given)
    assert torch.equal(edit("Flux2", pipe, KEEP_ALL, **given)[0], expected)
    assert worst(edit("Flux2", pipe, fixed(torch.randperm(TOKENS)), **given)[0], expected) <= 1e-5
    assert worst(plain("Flux2", pipe, num_inference_steps=2), expected) > 1e-3
    end, run = edit("Flux2", pipe, HiLo(bucket=1, weights=True), **given)
    assert run.counts["coarse"] > 4
    assert torch.isfinite(end).all()


def test_klein_inpaint_pastes_its_crop_itself():
    name = "Flux2KleinInpaint"
    pipe, outside = FAMILIES[name].make(torch.float32), ~inside(make_mask())
    given = {"output_type": "pil", "padding_mask_crop": 16}
    kept = edit(name, pipe, KEEP_ALL, **given)[0][0]
    assert np.array_equal(kept, plain(name, pipe, **given)[0])
    image = np.asarray(edit(name, pipe, HiLo(), **given)[0][0])
    assert np.array_equal(image[outside], np.asarray(make_photo())[outside])


@pytest.mark.parametrize("name", ["Flux2Klein", "Flux2KleinInpaint"])
def test_a_photo_of_any_size_is_cut_or_squeezed_to_whole_tokens(name):
    pipe, photo, mask = (
        FAMILIES[name].make(torch.float32),
        make_photo(231, 250),
        make_mask(231, 250),
    )
    given = {"image": photo, "mask_image": mask, "height": None, "width": None}
    kept = edit(name, pipe, KEEP_ALL, **given)[0]
    assert torch.equal(kept, plain(name, pipe, **given))
    images, run = edit(name, pipe, HiLo(), **given, output_type="pil")
    assert run.plan.grid == (14, 15)
    assert images[0].size == (240, 224)
    if name == "Flux2Klein":  # its middle is cut out
        image, given_photo, given_mask = (
            np.asarray(x) if x.size == (240, 224) else np.asarray(x)[3:227, 5:245]
            for x in (images[0], photo, mask)
        )
        assert np.array_equal(image[given_mask == 0], given_photo[given_mask == 0])


@pytest.mark.parametrize("name", ["Flux2Klein", "BriaFiboEdit"])
def test_an_output_of_another_size_than_the_photo(name):
    """The photo is stretched to it, and the reference, on another grid, stays whole."""
    pipe = FAMILIES[name].make(torch.float32)
    images, run = edit(name, pipe, HiLo(), height=192, width=SIZE, output_type="pil")
    assert images[0].size == (SIZE, 192)
    assert run.plan.grid == (12, 16)
    assert run.sequence == (192 + TOKENS, run.tokens_run + TOKENS)


def test_fibo_takes_its_own_mask_for_both():
    """`mask` also greys the photo that the model is shown, which `mask_image` does not."""
    pipe, outside = FAMILIES["BriaFiboEdit"].make(torch.float32), ~inside(make_mask())
    given = {"mask_image": None, "mask": make_mask(), "output_type": "pil"}
    image, run = edit("BriaFiboEdit", pipe, HiLo(), **given)
    assert np.array_equal(np.asarray(image[0])[outside], np.asarray(make_photo())[outside])
    assert run.sequence == (2 * TOKENS, 2 * run.tokens_run)


def test_fibo_with_latents_folded_two_by_two(monkeypatch):
    monkeypatch.setattr(
        family_longcat,
        "BriaFiboTransformer2DModel",
        lambda **given: BriaFiboTransformer2DModel(**given | {"in_channels": 16}),
    )
    pipe = FAMILIES["BriaFiboEdit"].make(torch.float32)
    expected = plain("BriaFiboEdit", pipe, do_patching=True)
    assert torch.equal(edit("BriaFiboEdit", pipe, KEEP_ALL, do_patching=True)[0], expected)
    _, run = edit("BriaFiboEdit", pipe, HiLo(bucket=1, dilate=0), do_patching=True)
    assert run.plan.grid == (8, 8)
    assert run.counts["coarse"] > 0
