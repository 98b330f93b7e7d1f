"""Block methods in whole pipelines: from text alone, in an edit, and inside HiLo."""

from functools import partial
from typing import Any

import diffusers
import family_flux
import family_qwen
import family_sd3
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from models import pixart
from tiny import (
    GRID,
    TOKENS,
    arguments,
    inside,
    latents,
    make_mask,
    make_photo,
    make_pipe,
    make_vae,
    widen,
)
from torch import Tensor

from hilotoken import Dense, HiLo, compress
from hilotoken.bench.measure.flops import flops_by_pass
from hilotoken.methods import (
    METHODS,
    SDTM,
    BiGainTD,
    BiGainTM,
    CropStitch,
    RandomKeep,
    ToDo,
    TokenPooling,
    ToMe,
    Within,
)

SMALL = HiLo(bucket=8)
BLOCK_METHODS = [
    ToMe(random=True, feed_forward=True, reuse=2), ToDo(),
    SDTM(ratio=0.5, deviation=0.1, protect=2, cached=0.5),
    BiGainTM(), BiGainTD(alpha_end=0.1), TokenPooling(iterations=2),
]  # fmt: skip


def seeded() -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(7), "num_inference_steps": 3}


def without_photo(module: Any, name: str) -> dict[str, Any]:
    given = module.arguments(name)
    for key in ("image", "mask_image", "strength"):
        given.pop(key, None)
    return given


def text_flux():
    pipe = family_flux.make("FluxInpaintPipeline")
    made = diffusers.FluxPipeline(**pipe.components)
    negative = family_flux.embeds(1, torch.float32, 2, "negative_")  # guided: two calls a step
    return (
        made,
        lambda: without_photo(family_flux, "FluxPipeline") | negative | {"true_cfg_scale": 3.0},
    )


def text_qwen():
    pipe = family_qwen.make("QwenImagePipeline")
    negative = family_qwen.embeds(1, torch.float32, 2, "negative_")
    return (
        pipe,
        lambda: (
            without_photo(family_qwen, "QwenImagePipeline") | negative | {"true_cfg_scale": 3.0}
        ),
    )


def text_sd3():
    return (
        family_sd3.make("StableDiffusion3Pipeline"),
        lambda: without_photo(family_sd3, "StableDiffusion3Pipeline"),
    )


def text_pixart():
    torch.manual_seed(0)
    model = pixart()[0]
    widen(model)
    pipe = diffusers.PixArtSigmaPipeline(
        None, None, make_vae("kl"), model, DPMSolverMultistepScheduler()
    )
    random = torch.Generator().manual_seed(1)
    embeds = {
        f"{p}prompt_embeds": torch.randn(1, 5, 8, generator=random) for p in ("", "negative_")
    }
    masks = {f"{p}prompt_attention_mask": torch.ones(1, 5) for p in ("", "negative_")}
    size = {"height": 256, "width": 256, "use_resolution_binning": False, "output_type": "latent"}
    none = {"negative_prompt": None}
    return pipe, lambda: embeds | masks | size | none | seeded()


def text_dit():
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        sample_size=32,
    )  # fmt: skip
    widen(model)
    pipe = diffusers.DiTPipeline(model.eval(), make_vae("kl"), DDIMScheduler())
    return pipe, lambda: {"class_labels": [3], "output_type": "pt"} | seeded()


@pytest.fixture(params=[text_flux, text_qwen, text_sd3, text_pixart, text_dit])
def from_text(request):
    pipe, given = request.param()
    pipe.set_progress_bar_config(disable=True)
    return pipe, given


def made(pipe: Any, given: Any) -> Tensor:
    return pipe(**given()).images


def test_pictures_from_text_are_made_with_methods_inside(from_text):
    pipe, given = from_text
    plain = made(pipe, given)
    fast = compress(pipe, ToMe(ratio=0, feed_forward=True))
    assert torch.equal(made(fast, given), plain)
    for method in BLOCK_METHODS:
        fast = compress(pipe, method)
        image = made(fast, given)
        assert image.shape == plain.shape
        assert (image - plain).abs().max() > 1e-4 * plain.abs().max(), method
        assert torch.equal(made(fast, given), image), method  # no state is left from the run before
        run = fast.last_run
        assert (run.steps, run.tokens_full, run.tokens_run) == (3, TOKENS, TOKENS)
        assert min(run.inside.values()) < 1
        assert 0 < run.dit_seconds < run.total_seconds
    assert torch.equal(made(pipe, given), plain)


def test_from_text_a_plan_and_a_control_are_refused_with_what_is_supported(from_text):
    pipe, _ = from_text
    for method in (HiLo(), RandomKeep(), CropStitch()):
        with pytest.raises(
            TypeError, match=r"is not supported; .* no mask to plan by: .* ToMe\(\)"
        ):
            compress(pipe, method)
    with pytest.raises(TypeError, match="is not supported"):
        compress(pipe, inside=ToMe())


@pytest.mark.parametrize("method", BLOCK_METHODS, ids=lambda m: type(m).__name__)
def test_in_an_edit_all_tokens_run_and_pixels_outside_the_mask_stay(method):
    pipe = make_pipe()
    plain = latents(pipe)
    fast = compress(pipe, method)
    assert (latents(fast) - plain).abs().max() > 1e-3
    assert fast.last_run.keep_ratio == 1
    assert fast.last_run.method is method
    assert min(fast.last_run.inside.values()) < 1
    (image,) = fast(**arguments(output_type="pt")).images
    photo = pipe.image_processor.preprocess(make_photo())[0] / 2 + 0.5
    outside = ~torch.from_numpy(inside(make_mask()))
    assert (image - photo)[:, outside].abs().max() < 1e-6
    assert torch.equal(latents(pipe), plain)


MADE = {
    "FluxKontextPipeline": family_flux,
    "QwenImageInpaintPipeline": family_qwen,
    "StableDiffusion3InpaintPipeline": family_sd3,
}
PIPES = {"FluxFillPipeline": (make_pipe, arguments)} | {
    name: (partial(module.make, name), partial(module.arguments, name))
    for name, module in MADE.items()
}


@pytest.mark.parametrize("name", PIPES)
def test_inside_hilo_methods_work_on_what_it_leaves(name):
    make, given = PIPES[name]
    pipe = make()
    alone = compress(pipe, SMALL)
    expected = made(alone, given)
    tokens, run = alone.last_run.plan.keep_K, alone.last_run
    assert 0 < len(tokens) < TOKENS
    same = compress(pipe, SMALL, inside=ToMe(ratio=0, feed_forward=True))
    assert torch.equal(made(same, given), expected)
    for method in (
        ToMe(feed_forward=True),
        ToDo(),
        ToDo(mode="average"),
        BiGainTD(),
        TokenPooling(),
    ):
        fast = compress(pipe, SMALL, inside=method)
        assert (made(fast, given) - expected).abs().max() > 1e-4 * expected.abs().max(), method
        assert fast.last_run.tokens_run == run.tokens_run
        length = run.sequence[1]
        if isinstance(method, ToMe | TokenPooling):
            share = (length - len(tokens) // 2) / length
            assert fast.last_run.inside["queries"] == pytest.approx(share), method
    everything = compress(pipe, HiLo(detail=1.0, coarse=0), inside=ToDo())
    assert torch.allclose(made(everything, given), made(compress(pipe, ToDo()), given), atol=1e-5)


def test_what_acts_inside_is_stored_as_one_value():
    pipe = make_pipe()
    fast = compress(pipe, SMALL, inside=ToDo())
    assert fast.method == Within(SMALL, ToDo()) == compress(pipe, Within(SMALL, ToDo())).method
    latents(fast)
    assert fast.last_run.method == fast.method


@pytest.mark.parametrize(
    "method",
    [*(kind() for kind in METHODS.values()), ToMe(reuse=2), HiLo(refresh=2), Within(SMALL, ToDo())],
    ids=repr,
)
def test_steps_cost_the_same_where_a_method_says_so(method):
    pipe = make_pipe()
    call = partial(compress(pipe, method), **arguments(output_type="pt"))
    passes = flops_by_pass(call, pipe.transformer)
    assert len(set(passes)) == 1 or not method.alike


def test_inside_dense_is_the_method_alone():
    pipe = make_pipe()
    assert torch.equal(
        latents(compress(pipe, Dense(), inside=ToDo())), latents(compress(pipe, ToDo()))
    )


@pytest.mark.parametrize(
    ("method", "within", "error", "message"),
    [
        (SMALL, SDTM(), ValueError, "HiLo with SDTM inside: it needs a whole grid"),
        (SMALL, BiGainTM(), ValueError, "use ToMe, ToDo"),
        (HiLo(weights=True), ToMe(), ValueError, "weights=True is for the inner one"),
        (HiLo(positions="aligned"), ToMe(), ValueError, "attends twice"),
        (HiLo(refresh=2), ToMe(), ValueError, "refresh keeps keys and values"),
        (Within(SMALL, ToDo()), ToMe(), ValueError, "one method acts inside already"),
        (ToMe(), ToDo(), ValueError, "must plan a sequence"),
        (CropStitch(), ToDo(), ValueError, "must plan a sequence"),
        (SMALL, Dense(), TypeError, "only a method that acts inside blocks"),
    ],
)
def test_methods_that_do_not_go_together_are_refused(method, within, error, message):
    with pytest.raises(error, match=message):
        compress(make_pipe(), method, inside=within)


def test_a_model_whose_blocks_are_not_known_is_refused_before_it_runs():
    import family_chroma

    pipe = family_chroma.make("ChromaInpaintPipeline")
    for method, within in ((ToMe(), None), (HiLo(), ToDo())):
        with pytest.raises(TypeError, match="do not know those of ChromaTransformer2DModel; supp"):
            compress(pipe, method, inside=within)


def test_a_grid_that_does_not_suit_is_refused_and_leaves_nothing():
    pipe = make_pipe()
    plain = latents(pipe)
    narrow = {"height": 240, "width": 256}
    with pytest.raises(ValueError, match=f"got a grid of {GRID[0] - 1}x{GRID[1]}"):
        latents(compress(pipe, SDTM()), **narrow)
    assert torch.equal(latents(pipe), plain)
