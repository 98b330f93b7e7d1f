"""Beside what else people put on a model, and what is left of a run when it ends."""

import copy
import gc
import weakref

import comfy.controlnet
import comfy.model_management
import comfy.patcher_extension
import nodes as comfy_nodes
import pytest
import torch
from families import ALL, FEW, STEPS, H, W, Watch, conditioning, hilo, runs
from torch.nn.functional import scaled_dot_product_attention

from comfyui.attend import OTHER, STATE, Attention, overridden
from comfyui.ribbon import put_back, to_ribbon, to_tokens
from hilotoken.grid import dilate, touch
from hilotoken.methods.hilo import HiLo
from hilotoken.methods.refresh import Refresh


def result(node):
    """What a node of ComfyUI's newer kind gives."""
    return node.result[0] if hasattr(node, "result") else node[0]


def embedder(case):
    return case.model.model.diffusion_model.pe_embedder


# What is left of a run.


def test_the_model_is_as_it_was(flux):
    before, state = flux.sample(), set(vars(flux.model.model.diffusion_model))
    options = copy.deepcopy(flux.model.model_options)
    flux.sample(hilo(flux.model))
    assert torch.equal(before, flux.sample())
    assert flux.model.model_options == options
    assert set(vars(flux.model.model.diffusion_model)) == state
    assert not embedder(flux)._forward_pre_hooks


@pytest.mark.parametrize("error", [RuntimeError, "interrupt"])
@pytest.mark.parametrize("method", [FEW, HiLo(refresh=2)])
def test_nothing_outlives_an_error_or_an_interrupt(flux, error, method):
    if error == "interrupt":
        error = comfy.model_management.InterruptProcessingException
    model = hilo(flux.model, method)
    kept, good = runs(model), flux.sample(model)

    def stop(step, *rest):
        if step == 1:
            raise error()

    with pytest.raises(error):
        flux.sample(model, callback=stop)
    assert not embedder(flux)._forward_pre_hooks
    assert "hilotoken" not in model.model_options["transformer_options"]
    run = weakref.ref(kept[-1])
    kept.clear()
    gc.collect()
    assert run() is None
    assert torch.equal(good, flux.sample(model))


def test_an_error_inside_the_transformer(flux):
    model = hilo(flux.model)

    def stop(*args):
        raise RuntimeError("stop")

    block = flux.model.model.diffusion_model.double_blocks[0]
    handle = block.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        flux.sample(model)
    handle.remove()
    assert not embedder(flux)._forward_pre_hooks
    assert torch.equal(flux.sample(model), flux.sample(hilo(flux.model)))


def test_runs_of_other_sizes_between_change_nothing(flux):
    model = hilo(flux.model)
    first = flux.sample(model)
    other = torch.randn(1, 16, 40, 20, generator=torch.Generator().manual_seed(8))
    flux.sample(model, latent=other)
    assert torch.equal(first, flux.sample(model))


def test_the_second_of_two_nodes_counts(flux):
    twice = hilo(hilo(flux.model, HiLo(dilate=0)), FEW)
    kept = runs(twice)
    assert torch.equal(flux.sample(twice), flux.sample(hilo(flux.model, FEW)))
    assert len(kept) == 1


def test_two_nodes_on_one_model_and_a_clone(flux):
    few, more = hilo(flux.model, FEW), hilo(flux.model, HiLo())
    a, b = flux.sample(few), flux.sample(more)
    assert not torch.equal(a, b)
    assert torch.equal(a, flux.sample(few.clone()))
    assert torch.equal(b, flux.sample(more))


# Beside other nodes.


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
def test_step_caches_of_core_in_either_order(flux, name):
    from comfy_extras import nodes_easycache

    def cached(model):
        return result(getattr(nodes_easycache, name).execute(model, 10.0, 0.15, 0.95, False))

    for both in (cached(hilo(flux.model)), hilo(cached(flux.model))):
        with Watch(flux.model) as watch:
            out = flux.sample(both, steps=8)
        assert 0 < len(watch.tokens) < 8
        assert ((out - flux.latent).abs()[~flux.inside]).max() < 1e-5


def test_easy_cache_beside_refreshes_is_refused(flux):
    from comfy_extras.nodes_easycache import EasyCacheNode

    model = result(EasyCacheNode.execute(flux.model, 10.0, 0.15, 0.95, False))
    with pytest.raises(ValueError, match="EasyCache"):
        flux.sample(hilo(model, HiLo(refresh=2)))


def test_differential_diffusion(flux):
    """All that is not black is edited, however dark."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion as Node

    node = Node.execute(flux.model) if hasattr(Node, "execute") else Node().apply(flux.model)
    soft = torch.zeros(1, H * 8, W * 8)
    soft[:, 40:100, 60:120] = torch.linspace(0.05, 1, 60)
    dense = flux.sample(result(node), mask=soft)
    assert torch.equal(dense, flux.sample(hilo(result(node), ALL), mask=soft))
    model = hilo(result(node))
    kept = runs(model)
    assert flux.sample(model, mask=soft).isfinite().all()
    hard = touch((soft > 0).float()[None], kept[0].plan.grid)
    assert (kept[0].plan.edit_N >= dilate(hard, FEW.dilate).flatten()).all()


SELDOM = HiLo(context="sampled", cell=3, refresh=1)


@pytest.mark.parametrize(("first", "method"), [("hilo", FEW), ("compile", FEW), ("hilo", SELDOM)])
def test_torch_compile_in_either_order(flux, first, method):
    """Traced, not compiled: what is to be seen is that no graph knows an old mask's places."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    torch.compiler.reset()
    both = flux.model.clone() if first == "compile" else hilo(flux.model, method)
    set_torch_compile_wrapper(model=both, backend="eager")
    both = hilo(both, method) if first == "compile" else both
    for mask in (flux.mask, flux.mask.roll((48, 96), (1, 2))):
        given = {"mask": mask, "steps": 2}
        expected = flux.sample(hilo(flux.model, method), **given)
        assert (flux.sample(both, **given) - expected).abs().max() < 1e-4


class Control(comfy.controlnet.ControlBase):
    """Residuals with a row for each token of the whole grid, as a ControlNet gives them."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def get_control(self, x, *rest):
        return {"input": [self.rows.expand(len(x), -1, -1)], "output": []}

    def get_models(self):
        return []


def test_a_controlnets_rows_are_shortened_with_the_tokens(flux):
    rows = torch.randn(1, 12 * 16, 128, generator=torch.Generator().manual_seed(0)) * 0.1

    def conds(rows):
        more = {"control": Control(rows), "control_apply_to_uncond": False}
        return {"positive": conditioning(**more), "negative": conditioning(seed=2), "cfg": 2.0}

    dense = flux.sample(**conds(rows))
    assert not torch.equal(dense, flux.sample(cfg=2.0))
    assert torch.equal(dense, flux.sample(hilo(flux.model, ALL), **conds(rows)))
    model = hilo(flux.model)
    kept = runs(model)
    short = flux.sample(model, **conds(rows))
    dropped = torch.ones(12 * 16, dtype=torch.bool)
    dropped[kept[0].plan.keep_K] = False
    changed = rows.clone()
    changed[:, dropped] = 7.0  # of tokens that do not run
    assert torch.equal(short, flux.sample(hilo(flux.model), **conds(changed)))
    changed[:, kept[0].plan.keep_K[0]] = 7.0
    assert not torch.equal(short, flux.sample(hilo(flux.model), **conds(changed)))


def style(flux, strength=0.3):
    """Flux Redux: tokens of a picture behind the text, and a mask on their keys."""
    tokens = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(6))

    class Model:
        def get_cond(self, given):
            return tokens

    apply = comfy_nodes.StyleModelApply().apply_stylemodel
    return apply(flux.cond(), Model(), None, strength, "attn_bias")[0]


def test_a_style_models_mask_is_shortened_with_the_tokens(flux):
    dense = flux.sample(positive=style(flux))
    assert not torch.equal(dense, flux.sample(positive=style(flux, 0.9)))
    assert torch.equal(dense, flux.sample(hilo(flux.model, ALL), positive=style(flux)))
    assert flux.sample(hilo(flux.model, HiLo()), positive=style(flux)).isfinite().all()
    with pytest.raises(ValueError, match="style model"):
        flux.sample(hilo(flux.model, HiLo(refresh=2)), positive=style(flux))


def test_a_patch_on_all_tokens_keeps_the_run_dense(caplog):
    from families import qwen_case

    class Adds:
        def __call__(self, given):
            given["img"] = given["img"] * 1.1
            return given

    case = qwen_case()
    model = case.model.clone()
    model.set_model_patch(Adds(), "double_block")
    with caplog.at_level("WARNING"):
        out = case.sample(hilo(model))
    assert torch.equal(out, case.sample(model))
    assert sum("Adds adds to all tokens" in r.getMessage() for r in caplog.records) == 1


# What is refused.


def test_what_is_refused_says_what_to_do(flux):
    with pytest.raises(ValueError, match="VAE Encode"):
        flux.sample(hilo(flux.model), latent=torch.zeros(1, 16, H, W))
    with pytest.raises(ValueError, match="Set Latent Noise Mask"):
        flux.sample(hilo(flux.model), mask=None)
    with pytest.raises(ValueError, match="all black"):
        flux.sample(hilo(flux.model, mask=torch.zeros(1, 64, 64)))
    with pytest.raises(ValueError, match="of another shape"):
        flux.sample(hilo(flux.model, mask=torch.ones(1, 64, 640)))
    with pytest.raises(ValueError, match="of another shape"):
        flux.sample(hilo(flux.model, image=torch.rand(1, 640, 64, 3)))


@pytest.mark.parametrize(
    "options",
    [{"positions": "aligned"}, {"refresh": "auto"}, {"refresh": Refresh(2, text=True)},
     {"refresh": Refresh(2, blocks="0-1")}],
)  # fmt: skip
def test_options_that_are_not_to_be_had_are_named(flux, options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        hilo(flux.model, HiLo(**options))


def test_another_transformer_is_named(flux):
    class Other(type(flux.model.model.diffusion_model)):
        pass

    flux.model.model.diffusion_model.__class__ = Other
    with pytest.raises(ValueError, match=r"does not know Other; it knows Flux"):
        flux.sample(hilo(flux.model))


def test_a_node_that_adds_tokens_of_its_own_is_noticed(flux):
    def add(executor, x, *args, **kwargs):
        return executor(torch.cat([x, x], -1), *args, **kwargs)[..., : x.shape[-1]]

    model = hilo(flux.model)
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    model.add_wrapper_with_key(kind, "adds", add)
    with pytest.raises(RuntimeError, match="another node adds some"):
        flux.sample(model)


# Parts.


def test_a_ribbon_there_and_back():
    x = torch.randn(2, 4, 7, 9)
    plan = HiLo(dilate=0, detail=0.3, coarse=0, bucket=1).select(
        torch.rand(20), torch.eye(4, 5).bool(), (4, 5)
    )
    tokens = to_tokens(x, 2)
    ribbon = to_ribbon(tokens[:, plan.keep_K], 2, x)
    assert ribbon.shape == (2, 4, 2, 2 * len(plan.keep_K))
    back = put_back(ribbon, torch.zeros_like(x), plan, 2)
    assert back.shape == x.shape
    assert torch.equal(back[back != 0], x[back != 0])
    ran = torch.zeros(20, dtype=torch.bool)
    ran[plan.keep_K] = True
    assert torch.equal(to_tokens(put_back(ribbon, x, plan, 2), 2), tokens)
    assert (to_tokens(back[..., :6, :8], 2) == 0).all(-1).sum() == 2 * (
        ~ran.view(4, 5)[:3, :4]
    ).sum()


def test_a_key_that_counts_for_three_is_three_keys():
    q, k, v = torch.randn(3, 2, 4, 6, 8)
    counts = torch.tensor([1.0, 3.0, 0.0, 1.0])  # of the last four; 0 hides one
    again = torch.tensor([0, 1, 2, 3, 3, 3, 5])
    attention = Attention(None, counts)

    def attend(q, k, v, mask):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)

    weighted = attention.attend(attend, q, k, v, None)
    repeated = attend(q, k[:, :, again], v[:, :, again], None)
    torch.testing.assert_close(weighted, repeated)
    hidden = torch.tensor([True] * 5 + [False])
    masked = Attention(None, counts).attend(attend, q, k, v, hidden.expand(1, 1, 6, 6))
    torch.testing.assert_close(masked, attend(q, k[:, :, again[:-1]], v[:, :, again[:-1]], None))


def test_an_override_of_another_node_is_called_too(flux):
    seen = []

    def other(original, *args, **kwargs):
        seen.append(kwargs["mask"] is not None)
        return original(*args, **kwargs)

    options = overridden({"optimized_attention_override": other}, Attention(None, torch.ones(1)))
    assert options[OTHER] is other
    assert isinstance(options[STATE], Attention)
    model = flux.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = other
    flux.sample(hilo(model, HiLo(context="sampled", cell=3)))
    assert seen == [True] * STEPS * 3
