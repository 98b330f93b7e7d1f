"""A step cache of diffusers as a control: what it skips, counts, leaves behind and refuses."""

from functools import partial

import family_flux
import family_sd3
import pytest
import torch
from contract import Stop, plain_steps, state, steps, stop_at
from diffusers import FirstBlockCacheConfig
from families import BY_NAME
from families import arguments as family_arguments
from tiny import arguments, latents, make_pipe

from hilotoken import compress
from hilotoken.bench.measure.flops import count_flops
from hilotoken.methods import StepCache

STEPS, BLOCKS = 4, 2  # the tiny pipeline's: one double and one single block


def test_without_a_threshold_it_is_the_dense_edit_and_nothing_stays():
    pipe = make_pipe()
    plain, before = latents(pipe), state(pipe)
    fast = compress(pipe, StepCache(threshold=0))
    assert torch.equal(latents(fast), plain)
    assert fast.last_run.blocks_run == 1
    assert state(pipe) == before


def test_above_all_change_only_the_first_step_runs_whole():
    pipe = make_pipe()
    fast = compress(pipe, StepCache(threshold=1e9))
    given = arguments(num_inference_steps=STEPS)
    dense = count_flops(lambda: pipe(**given), pipe.transformer)
    cached = count_flops(lambda: fast(**given), pipe.transformer)
    run = fast.last_run
    assert run.blocks_run == (1 + (STEPS - 1) / BLOCKS) / STEPS
    assert run.mean_tokens_run == run.blocks_run * run.tokens_full
    assert cached < dense


def test_branches_of_guidance_keep_caches_of_their_own():
    family = BY_NAME["QwenImageEditInpaintPipeline"]
    pipe, given = family.make(torch.float32), partial(family_arguments, family, "true CFG")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    own = plain_steps(family, pipe, given())[-1][1]  # this pipeline names its contexts itself
    pipe.transformer.disable_cache()
    fast = compress(pipe, StepCache(threshold=1e9))
    assert torch.equal(steps(family, pipe, fast, given())[-1][1], own)
    assert fast.last_run.blocks_run < 1


def test_an_exception_leaves_no_cache():
    pipe = make_pipe()
    latents(pipe)
    before = state(pipe)
    handle = pipe.transformer.transformer_blocks[0].register_forward_hook(stop_at(3))
    with pytest.raises(Stop):
        latents(compress(pipe, StepCache()), num_inference_steps=STEPS)
    handle.remove()
    assert state(pipe) == before


def test_what_it_cannot_run_on_is_refused():
    name = "StableDiffusion3InpaintPipeline"
    with pytest.raises(ValueError, match="not on SD3Transformer2DModel: fewer_steps saves"):
        compress(family_sd3.make(name), StepCache())(**family_sd3.arguments(name))
    pipe = family_flux.make("FluxInpaintPipeline")
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match=r"call transformer\.disable_cache"):
        compress(pipe, StepCache())(**family_flux.arguments("FluxInpaintPipeline"))
    assert pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("threshold", [-0.1, True, "0.1", float("nan")])
def test_a_threshold_is_a_number_of_0_or_more(threshold):
    with pytest.raises(ValueError, match="threshold must be a number of 0 or more"):
        StepCache(threshold=threshold)
