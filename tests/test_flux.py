"""FLUX beyond the contract of `test_contract.py`: schedulers, pixels, weights, coarse tokens."""

import numpy as np
import pytest
import torch
from contract import FEW, KEEP_ALL, Edit, Stop, dropped, edits, worst
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from families import BY_NAME, calls_of
from PIL import Image
from tiny import (
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
from torch import Tensor

from hilotoken import Dense, HiLo, compress
from hilotoken.adapters.coarse import Coarse
from hilotoken.plan import POSITIONS, TokenPlan, token_positions

CHANNELS = 16  # of x_t, in a token
FILL = BY_NAME["FluxFillPipeline"]
FILLS = [FILL, BY_NAME["FluxFillPipeline, AutoencoderTiny"]]
SCHEDULERS = {
    "unshifted": FlowMatchEulerDiscreteScheduler(),
    "stochastic": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "karras": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    "terminal": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
    "consistency": FlowMatchLCMScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_of_flow_matching_keeps_the_contract(name):
    pipe = make_pipe()
    pipe.scheduler = SCHEDULERS[name]

    def seeded(run):
        torch.manual_seed(0)  # some schedulers draw noise from the global generator
        return latents(run)

    assert torch.equal(seeded(compress(pipe, KEEP_ALL)), seeded(pipe))
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    assert worst(seeded(compress(pipe, fixed(order))), seeded(pipe)) <= 2e-6
    fast = compress(pipe, FEW)
    ends, x0 = seeded(fast), Edit(FILL).source()
    dropped_N = dropped(fast.last_run)
    assert worst(ends[:, dropped_N], x0[:, dropped_N]) <= 1e-6


@pytest.mark.parametrize("kept", [1, 40, 200])
@edits([(family, "plain", torch.float32) for family in FILLS])  # Inpaint blends it away
def test_dropping_tokens_equals_the_pipelines_own_key_mask(edit, kept):
    """In one call of the transformer, which one step is; by no code of ours."""
    keep_K = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(kept))[:kept]
    keep_K = keep_K.sort().values
    seen_S = torch.zeros(TEXT + TOKENS, dtype=torch.bool)
    seen_S[:TEXT] = seen_S[TEXT + keep_K] = True
    mask = {"attention_mask": seen_S[None, None, None]}
    masked = latents(edit.pipe, num_inference_steps=1, joint_attention_kwargs=mask)
    short = latents(compress(edit.pipe, fixed(keep_K)), num_inference_steps=1)
    # The mask takes another kernel: rounding of values as large as 5.
    assert worst(short[:, keep_K], masked[:, keep_K]) <= 1e-6 * masked.abs().max()


def test_an_exception_in_a_callback_leaves_the_pipeline_as_it_was(any_pipe):
    def broken(pipe, step, timestep, given):
        if step == 2:
            raise Stop
        return given

    plain = latents(any_pipe)
    fast = compress(any_pipe, HiLo(weights=True))
    with pytest.raises(Stop):
        latents(fast, num_inference_steps=4, callback_on_step_end=broken)
    assert fast.last_run is None
    assert torch.equal(latents(any_pipe), plain)


# Pixels.


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@edits([(FILL, call, torch.float32) for call in calls_of(FILL)])
def test_pixels_outside_the_mask_are_the_photos_however_called(edit, output_type):
    pipe, given = edit.pipe, edit.arguments(output_type=output_type)
    images = compress(pipe)(**given).images
    size = {"height": given["height"], "width": given["width"]}
    photos = pipe.image_processor.preprocess(given["image"], **size)
    photos = pipe.image_processor.postprocess(photos, output_type=output_type)
    masks = pipe.mask_processor.preprocess(given["mask_image"], **size)[:, 0].numpy() > 0
    plain = pipe(**edit.arguments(output_type=output_type)).images
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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


# Weights and coarse tokens, as the transformer sees them.


def short_sequences(pipe, method, **changes) -> tuple[Tensor, Tensor, TokenPlan]:
    """What the transformer's layers got at each step, [steps, B, S, D], and where; the plan."""
    seen, places = [], []
    model = pipe.transformer
    hooks = [
        model.x_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        model.pos_embed.register_forward_pre_hook(lambda module, args: places.append(args[0])),
    ]
    fast = compress(pipe, method)
    latents(fast, **changes)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen), places[0], fast.last_run.plan


def coarse(hidden: Tensor, plan) -> Tensor:
    return hidden[..., len(plan.keep_K) :, :]


def test_weights_of_one_change_nothing(any_pipe):
    keep_K = torch.randperm(TOKENS)[:90]
    weighted = latents(compress(any_pipe, fixed(keep_K, torch.ones(90), weighted=True)))
    plain = latents(compress(any_pipe, fixed(keep_K)))
    assert (weighted - plain).abs().max() <= 1e-6 * plain.abs().max()


def test_the_three_kinds_of_position_differ(any_pipe):
    ends = [latents(compress(any_pipe, HiLo(positions=kind, bucket=1))) for kind in POSITIONS]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (ends[i] - ends[j]).abs().max() > 1e-3


def test_coarse_queries_see_aligned_places_and_others_their_own():
    """One block, no coarse query ever asked: then aligning has no say."""
    pipe = make_pipe()
    del pipe.transformer.single_transformer_blocks[:]
    pair = [
        latents(compress(pipe, HiLo(positions=kind, bucket=1)), num_inference_steps=1)
        for kind in ("interpolated", "aligned")
    ]
    assert torch.equal(*pair)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("size", [(256, 256), (272, 208)])
def test_places_and_order_of_the_short_sequence(pipe, positions, size):
    height, width = size
    given = {"image": make_photo(*size), "mask_image": make_mask(*size)}
    method = HiLo(positions=positions, bucket=1)
    hidden, places, plan = short_sequences(pipe, method, **given, height=height, width=width)
    assert plan.grid == (height // 16, width // 16)
    assert hidden.shape[2] == plan.tokens_run
    assert torch.equal(places[-plan.tokens_run :, 1:], token_positions(plan))
    assert not places[:, 0].any()


@pytest.mark.parametrize("grid", [(8, 8), (5, 6)])  # whole cells, and cells beyond the rim
@pytest.mark.parametrize("touched", [True, False])
def test_the_noise_of_coarse_tokens_has_unit_variance(grid, touched):
    """Every value of every cell by itself, over many draws of the noise."""
    B, N, M, sigma = 4000, grid[0] * grid[1], 4, 0.5
    nothing, cells = torch.arange(0), torch.arange(M)
    plan = TokenPlan(grid, nothing, torch.ones(N, dtype=torch.bool), 4, cells, torch.ones(M))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(B, M, CHANNELS, generator=random)
    flags = torch.full((B, M, 1), touched)
    tokens = Coarse(plan, torch.ones(B, M, CHANNELS), noise, torch.zeros(B, M, 1), flags)
    x_BNC = (1 - sigma) + sigma * torch.randn(B, N, CHANNELS, generator=random)
    found = tokens.tokens(x_BNC, sigma)[..., :CHANNELS]
    assert (found.mean(0) - (1 - sigma)).abs().max() < 0.05
    assert (found.std(0) - sigma).abs().max() < 0.03


def repainted(mask: np.ndarray) -> Image.Image:
    """The photo with something else under the mask."""
    photo = np.array(make_photo())
    photo[mask] = 255 - photo[mask]
    return Image.fromarray(photo)


def narrow_pipe():
    """Its VAE sees less than two tokens around."""
    pipe = make_pipe()
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(0, 0, 0, 0),
    )
    return pipe


@pytest.mark.parametrize("cells", ["open", "clear", "all"])
@pytest.mark.parametrize("positions", ["interpolated", "aligned"])
def test_what_is_under_the_mask_is_never_told(cells, positions):
    """At strength 1 the masked photo is all that enters, as in the pipeline itself."""
    pipe, mask = narrow_pipe(), make_mask(box=(66, 66, 78, 78))  # one token; its cell stays open
    fast = compress(pipe, HiLo(coarse_cells=cells, positions=positions, bucket=1))
    first = latents(fast, mask_image=mask)
    other = latents(fast, mask_image=mask, image=repainted(inside(mask)))
    plan = fast.last_run.plan
    assert plan.counts["coarse"] > 4
    assert (5 in plan.cells_M) == (cells != "clear")
    keep_K = plan.keep_K
    assert torch.equal(first[:, keep_K], other[:, keep_K])


@pytest.mark.parametrize("method", [HiLo(coarse=0), HiLo(coarse_cells="clear")])
@edits([(family, "plain", torch.float32) for family in FILLS])  # Inpaint is told, at sigma < 1
def test_nor_by_a_vae_that_looks_everywhere(edit, method):
    """The mid block of a KL autoencoder attends to the whole picture."""
    mask = make_mask()
    fast = compress(edit.pipe, method)
    first, other = latents(fast), latents(fast, image=repainted(inside(mask)))
    keep_K = fast.last_run.plan.keep_K
    assert torch.equal(first[:, keep_K], other[:, keep_K])


def test_nor_by_the_rim_of_a_grid_that_cells_do_not_divide():
    """The last row and column fill up their cells, and take their part of the mask along."""
    pipe, side = narrow_pipe(), 272
    mask = make_mask(side, side, (240, 240, 272, 272))
    photo = np.array(make_photo(side, side))
    given = {"mask_image": mask, "height": side, "width": side}
    method = HiLo(dilate=0, detail=0, coarse_cells="all", bucket=1)
    first, _, plan = short_sequences(pipe, method, **given, image=Image.fromarray(photo))
    photo[inside(mask)] = 0
    other, _, _ = short_sequences(pipe, method, **given, image=Image.fromarray(photo))
    assert torch.equal(coarse(first[0], plan), coarse(other[0], plan))


def test_clear_cells_carry_the_downsampled_photo():
    """Near sigma 0 a coarse token is that of a picture a quarter the size."""
    pipe = make_pipe("tiny", shifting=False)
    method = HiLo(coarse_cells="clear", bucket=1)
    hidden, _, plan = short_sequences(pipe, method, sigmas=[1.0, 1e-6])
    small = torch.nn.functional.avg_pool2d(pipe.image_processor.preprocess(make_photo()), 4)
    mask = torch.from_numpy(inside(make_mask())).float()[None, None]
    small = small * (1 - torch.nn.functional.max_pool2d(mask, 4))
    x0 = pipe._encode_vae_image(small, None)
    x0 = pipe._pack_latents(x0, *x0.shape)[:, plan.cells_M]
    found = coarse(hidden[1], plan)
    assert torch.allclose(found[..., :CHANNELS], x0, atol=1e-4)
    assert torch.allclose(found[..., CHANNELS : 2 * CHANNELS], x0, atol=1e-6)
    assert not found[..., 2 * CHANNELS :].any()


def test_a_transformer_called_with_another_length_is_refused():
    pipe = make_pipe()

    def lengthen(module, args, given):
        hidden = given["hidden_states"]
        return args, given | {"hidden_states": torch.cat([hidden, hidden], 1)}

    pipe.transformer.register_forward_pre_hook(lengthen, with_kwargs=True)
    with pytest.raises(ValueError, match=r"given 512 tokens, but the photo's grid of \(16, 16\)"):
        latents(compress(pipe))


def test_a_cropped_inpaint_plans_on_the_crop_and_leaves_the_rest_to_the_bit():
    pipe, photo, mask = make_pipe("inpaint"), make_photo(400, 320), make_mask(400, 320)
    fast = compress(pipe, HiLo(dilate=0, detail=0.05, bucket=8))
    given = arguments(image=photo, mask_image=mask, padding_mask_crop=16, output_type="pil")
    image = np.asarray(fast(**given).images[0])
    outside = ~inside(mask)
    assert np.array_equal(image[outside], np.asarray(photo)[outside])
    assert (image[~outside] != np.asarray(photo)[~outside]).mean() > 0.5
    assert fast.last_run.plan.edit_N.float().mean() > 0.2  # of the crop; 3.8 % of the photo
    assert fast.last_run.tokens_run < fast.last_run.tokens_full
