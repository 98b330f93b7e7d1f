"""What must hold for each of ComfyUI's transformers."""

import pytest
import torch
from families import ALL, FEW, STEPS, Watch, hilo, runs

from comfyui.ribbon import to_tokens
from comfyui.run import KEY
from hilotoken.methods.hilo import HiLo


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "uni_pc"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_keeping_every_token_is_the_untouched_model(family, sampler, cfg):
    given = {"sampler": sampler, "cfg": cfg}
    assert torch.equal(family.sample(**given), family.sample(hilo(family.model, ALL), **given))


@pytest.mark.parametrize("size", [(23, 31), (24, 17)])
def test_keeping_every_token_of_a_batch_of_odd_size(family, size):
    shape = (3, *family.latent.shape[1:-2], *size)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, size[0] * 8, size[1] * 8)
    mask[:, 20:60, 30:90] = 1
    given = {"latent": latent, "mask": mask, "cfg": 2.0}
    dense = family.sample(**given)
    assert torch.equal(dense, family.sample(hilo(family.model, ALL), **given))
    short = family.sample(hilo(family.model, HiLo(bucket=1)), **given)
    assert short.shape == dense.shape
    assert short.isfinite().all()
    assert not torch.equal(short, dense)


def test_keeping_every_token_beside_references(family):
    if not family.references:
        pytest.skip("this model has none")
    other = torch.randn((*family.latent.shape[:-2], 10, 14))
    given = {"reference_latents": [family.latent, other]}
    family.given = {}
    conds = {"positive": family.cond(**given), "negative": family.cond(2, **given), "cfg": 2.0}
    dense = family.sample(**conds)
    assert not torch.equal(dense, family.sample(cfg=2.0))
    assert torch.equal(dense, family.sample(hilo(family.model, ALL), **conds))


def test_fewer_tokens_run(family):
    model = hilo(family.model)
    kept = runs(model)
    with Watch(family.model) as watch:
        family.sample(model)
    plan = kept[0].plan
    assert plan.tokens_run < plan.tokens_full / 2
    pictures = 1 + (family.name == "kontext")  # the photo comes by once more
    assert len(watch.tokens) == STEPS
    beside = 32 + 31 if family.name == "zimage" else 0  # text and padding, which it counts too
    assert all(0 <= n - plan.tokens_run * pictures <= beside for n in watch.tokens)


@pytest.mark.parametrize("bucket", [1, 32])  # Z-Image pads to 32
def test_dropping_tokens_is_masking_their_keys(family, bucket):
    """Kept tokens answer as under a mask on the keys of the others, by ComfyUI's own way in."""
    model = hilo(family.model, HiLo(coarse=0, bucket=bucket))
    kept = runs(model)
    family.sample(model)
    run = kept[0]
    plan, dropped = run.plan, torch.ones(run.plan.tokens_full, dtype=torch.bool)
    assert plan.tokens_run < plan.tokens_full
    dropped[plan.keep_K] = False
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, *family.latent.shape[1:], generator=generator)
    call = _call(family, x)
    pictures = 1 + len(call.get("ref_latents", ()))

    def masked(original, q, k, v, heads, *args, **kwargs):
        length = k.shape[2] if kwargs.get("skip_reshape") else k.shape[1]
        if length < plan.tokens_full:  # of the text alone
            return original(q, k, v, heads, *args, **kwargs)
        keys = torch.zeros(length)
        keys[-pictures * plan.tokens_full :][dropped.repeat(pictures)] = float("-inf")
        kwargs["mask"] = keys.expand(1, 1, length, length)
        return original(q, k, v, heads, *args[1:], **kwargs)

    apply, sigma = family.model.model.apply_model, torch.tensor([0.7, 0.7])
    with torch.no_grad():
        options = {"optimized_attention_override": masked}
        dense = apply(x, sigma, transformer_options=options, **call)
        options = {KEY: run, "wrappers": model.wrappers}
        short = apply(x, sigma, transformer_options=options, **call)
    a, b = (to_tokens(z, run.patch)[:, plan.keep_K] for z in (dense, short))
    assert (a - b).abs().max() < 1e-5 * a.abs().max()
    tokens, source = (to_tokens(z, run.patch)[:, dropped] for z in (short, run.source))
    assert torch.equal(tokens, source.expand_as(tokens))


def _call(family, x):
    """The arguments of `apply_model` besides x and sigma, of a prompt of 32 tokens."""
    generator = torch.Generator().manual_seed(4)
    call = {"c_crossattn": torch.randn(2, 32, 32, generator=generator)}
    if family.name == "zimage":
        return call | {"num_tokens": 32}
    if family.name != "qwen":
        call |= {"guidance": torch.tensor([3.5, 3.5])}
    if family.name in ("flux", "kontext", "fill"):
        call |= {"y": torch.randn(2, 24, generator=generator)}
    if family.name == "fill":
        call |= {"c_concat": torch.randn(2, 80, *x.shape[-2:], generator=generator)}
    if family.name == "kontext":
        photo = family.model.model.process_latent_in(family.latent)
        call |= {"ref_latents": [photo.expand(2, -1, -1, -1)]}
    return call


def test_outside_the_noise_mask_nothing_changes(family):
    out, inside = family.sample(hilo(family.model)), family.inside
    moved = (out - family.latent).abs()
    assert moved[~inside].max() < 1e-6 * family.latent.abs().max()
    assert moved[inside].max() > 0.1


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "lcm"])
def test_a_dropped_token_ends_on_the_photo_without_a_noise_mask(family, sampler):
    model = hilo(family.model, mask=family.mask)
    kept = runs(model)
    out = family.sample(model, mask=None, sampler=sampler, cfg=2.0)
    dropped = torch.ones(kept[0].plan.tokens_full, dtype=torch.bool)
    dropped[kept[0].plan.keep_K] = False
    moved = (to_tokens(out, kept[0].patch) - to_tokens(family.latent, kept[0].patch)).abs()
    assert moved[:, dropped].max() < 2e-6 * family.latent.abs().max()
    assert moved[:, ~dropped].max() > 0.1


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_refreshing_at_every_step_is_no_reuse(family, sampler):
    given = {"sampler": sampler, "cfg": 2.0}
    every = HiLo(refresh=tuple(range(STEPS)))
    often = family.sample(hilo(family.model, every), **given)
    assert torch.equal(often, family.sample(hilo(family.model, HiLo()), **given))
    seldom = family.sample(hilo(family.model, HiLo(refresh=2)), **given)
    assert seldom.isfinite().all()
    assert not torch.equal(seldom, often)


@pytest.mark.parametrize("bucket", [1, 32])
def test_edit_tokens_alone_with_keys_just_kept_answer_as_in_the_whole_plan(family, bucket):
    """The same call twice: as the first step of one run, and as the second of another."""
    method = HiLo(context="sampled", detail=0.1, refresh=1, bucket=bucket)
    model = hilo(family.model, method)
    kept = runs(model)
    family.sample(model, steps=1)
    run = kept[0]
    x = torch.randn(2, *family.latent.shape[1:], generator=torch.Generator().manual_seed(3))
    options = {KEY: run, "wrappers": model.wrappers}
    call, apply = _call(family, x), family.model.model.apply_model
    short = []
    with torch.no_grad():
        for sigmas in ([0.7, 0.0], [0.9, 0.7, 0.0]):
            steps = {"sample_sigmas": torch.tensor(sigmas)}
            sigma = torch.tensor([0.7, 0.7])
            short.append(apply(x, sigma, transformer_options=options | steps, **call))
    edited = run.edit.keep_K
    assert 0 < len(edited) < run.plan.tokens_run
    a, b = (to_tokens(z, run.patch)[:, edited] for z in short)
    assert (a - b).abs().max() < 1e-5 * a.abs().max()


def test_half_precision(family):
    model = family.model.model.diffusion_model
    model.to(torch.bfloat16).dtype = torch.bfloat16
    assert torch.equal(family.sample(), family.sample(hilo(family.model, ALL)))
    out = family.sample(hilo(family.model, FEW))
    moved = (out - family.latent).abs()[~family.inside]
    assert moved.max() < 1e-6 * family.latent.abs().max()  # the photo never goes through bfloat16


def test_a_lora(family):
    weights = family.model.model.diffusion_model.state_dict()
    name = next(n for n in weights if n.endswith("qkv.weight") or n.endswith("to_q.weight"))
    model = family.model.clone()
    drawn = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    model.add_patches({f"diffusion_model.{name}": (drawn * 0.05,)}, 1.0)
    changed = family.sample(model)
    assert torch.equal(changed, family.sample(hilo(model, ALL)))
    assert not torch.equal(changed, family.sample())


def test_areas_are_sampled_on_all_tokens_and_this_is_said_once(family, caplog):
    area = [(8, 8, 0, 0), (4, 4, 0, 0)][family.name == "flux2"]
    positive = family.cond() + family.cond(4, area=area, strength=1.0)
    assert torch.equal(
        family.sample(positive=positive),
        family.sample(hilo(family.model, ALL), positive=positive),
    )
    caplog.clear()
    with caplog.at_level("WARNING"):
        out = family.sample(hilo(family.model), positive=positive)
    assert out.isfinite().all()
    said = [r.getMessage() for r in caplog.records if "HiLo" in r.getMessage()]
    assert len(said) == 1
    assert "an area or a tile" in said[0]
