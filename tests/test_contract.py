"""What must always hold (the table of the design), on real pipelines with tiny random weights."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, FluxFillPipeline
from PIL import Image
from tiny import (
    GRID,
    SIZE,
    TEXT,
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
from torch import Tensor, nn

from hilotoken import Dense, HiLo, compress
from hilotoken.methods.hilo import COARSE_CELLS
from hilotoken.plan import POSITIONS

KEEP_ALL = HiLo(detail=1.0, coarse=0)
FEW = HiLo(dilate=1, detail=0.05, coarse=0, bucket=8)
DTYPES = [torch.float32, torch.bfloat16]
KINDS = [
    ("kl", torch.float32), ("tiny", torch.float32), ("inpaint", torch.float32),
    ("kl", torch.bfloat16), ("inpaint", torch.bfloat16),
]  # fmt: skip

# Every way of calling that the pipeline offers and that the wrapper could get wrong.
CALLS = {
    "plain": lambda: arguments(),
    "unseeded": lambda: arguments(generator=None),
    "two images": lambda: arguments(num_images_per_prompt=2),
    "generators": lambda: arguments(
        num_images_per_prompt=2, generator=[torch.Generator().manual_seed(i) for i in (7, 8)]
    ),
    "strength": lambda: arguments(strength=0.6, num_inference_steps=5),
    "one last step": lambda: arguments(strength=0.25, num_inference_steps=4),
    "sigmas": lambda: arguments(sigmas=[1.0, 0.8, 0.1]),
    "latents": lambda: arguments(latents=torch.randn(1, TOKENS, 16)),
    "tensors": lambda: arguments(
        image=torch.rand(3, SIZE, SIZE), mask_image=torch.eye(SIZE)[None, None]
    ),
    "arrays": lambda: arguments(
        image=np.random.default_rng(0).random((SIZE, SIZE, 3), np.float32),
        mask_image=np.eye(SIZE, dtype=np.float32),
    ),
    "two photos": lambda: arguments(
        image=[make_photo(), make_photo(seed=1)],
        mask_image=[make_mask(), make_mask(box=(0, 200, 40, 256))],
        **prompt(2),
    ),
    "two tensors": lambda: arguments(
        image=torch.rand(2, 3, SIZE, SIZE),
        mask_image=torch.stack([torch.eye(SIZE), torch.eye(SIZE).flip(0)])[:, None],
        **prompt(2),
    ),
    "two photos, one mask": lambda: arguments(
        image=[make_photo(), make_photo(seed=1)], **prompt(2)
    ),
    "one photo, two masks": lambda: arguments(
        mask_image=[make_mask(), make_mask(box=(0, 200, 40, 256))], **prompt(2)
    ),
    "two photos, four prompts": lambda: arguments(
        image=[make_photo(), make_photo(seed=1)],
        mask_image=[make_mask(), make_mask(box=(0, 200, 40, 256))],
        **prompt(4),
    ),
    "photo of another size": lambda: arguments(image=make_photo(300, 200)),
    "rounded size": lambda: arguments(
        image=make_photo(231, 250), mask_image=make_mask(231, 250), height=231, width=250
    ),
}  # fmt: skip


@pytest.fixture(params=CALLS)
def call(request):
    """Makes the arguments of one way of calling, the same each time."""

    def make(dtype: torch.dtype = torch.float32, **changes):
        torch.manual_seed(3)
        made = CALLS[request.param]() | changes
        cast = ("prompt_embeds", "pooled_prompt_embeds", "latents")
        return made | {k: v.to(dtype) for k, v in made.items() if k in cast}

    return make


def source_latents(pipe, given: dict) -> Tensor:
    """The pipeline's own source latents, packed: the first thing its generator is used for."""
    height, width = given["height"], given["width"]
    photo = pipe.image_processor.preprocess(given["image"], height=height, width=width)
    # With the user's own latents Fill encodes nothing; the wrapper does, by its own seed.
    unencoded = "latents" in given and isinstance(pipe, FluxFillPipeline)
    generator = torch.Generator().manual_seed(0) if unencoded else given["generator"]
    x0 = pipe._encode_vae_image(image=photo.to(pipe.dtype), generator=generator)
    return pipe._pack_latents(x0, *x0.shape)


SCHEDULERS = {
    "stochastic": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "karras": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    "terminal": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
    "consistency": FlowMatchLCMScheduler(),
}


def worst(left: Tensor, right: Tensor) -> float:
    return (left.float() - right.float()).abs().max().item()


def test_the_tiny_pipeline_listens(any_pipe):
    """Else nothing here could fail."""
    plain = latents(any_pipe)
    assert plain.std() > 0.5
    for change in (
        {"image": make_photo(seed=5)},
        {"mask_image": make_mask(box=(0, 0, 60, 60))},
        {"prompt_embeds": -prompt()["prompt_embeds"]},
        {"pooled_prompt_embeds": -prompt()["pooled_prompt_embeds"]},
        {"guidance_scale": 1.0},
    ):
        assert worst(latents(any_pipe, **change), plain) > 1e-2
    with_nothing = any_pipe.transformer.pos_embed.register_forward_pre_hook(
        lambda _, a: (0 * a[0],)
    )
    assert worst(latents(any_pipe), plain) > 1e-2  # places count
    with_nothing.remove()


@pytest.mark.parametrize(("vae", "dtype"), KINDS)
def test_keeping_every_token_equals_the_untouched_pipeline(call, vae, dtype):
    pipe = make_pipe(vae, dtype)
    plain = pipe(**call(dtype)).images
    fast = compress(pipe, KEEP_ALL)
    assert torch.equal(fast(**call(dtype)).images, plain)
    assert fast.last_run.keep_ratio == 1


@pytest.mark.parametrize("shifting", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_of_all_tokens_equals_it(seed, shifting):
    pipe = make_pipe(shifting=shifting)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed))
    assert worst(latents(compress(pipe, fixed(order))), latents(pipe)) <= 2e-6


@pytest.mark.parametrize("any_pipe", ["kl", "tiny"], indirect=True)  # Inpaint blends it away
@pytest.mark.parametrize("kept", [1, 40, 200])
def test_dropping_tokens_equals_a_key_mask_on_them(any_pipe, kept):
    """In one call of the transformer, which one step is."""
    keep_K = torch.randperm(TOKENS)[:kept].sort().values
    seen_S = torch.zeros(TEXT + TOKENS, dtype=torch.bool)
    seen_S[:TEXT] = seen_S[TEXT + keep_K] = True
    mask = {"attention_mask": seen_S[None, None, None]}
    masked = latents(any_pipe, num_inference_steps=1, joint_attention_kwargs=mask)
    short = latents(compress(any_pipe, fixed(keep_K)), num_inference_steps=1)
    # The mask takes another kernel: rounding of values as large as 5.
    assert worst(short[:, keep_K], masked[:, keep_K]) <= 1e-6 * masked.abs().max()
    if kept < 100:
        dense = latents(any_pipe, num_inference_steps=1)
        assert worst(short[:, keep_K], dense[:, keep_K]) > 1e-4  # the others were seen there


@pytest.mark.parametrize(("vae", "dtype"), KINDS)
def test_a_dropped_token_ends_on_the_source(call, vae, dtype):
    pipe = make_pipe(vae, dtype)
    fast, steps = compress(pipe, FEW), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: steps.append(given["hidden_states"][..., :16]), with_kwargs=True
    )
    ends = fast(**call(dtype)).images
    dropped_N = torch.ones(fast.last_run.tokens_full, dtype=torch.bool)
    dropped_N[fast.last_run.plan.keep_K] = False
    assert dropped_N.sum() > 60
    x0 = source_latents(pipe, call(dtype))
    x0 = x0.repeat(len(ends) // len(x0), 1, 1)
    before, x0, ends = (x[:, dropped_N].float() for x in (steps[-1], x0, ends))
    if dtype is torch.float32:
        assert worst(ends, x0) <= 1e-6
    else:  # the scheduler rounds dt, dt * v and the sum, and v was rounded: half a unit each
        size = 3 * (before - x0).abs() + x0.abs()
        assert ((ends - x0).abs() <= 1.02 * torch.finfo(dtype).eps / 2 * size).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_of_flow_matching_keeps_the_contract(pipe, name):
    pipe.scheduler = SCHEDULERS[name]

    def seeded(run):
        torch.manual_seed(0)  # some schedulers draw noise from the global generator
        return latents(run)

    assert torch.equal(seeded(compress(pipe, KEEP_ALL)), seeded(pipe))
    fast = compress(pipe, FEW)
    ends, x0 = seeded(fast), source_latents(pipe, arguments())
    dropped_N = torch.ones(TOKENS, dtype=torch.bool)
    dropped_N[fast.last_run.plan.keep_K] = False
    assert worst(ends[:, dropped_N], x0[:, dropped_N]) <= 1e-6


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_pixels_outside_the_mask_are_the_photos(pipe, call, output_type):
    given = call(output_type=output_type)
    images = compress(pipe)(**given).images
    size = {"height": given["height"], "width": given["width"]}
    photos = pipe.image_processor.preprocess(given["image"], **size)
    photos = pipe.image_processor.postprocess(photos, output_type=output_type)
    masks = pipe.mask_processor.preprocess(given["mask_image"], **size)[:, 0].numpy() > 0
    plain = pipe(**call(output_type=output_type)).images
    assert type(images) is type(plain)
    assert len(images) == len(plain)
    for i, (image, dense) in enumerate(zip(images, plain, strict=True)):
        photo, mask = photos[i % len(photos)], masks[i % len(masks)]
        if not isinstance(image, Image.Image):
            assert image.dtype == dense.dtype
        image, dense, photo = (
            x.permute(1, 2, 0).numpy() if isinstance(x, Tensor) else np.asarray(x)
            for x in (image, dense, photo)
        )
        if output_type == "pil":
            assert np.array_equal(image[~mask], photo[~mask])
        else:  # the pipeline's photo went to [-1, 1] and back
            assert np.abs(image[~mask] - photo[~mask]).max() < 1e-6
        assert (image[mask] != photo[mask]).mean() > 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_a_tensor_or_picture_are_kept_to_the_bit(dtype):
    pipe, outside = make_pipe(dtype=dtype), ~inside(make_mask())
    photo = torch.rand(3, SIZE, SIZE).to(dtype)
    given = arguments(**prompt(dtype=dtype), image=photo, output_type="pt")
    image = compress(pipe)(**given).images[0]
    assert image.dtype == dtype
    assert torch.equal(image[:, outside], photo[:, outside])
    given = arguments(**prompt(dtype=dtype), output_type="np")
    image = compress(pipe)(**given).images[0]
    assert np.array_equal(image[outside], np.asarray(make_photo(), np.float32)[outside] / 255)


def test_dense_is_the_untouched_pipeline_inside_the_mask(any_pipe):
    mask = inside(make_mask())
    plain = any_pipe(**arguments(output_type="np")).images[0]
    image = compress(any_pipe, Dense())(**arguments(output_type="np")).images[0]
    assert np.array_equal(image[mask], plain[mask])


def test_the_feather_stays_inside_the_mask(pipe):
    mask, photo = inside(make_mask()), np.asarray(make_photo())
    hard = np.asarray(compress(pipe)(**arguments(output_type="pil")).images[0])
    soft = np.asarray(compress(pipe, feather=8)(**arguments(output_type="pil")).images[0])
    assert np.array_equal(soft[~mask], photo[~mask])
    assert np.array_equal(soft[105:145, 85:135], hard[105:145, 85:135])  # 15 pixels in
    edge = mask & ~np.pad(mask, 1)[2:, 1:-1]
    near, far = (np.abs(x[edge].astype(float) - photo[edge]).mean() for x in (soft, hard))
    assert 0 < near < far / 4


def state(pipe) -> dict:
    """Everything that a call could leave on the pipeline and its modules."""
    found = {"pipe": set(vars(pipe))}
    for part, model in pipe.components.items():
        for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
            hooks = {k: list(v) for k, v in _dicts(module) if "hooks" in k and v}
            found[f"{part}.{name}"] = set(vars(module)), hooks, module.forward
    return found


def _dicts(module: nn.Module) -> list:
    """Transformers' models have flags of such names besides."""
    return [(k, v) for k, v in vars(module).items() if isinstance(v, dict)]


class Stop(Exception):
    pass


def stop(*_, **__):
    raise Stop


def stop_third():
    calls = []

    def hook(*_, **__):
        calls.append(None)
        if len(calls) == 3:
            raise Stop

    return hook


def stop_step(pipe, step, timestep, given):
    if step == 2:
        raise Stop
    return given


class Unplannable(HiLo):
    def plan(self, photo_B3HW, mask_B1HW, grid):
        raise Stop


@pytest.mark.parametrize("place", ["none", "plan", "callback", "block", "decoder"])
@pytest.mark.parametrize("positions", ["interpolated", "aligned"])
def test_the_pipeline_afterwards_equals_the_pipeline_before(any_pipe, place, positions):
    plain, before = latents(any_pipe), state(any_pipe)
    block = any_pipe.transformer.single_transformer_blocks[0]
    handles = {
        "block": lambda: [block.register_forward_hook(stop_third())],
        "decoder": lambda: [any_pipe.vae.decoder.register_forward_hook(stop)],
    }.get(place, list)()
    options = {"positions": positions, "weights": True}
    method = Unplannable(**options) if place == "plan" else HiLo(**options)
    given = arguments(output_type="pil", num_inference_steps=4)
    if place == "callback":
        given["callback_on_step_end"] = stop_step
    fast = compress(any_pipe, method)
    if place == "none":
        fast(**given)
    else:
        with pytest.raises(Stop):
            fast(**given)
        assert fast.last_run is None
    for handle in handles:
        handle.remove()
    assert state(any_pipe) == before
    assert torch.equal(latents(any_pipe), plain)


@pytest.mark.parametrize("method", [HiLo(), HiLo(context="sampled", seed=3), HiLo(score="random")])
def test_same_seed_same_result(any_pipe, method):
    fast = compress(any_pipe, method)
    first, other = latents(fast), latents(fast, generator=torch.Generator().manual_seed(8))
    assert torch.equal(latents(fast), first)
    assert not torch.equal(other, first)


def test_the_generators_end_where_the_plain_pipeline_leaves_them(pipe, call):
    def after(run):
        given = call()
        run(**given)
        users = given["generator"]
        users = users if isinstance(users, list) else [users] if users else []
        return [torch.get_rng_state(), *(user.get_state() for user in users)]

    plain, fast = (
        after(pipe),
        after(compress(pipe, HiLo(score="random", context="sampled"))),
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, fast, strict=True))
    coarse = after(compress(pipe))
    assert all(torch.equal(a, b) for a, b in zip(plain, coarse, strict=True))


@pytest.mark.parametrize("cells", COARSE_CELLS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_kind_of_coarse_token_keeps_the_contract(any_pipe, positions, cells):
    """Dropped tokens land on the source; nothing is the same as without coarse tokens."""
    options = {"dilate": 1, "detail": 0.05, "bucket": 1}
    method = HiLo(positions=positions, coarse_cells=cells, **options)
    fast = compress(any_pipe, method)
    ends, plan = latents(fast), fast.last_run.plan
    assert plan.counts["coarse"] > 4
    dropped_N = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, plan.keep_K, False)
    assert worst(ends[:, dropped_N], source_latents(any_pipe, arguments())[:, dropped_N]) <= 1e-6
    without = latents(compress(any_pipe, HiLo(coarse=0, **options)))
    assert worst(ends[:, plan.keep_K], without[:, plan.keep_K]) > 1e-4
    assert plan.grid == GRID
