"""The controls: the photo's own pixels outside the mask, and what each says it does."""

import family_flux
import family_qwen
import family_sd3
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import (
    GRID,
    SIZE,
    TOKENS,
    arguments,
    inside,
    latents,
    make_mask,
    make_photo,
    make_pipe,
    prompt,
)

from hilotoken import Dense, HiLo, compress, plan_tokens
from hilotoken.methods import CropStitch, Downsample, FewerSteps, RandomKeep

FAMILIES = {
    "StableDiffusion3InpaintPipeline": family_sd3,
    "QwenImageInpaintPipeline": family_qwen,
    "FluxKontextInpaintPipeline": family_flux,
}
MASKS = {"middle": (70, 90, 150, 160), "corner": (0, 200, 40, 256), "point": (128, 128, 129, 129)}
CONTROLS = [
    RandomKeep(bucket=8),
    FewerSteps(),
    Downsample(),
    Downsample(factor=3),
    CropStitch(),
    CropStitch(margin=0),
]


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("kind", ["kl", "inpaint"])
def test_pixels_outside_the_mask_are_the_photos_in_every_form(control, kind):
    pipe = make_pipe(kind)
    plain = latents(pipe)
    for name, box in MASKS.items():
        mask = make_mask(box=box)
        fast = compress(pipe, control)
        image = np.asarray(fast(**arguments(mask_image=mask, output_type="pil")).images[0])
        assert np.array_equal(image[~inside(mask)], np.asarray(make_photo())[~inside(mask)]), name
        assert (image[inside(mask)] != np.asarray(make_photo())[inside(mask)]).mean() > 0.5
    for output_type in ("np", "pt"):
        image = fast(**arguments(mask_image=mask, output_type=output_type)).images[0]
        image = image if output_type == "np" else image.permute(1, 2, 0).numpy()
        photo = np.asarray(make_photo(), np.float32) / 255
        assert np.array_equal(image[~inside(mask)], photo[~inside(mask)])
    assert torch.equal(latents(pipe), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_they_work_on_other_pipelines_with_a_mask(name):
    pipe = FAMILIES[name].make(name)
    for control in (RandomKeep(bucket=8), FewerSteps(), Downsample(), CropStitch()):
        fast, given = compress(pipe, control), FAMILIES[name].arguments(name, output_type="pil")
        image, mask = np.asarray(fast(**given).images[0]), inside(make_mask())
        assert np.array_equal(image[~mask], np.asarray(make_photo())[~mask]), control
        assert (image[mask] != np.asarray(make_photo())[mask]).mean() > 0.5
        whole = isinstance(control, FewerSteps)
        assert (fast.last_run.tokens_run == TOKENS) is whole
        assert fast.last_run.steps == (2 if whole else 3)


def test_where_the_mask_is_our_own_steps_can_be_fewer_but_sizes_stay():
    name = "FluxKontextPipeline"
    pipe = family_flux.make(name)
    given = family_flux.arguments(name, output_type="pil")
    image, mask = compress(pipe, FewerSteps())(**given).images[0], inside(make_mask())
    assert np.array_equal(np.asarray(image)[~mask], np.asarray(make_photo())[~mask])
    for control in (Downsample(), CropStitch()):
        with pytest.raises(ValueError, match="needs a pipeline that takes mask_image"):
            compress(pipe, control)(**given)


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
def test_each_photo_of_a_batch_keeps_its_own(control):
    pipe = make_pipe()
    masks = [make_mask(), make_mask(box=(0, 200, 40, 256))]
    photos = [make_photo(), make_photo(seed=1)]
    fast = compress(pipe, control)
    given = arguments(image=photos, mask_image=masks, output_type="pil", **prompt(2))
    (images,) = fast(**given, return_dict=False)
    for image, photo, mask in zip(images, photos, masks, strict=True):
        changed = (np.asarray(image) != np.asarray(photo)).any(-1)
        assert not changed[~inside(mask)].any()
        assert changed[inside(mask)].mean() > 0.5
    given = arguments(num_images_per_prompt=2, output_type="pil")
    assert len(fast(**given).images) == 2


@pytest.mark.parametrize(
    "control", [FewerSteps(share=1.0), Downsample(factor=1), CropStitch(margin=16)]
)
def test_a_control_of_the_whole_is_the_dense_edit(control):
    pipe, mask = make_pipe(), inside(make_mask())
    dense = compress(pipe, Dense())(**arguments(output_type="pil")).images[0]
    image = compress(pipe, control)(**arguments(output_type="pil")).images[0]
    gap = np.asarray(image)[mask].astype(int) - np.asarray(dense)[mask]
    assert np.abs(gap).max() <= 1  # a photo in eight bits goes through floats and back


def test_random_runs_as_many_tokens_as_hilo_the_edited_ones_among_them():
    photo, mask = torch.rand(1, 3, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 90:160, 70:150] = 1
    for options in ({}, {"detail": 0.3, "bucket": 1}, {"coarse": 2, "dilate": 0}, {"detail": 1.0}):
        like = plan_tokens(photo, mask, grid=GRID, method=HiLo(**options))
        plan = plan_tokens(photo, mask, grid=GRID, method=RandomKeep(**options))
        assert plan.tokens_run == like.tokens_run == len(plan.keep_K)
        assert (plan.keep_K.diff() > 0).all()
        assert set(like.edit_N.nonzero().flatten().tolist()) <= set(plan.keep_K.tolist())
    plans = [
        plan_tokens(photo, mask, grid=GRID, method=RandomKeep(seed=s)).keep_K for s in (0, 0, 1)
    ]
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


@pytest.mark.parametrize(("share", "steps"), [(0.5, 5), (0.24, 2), (0.0, 1), (1.0, 10)])
def test_fewer_steps_are_a_share_of_those_asked_for(share, steps):
    fast = compress(make_pipe(), FewerSteps(share=share))
    fewer = latents(fast, num_inference_steps=10)
    assert fast.last_run.steps == steps
    assert torch.equal(fewer, latents(make_pipe(), num_inference_steps=steps))
    with pytest.raises(ValueError, match="give that"):
        latents(fast, num_inference_steps=None)
    with pytest.raises(ValueError, match="leave out sigmas"):
        latents(fast, sigmas=[1.0, 0.5])


def test_downsampled_is_the_small_edit_enlarged():
    pipe, mask = make_pipe(), inside(make_mask())
    fast = compress(pipe, Downsample())
    image = fast(**arguments(output_type="pt")).images[0]
    run = fast.last_run
    assert (run.tokens_full, run.tokens_run, run.plan.grid) == (TOKENS, TOKENS // 4, GRID)
    assert run.sequence == (TOKENS, TOKENS // 4)
    photo = torch.from_numpy(np.array(make_photo())).permute(2, 0, 1)[None] / 255
    small = F.interpolate(photo, (128, 128), mode="bicubic", antialias=True).clamp(0, 1)
    white = torch.from_numpy(mask)[None, None].float()
    edited = pipe(
        **arguments(
            image=small, mask_image=F.adaptive_max_pool2d(white, (128, 128)), height=128,
            width=128, output_type="pt",
        )
    ).images  # fmt: skip
    # Outside the mask the small edit holds the photo too: only the enlarged inside is compared.
    deep = np.pad(mask, 8)[16:, 16:] & np.pad(mask, 8)[:-16, :-16]
    large = F.interpolate(edited, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)[0]
    assert torch.allclose(image[:, deep], large[:, deep], atol=1e-4)


@pytest.mark.parametrize(("name", "box"), MASKS.items())
@pytest.mark.parametrize("margin", [0, 2])
def test_the_crop_is_the_masks_box_in_tokens_with_its_margin(name, box, margin):
    pipe = make_pipe()
    fast = compress(pipe, CropStitch(margin=margin))
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["hidden_states"].shape[1]), with_kwargs=True
    )
    fast(**arguments(mask_image=make_mask(box=box), output_type="pil"))
    handle.remove()
    left, top, right, bottom = box
    columns = range(max(0, left // 16 - margin), min(16, (right - 1) // 16 + 1 + margin))
    rows = range(max(0, top // 16 - margin), min(16, (bottom - 1) // 16 + 1 + margin))
    expected = [row * 16 + column for row in rows for column in columns]
    assert fast.last_run.plan.keep_K.tolist() == expected
    assert set(seen) == {len(expected)} == {fast.last_run.tokens_run}


def test_a_mask_with_nothing_in_it_is_refused():
    mask = make_mask(box=(0, 0, 0, 0))
    for method in (HiLo(), Dense(), CropStitch(), Downsample()):
        with pytest.raises(ValueError, match="nothing in it"):
            compress(make_pipe(), method)(**arguments(mask_image=mask, output_type="pil"))


@pytest.mark.parametrize("control", [Downsample(), CropStitch()])
def test_what_a_change_of_size_cannot_go_with_is_refused(control):
    fast = compress(make_pipe("inpaint"), control)
    with pytest.raises(ValueError, match="leave out latents"):
        fast(**arguments(output_type="pil", latents=torch.randn(1, TOKENS, 16)))
    with pytest.raises(ValueError, match="leave out padding_mask_crop"):
        fast(**arguments(output_type="pil", padding_mask_crop=8))
    with pytest.raises(ValueError, match="'latent' has none"):
        fast(**arguments())
    with pytest.raises(ValueError, match="takes mask_image"):
        fast(**arguments(output_type="pil", mask_image=None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FewerSteps(share=1.5), r"share is a share and must lie in \[0, 1\], got 1.5"),
        (lambda: Downsample(factor=0), "factor must be a whole number of 1 or more"),
        (lambda: CropStitch(margin=-1), "margin must be a whole number of 0 or more"),
        (lambda: RandomKeep(detail=2), r"detail is a share and must lie in \[0, 1\]"),
        (lambda: RandomKeep(seed=0.5), "seed must be a whole number"),
    ],
)
def test_bad_options_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()
