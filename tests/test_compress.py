"""The wrapper around a real pipeline: what it refuses, passes on and records."""

import json

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, FluxPipeline
from tiny import (
    GRID,
    SIZE,
    TOKENS,
    arguments,
    fixed,
    inside,
    latents,
    make_mask,
    make_photo,
    make_pipe,
    prompt,
)

from hilotoken import Dense, HiLo, compress
from hilotoken.methods import CropStitch, Downsample, RandomKeep

SMALL = HiLo(bucket=8)


class Renamed(FluxFillPipeline):
    """A user's own subclass."""


class WithoutNames(FluxFillPipeline):
    """Takes its arguments as the embedded pipeline does."""

    def __call__(self, prompt=None, **arguments):
        return super().__call__(prompt, **arguments)


def test_callbacks_see_and_may_change_whole_latents(pipe):
    seen = []

    def callback(pipe, step, timestep, given):
        seen.append(given["latents"].shape)
        return {"latents": given["latents"] * 0.9}

    plain = latents(pipe, callback_on_step_end=callback)
    keep_all = compress(pipe, HiLo(detail=1.0, coarse=0))
    assert torch.equal(latents(keep_all, callback_on_step_end=callback), plain)
    latents(compress(pipe), callback_on_step_end=callback)
    assert set(seen) == {(1, TOKENS, 16)}


def test_the_users_hooks_on_the_transformer_see_whole_sequences():
    pipe, seen = make_pipe(), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["hidden_states"].shape[1]), with_kwargs=True
    )
    pipe.transformer.register_forward_hook(lambda module, args, out: seen.append(out[0].shape[1]))
    latents(compress(pipe, SMALL))
    assert set(seen) == {TOKENS}


def test_no_dict_gives_a_tuple(pipe):
    fast = compress(pipe)
    with_dict = fast(**arguments(output_type="pil")).images[0]
    (images,) = fast(**arguments(output_type="pil", return_dict=False))
    assert np.array_equal(np.asarray(images[0]), np.asarray(with_dict))


def test_arguments_may_be_positional(pipe):
    given = arguments(output_type="np")
    image, mask = given.pop("image"), given.pop("mask_image")
    by_place = compress(pipe)(None, None, image, mask, **given).images
    assert np.array_equal(by_place, compress(pipe)(**arguments(output_type="np")).images)


@pytest.mark.parametrize("cls", [Renamed, WithoutNames])
def test_subclasses_are_compressed_too(cls):
    pipe = make_pipe(cls=cls)
    fast = compress(pipe, SMALL)
    assert torch.equal(latents(fast), latents(compress(make_pipe(), SMALL)))
    image = fast(**arguments(output_type="pil")).images[0]
    outside = ~inside(make_mask())
    assert np.array_equal(np.asarray(image)[outside], np.asarray(make_photo())[outside])
    with pytest.raises(ValueError, match="image holds values"):
        fast(**arguments(image=torch.full((1, 3, SIZE, SIZE), 2.0)))


def test_attributes_are_the_pipelines():
    pipe = make_pipe()
    fast = compress(pipe, SMALL)
    assert fast.scheduler is pipe.scheduler
    scheduler = make_pipe(shifting=False).scheduler
    fast.scheduler = scheduler
    assert pipe.scheduler is scheduler
    assert fast.to(torch.bfloat16) is fast
    assert pipe.transformer.dtype == torch.bfloat16
    fast.method = Dense()
    assert not hasattr(pipe, "method")
    with pytest.raises(AttributeError):
        fast.nothing_of_that_name  # noqa: B018


def test_last_run_records_the_call(pipe):
    fast = compress(pipe, SMALL)
    assert fast.last_run is None
    latents(fast, num_inference_steps=4)
    first = fast.last_run
    assert (first.steps, first.tokens_full, first.method) == (4, TOKENS, SMALL)
    assert first.plan.grid == GRID
    assert first.tokens_run == first.plan.tokens_run < TOKENS
    assert first.keep_ratio == first.tokens_run / TOKENS
    parts = first.plan_seconds, first.dit_seconds, first.vae_seconds, first.rest_seconds
    assert min(parts) > 0
    assert first.dit_seconds + first.vae_seconds + first.plan_seconds <= first.total_seconds
    fast(**arguments(output_type="pil"))
    assert fast.last_run.vae_seconds > 0
    assert fast.last_run is not first


def test_dense_is_measured_in_the_same_way(pipe):
    fast = compress(pipe, Dense())
    assert torch.equal(latents(fast), latents(pipe))
    assert (fast.last_run.keep_ratio, fast.last_run.steps) == (1, 3)
    assert fast.last_run.dit_seconds > 0


def test_two_wrappers_on_one_pipeline_never_meet(pipe):
    one, two = compress(pipe, SMALL), compress(pipe, HiLo(dilate=0, detail=0, coarse=0, bucket=8))
    alone = latents(compress(make_pipe(), SMALL))
    first = latents(one)
    latents(two)
    assert two.last_run.tokens_run < one.last_run.tokens_run
    assert torch.equal(latents(one), first)
    assert torch.equal(first, alone)


def test_a_nested_call_is_refused_and_harms_nothing(pipe):
    fast = compress(pipe, SMALL)
    alone = latents(fast)

    def callback(pipe, step, timestep, given):
        with pytest.raises(RuntimeError, match="compressed call already"):
            latents(compress(pipe, SMALL))
        return {}

    assert torch.equal(latents(fast, callback_on_step_end=callback), alone)


def test_what_cannot_be_compressed_is_refused():
    pipe = make_pipe()
    with pytest.raises(TypeError, match="compressed already"):
        compress(compress(pipe))
    with pytest.raises(TypeError, match=r"FluxPipeline .*supported: .*FluxFillPipeline"):
        compress(FluxPipeline(**pipe.components))
    with pytest.raises(TypeError, match=r"str has no transformer; supported: .*FluxFillPipeline"):
        compress("black-forest-labs/FLUX.1-Fill-dev")
    pipe.transformer = pipe.vae
    with pytest.raises(TypeError, match=r"FluxFillPipeline with AutoencoderKL .*supported: "):
        compress(pipe)


@pytest.mark.parametrize("name", ["image", "mask_image"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 255.0, -2.0])
@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
def test_bad_pixels_are_refused(pipe, name, value, kind):
    bad = torch.full((1, 3 if name == "image" else 1, SIZE, SIZE), 0.5)
    bad[..., 3, 5] = value
    bad = {"tensor": bad, "array": bad.permute(0, 2, 3, 1).numpy(), "list": [bad[0]]}[kind]
    with pytest.raises(ValueError, match=rf"^{name} holds values .*\[0, 1\]"):
        compress(pipe)(**arguments(**{name: bad}))


@pytest.mark.filterwarnings("ignore:Passing .image.:FutureWarning")
def test_a_mask_below_zero_is_refused_though_a_photo_may_go_down_to_minus_one(pipe):
    signed = 2 * torch.rand(1, 3, SIZE, SIZE) - 1
    compress(pipe)(**arguments(image=signed))
    with pytest.raises(ValueError, match=r"^mask_image holds values from -0.5"):
        compress(pipe)(**arguments(mask_image=torch.full((1, 1, SIZE, SIZE), -0.5)))


def test_eight_bit_arrays_are_refused_rather_than_burnt(pipe):
    with pytest.raises(ValueError, match="image holds values from 0 to"):
        compress(pipe)(**arguments(image=np.asarray(make_photo())))


def test_an_attention_mask_of_the_users_is_shortened_with_the_keys(pipe):
    seen_S = torch.ones(1, 1, 1, 6 + TOKENS, dtype=torch.bool)
    seen_S[..., 6 + 100 : 6 + 180] = False
    mask = {"joint_attention_kwargs": {"attention_mask": seen_S}}
    keep_K = torch.cat([torch.arange(90), torch.arange(190, TOKENS)])
    short = latents(compress(pipe, fixed(keep_K)), **mask)
    assert torch.equal(short, latents(compress(pipe, fixed(keep_K))))  # none of those ran
    every = compress(pipe, HiLo(detail=1.0, coarse=0))
    assert torch.equal(latents(every, **mask), latents(pipe, **mask))
    assert not torch.equal(latents(every, **mask), latents(pipe))


def test_wrong_arguments_are_refused(pipe):
    for feather in (-1, 0.5, "1", None, True):
        with pytest.raises(ValueError, match="feather must be a whole number of 0 or more"):
            compress(pipe, feather=feather)
    with pytest.raises(ValueError, match="match must be True or False, got 1"):
        compress(pipe, match=1)
    with pytest.raises(TypeError, match="HiLo with int inside"):
        compress(pipe, inside=0)


def test_photos_of_a_batch_are_each_composited_under_their_own_mask(pipe):
    masks = [make_mask(), make_mask(box=(0, 200, 40, 256))]
    photos = [make_photo(), make_photo(seed=1)]
    given = arguments(image=photos, mask_image=masks, output_type="pil", **prompt(2))
    fast = compress(pipe, SMALL)
    for image, photo, mask in zip(fast(**given).images, photos, masks, strict=True):
        changed = (np.asarray(image) != np.asarray(photo)).any(-1)
        assert not changed[~inside(mask)].any()
        assert changed[inside(mask)].mean() > 0.9
    run = fast.last_run
    edited = [plan.edit_N.view(GRID) for plan in run.plans]
    assert [bool(tokens[7, 7]) for tokens in edited] == [True, False]  # a plan for each mask
    assert [bool(tokens[14, 1]) for tokens in edited] == [False, True]
    assert run.plan is run.plans[0]
    assert run.tokens_run == round(sum(plan.tokens_run for plan in run.plans) / 2)
    assert run.as_dict()["plans"] == [plan.counts for plan in run.plans]


def offload_model(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def offload_groups(pipe):
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_model, offload_groups])
@pytest.mark.parametrize("positions", ["interpolated", "aligned"])
def test_offloading_changes_nothing_however_often_called(offload, positions):
    pipe, method = make_pipe(), HiLo(bucket=8, positions=positions)
    expected, plain = latents(compress(pipe, method)), latents(pipe)
    offload(pipe)
    fast = compress(pipe, method)
    for _ in range(2):
        assert torch.equal(latents(fast), expected)
        assert fast.last_run.tokens_run < TOKENS
    assert torch.equal(latents(pipe), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "method",
    [
        SMALL,
        HiLo(context="sampled", bucket=8),
        HiLo(score="random", bucket=8, refresh=2),
        HiLo(score="dct", bucket=8),
        RandomKeep(bucket=8),
        Downsample(),
        CropStitch(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_another_default_dtype_changes_nothing(dtype, method):
    pipe, given = make_pipe(), arguments(output_type="np")
    plain = compress(pipe, method)(**given).images
    given, before = arguments(output_type="np"), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        changed = compress(pipe, method)(**given).images
    finally:
        torch.set_default_dtype(before)
    assert np.abs(changed - plain).max() <= 1e-2  # schedulers and rotary tables round by it


def test_a_record_reads_as_a_line_and_as_json(pipe):
    fast = compress(pipe, HiLo(dilate=0, bucket=8))
    assert repr(fast) == "<FluxFillPipeline compressed by HiLo(dilate=0, bucket=8)>"
    fast(**arguments())
    run = fast.last_run
    assert run is not None
    said = (
        f"HiLo(dilate=0, bucket=8): {run.tokens_run} of 256 tokens a step ({run.keep_ratio:.0%}); "
    )
    assert str(run).startswith(f"{said}3 steps; DiT ")
    assert repr(run) == f"<Run {run}>"
    told = json.loads(json.dumps(run.as_dict()))
    assert told == run.as_dict()
    assert told["method"]["options"]["bucket"] == 8
    for name in ("tokens_run", "keep_ratio", "dit_seconds", "rest_seconds", "total_seconds"):
        assert told[name] == getattr(run, name)
