"""Faults that were found from outside, each with the right value."""

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from tiny import arguments, latents, make_mask, make_photo, make_pipe

from hilotoken import HiLo, Refresh, compress
from hilotoken.arguments import read_mask

FEW = HiLo(dilate=1, detail=0.05, bucket=8)
SIDE = 32
MASK = np.zeros((SIDE, SIDE), np.float32)
MASK[8:16, 4:20] = 1


@pytest.mark.parametrize(
    "given",
    [
        MASK, MASK[None], MASK[..., None], MASK[None, ..., None], np.stack([MASK] * 3, -1),
        MASK > 0, (255 * MASK).astype(np.uint8), torch.tensor(MASK), torch.tensor(MASK)[None],
        torch.tensor(MASK)[None, None], torch.tensor(MASK)[..., None], torch.tensor(MASK) > 0,
        [MASK],
    ],
    ids=lambda given: f"{type(given).__name__}{list(np.shape(given))}",
)  # fmt: skip
def test_every_documented_shape_of_a_mask_is_the_same_mask(given):
    assert torch.equal(read_mask(given), torch.tensor(MASK)[None, None])


@pytest.mark.parametrize(
    "shape", [(SIDE, SIDE, 4), (SIDE, SIDE, 2), (1, 2, SIDE, SIDE, 1), (SIDE,)]
)
def test_other_shapes_are_refused_by_name(shape):
    with pytest.raises(ValueError, match=rf"shape \[{shape[0]}"):
        read_mask(np.zeros(shape, np.float32))


def test_a_batch_of_masks_in_one_array_is_a_mask_each():
    other = 1 - MASK
    assert torch.equal(
        read_mask(np.stack([MASK, other]))[:, 0], torch.tensor(np.stack([MASK, other]))
    )


def test_an_edit_by_whole_numbers_is_that_by_floats():
    mask = np.asarray(make_mask())
    ends = [
        latents(compress(make_pipe("inpaint"), FEW), mask_image=given)
        for given in (mask, mask.astype(np.float32) / 255, mask > 127)
    ]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_a_soft_mask_is_blended_by():
    pipe, photo = make_pipe("inpaint"), np.asarray(make_photo(), float)
    pipe.mask_processor.register_to_config(do_binarize=False)
    rows = np.clip((128 - np.hypot(*(np.mgrid[:256, :256] - 128))) / 96, 0, 1)
    given = arguments(mask_image=torch.tensor(rows).float()[None, None], output_type="np")
    edited = 255 * compress(pipe, FEW)(**given).images[0]
    change = abs(edited - photo).mean(-1)
    assert change[rows == 0].max() < 1e-3
    assert 0 < change[(rows > 0.1) & (rows < 0.3)].mean() < change[rows > 0.7].mean()


def test_sigmas_that_end_in_0_make_a_picture():
    given = arguments(sigmas=[*np.linspace(1, 0.01, 3).tolist(), 0.0], num_inference_steps=4)
    end = compress(make_pipe(), FEW)(**given).images
    assert end.isfinite().all()


@pytest.mark.parametrize("store", [None, "bfloat16", "float8"])
def test_a_mask_over_everything_leaves_no_context_to_keep(store):
    fast = compress(make_pipe(), HiLo(bucket=8, refresh=Refresh(2, store=store)))
    assert latents(fast, mask_image=make_mask(box=(0, 0, 256, 256))).isfinite().all()


def test_context_is_kept_in_inference_mode():
    pipe = make_pipe()
    plain = latents(compress(pipe, HiLo(bucket=8, refresh=2)))
    with torch.inference_mode():
        assert torch.equal(latents(compress(pipe, HiLo(bucket=8, refresh=2))), plain)


def test_a_step_cache_of_another_library_is_refused_as_diffusers_own_is():
    pipe = make_pipe()
    pipe.transformer._is_cached = True  # as cache-dit marks it
    with pytest.raises(ValueError, match=r"cache_dit\.disable_cache"):
        latents(compress(pipe, HiLo(bucket=8, refresh=2)))


def test_what_looks_at_a_compressed_pipeline_finds_the_pipeline():
    fast = compress(make_pipe("inpaint"), FEW)
    assert type(AutoPipelineForImage2Image.from_pipe(fast)).__name__ == "FluxImg2ImgPipeline"


@pytest.mark.parametrize("feather", [0, 6])
def test_a_crop_that_is_pasted_back_leaves_the_photo_around_it(feather):
    photo, mask = make_photo(), make_mask()
    given = arguments(output_type="pil", padding_mask_crop=8)
    image = np.asarray(compress(make_pipe("inpaint"), FEW, feather=feather)(**given).images[0])
    outside = np.asarray(mask.convert("L")) == 0
    assert np.array_equal(image[outside], np.asarray(photo)[outside])
