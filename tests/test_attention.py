"""The rerouted attention call, on the real classes at tiny size, and keys that count for many."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from models import GRID, MODELS, TEXT, dit, flux, pixart, qwen
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hilotoken.attention import _SAID, Weighted, log_count_columns, rerouted, with_log_counts


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    model, given, shape = request.param()
    return model.eval(), given, shape


def run(model: nn.Module, given: dict) -> Tensor:
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def passing(module, query, key, value, original, **kwargs):
    return original(query, key, value, **kwargs)


def halving(module, query, key, value, original, **kwargs):
    return original(query, key, value, **kwargs) / 2


def processors(model: nn.Module) -> dict:
    return {name: vars(module).get("processor") for name, module in model.named_modules()}


def test_passing_attention_on_changes_nothing_and_leaves_nothing(case):
    model, given, shape = case
    plain, before, seen = run(model, given), processors(model), []

    def attend(module, query, key, value, original, **kwargs):
        seen.append((module, query.shape))
        return original(query, key, value, **kwargs)

    with rerouted(model, attend):
        assert torch.equal(run(model, given), plain)
        assert processors(model) != before
    assert processors(model) == before
    assert torch.equal(run(model, given), plain)
    attentions = [module for module in model.modules() if hasattr(module, "processor")]
    assert {id(module) for module, _ in seen} == {id(module) for module in attentions}
    assert len(seen) == len(attentions)
    second = (2, GRID**2, 2, 16)  # of the image alone, in the dual blocks of SD3
    assert all(tuple(found) in (shape, second) for _, found in seen)


def test_what_attention_returns_is_used(case):
    model, given, _ = case
    plain = run(model, given)
    with rerouted(model, halving):
        assert not torch.allclose(run(model, given), plain, atol=1e-4)


def test_the_attention_before_comes_back_after_an_exception(case):
    model, given, _ = case
    plain, before = run(model, given), processors(model)

    def attend(*_, **__):
        raise KeyError("on purpose")

    with pytest.raises(KeyError), rerouted(model, attend):
        run(model, given)
    assert processors(model) == before
    assert torch.equal(run(model, given), plain)


def test_contexts_nest_and_may_mean_some_modules_only():
    model, given, _ = flux()
    only, order = [model.transformer_blocks[1].attn], []

    def note(name):
        def attend(module, query, key, value, original, **kwargs):
            order.append(name)
            return original(query, key, value, **kwargs)

        return attend

    with rerouted(model, note("outer")), rerouted(model, note("inner"), only):
        run(model, given)
    assert order == ["outer", "inner", "outer", "outer", "outer"]
    with rerouted(model, halving, only), rerouted(model, halving):
        twice = run(model, given)
    with rerouted(model, halving), rerouted(model, halving, only):
        assert torch.equal(run(model, given), twice)
    with rerouted(model, halving):
        assert not torch.equal(run(model, given), twice)


def test_two_models_are_rerouted_apart():
    (one, given, _), (other, _, _) = flux(), flux()
    plain, halved = run(one, given), run(other, given)
    with rerouted(other, halving):
        assert torch.equal(run(one, given), plain)
        with rerouted(one, passing):
            assert torch.equal(run(one, given), plain)
            assert not torch.equal(run(other, given), halved)


@pytest.mark.parametrize("make", [flux, qwen])
def test_a_chosen_backend_stays_in_force(make):
    from diffusers.models.attention_dispatch import AttentionBackendName

    model, given, _ = make()
    plain, seen = run(model, given), []

    def attend(module, query, key, value, original, **kwargs):
        seen.append(kwargs["backend"])
        return original(query, key, value, **kwargs)

    model.set_attention_backend("native")
    with rerouted(model, attend):
        assert torch.equal(run(model, given), plain)
        assert set(seen) == {AttentionBackendName.NATIVE}
        model.set_attention_backend("_native_math")
        run(model, given)
        assert seen[-1] is AttentionBackendName._NATIVE_MATH
    assert next(iter(model.attn_processors.values()))._attention_backend is seen[-1]
    model.set_attention_backend("native")


def test_an_attention_without_a_known_function_is_refused_and_nothing_is_left():
    model, _, _ = pixart()
    model.transformer_blocks[1].attn1.set_processor(AttnProcessor())
    before = processors(model)
    with pytest.raises(TypeError, match="AttnProcessor calls no attention function"):  # noqa: SIM117
        with rerouted(model, passing):
            pass
    assert processors(model) == before


def test_processors_that_are_modules_and_take_more_arguments_are_rerouted_too():
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model, given, _ = flux()
    for block in model.transformer_blocks:
        block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 8))
    extra = {"joint_attention_kwargs": {"ip_hidden_states": [torch.randn(2, 4, 8)]}}
    plain, before, lengths = run(model, given | extra), list(model.state_dict()), []

    def attend(module, query, key, value, original, **kwargs):
        lengths.append(key.shape[1])
        return original(query, key, value, **kwargs)

    with rerouted(model, attend):
        assert torch.equal(run(model, given | extra), plain)
        assert list(model.state_dict()) == before
    joint = GRID**2 + TEXT
    assert lengths == [joint, 4, joint, 4, joint, joint]
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("make", [flux, dit])
def test_compiled_blocks_need_no_more_graphs_for_more_blocks_or_runs(make):
    torch._dynamo.reset()
    model, given, shape = make()
    counter = CompileCounterWithBackend("eager")
    weights = torch.rand(shape[1]) + 1
    with rerouted(model, Weighted(weights)):
        eager = run(model, given)
    for block in [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]:
        block.compile(fullgraph=True, dynamic=True, backend=counter)
    plain = run(model, given)
    graphs = [2 * counter.frame_count]  # one more for each kind of block
    for _ in range(2):
        with rerouted(model, Weighted(weights.clone())):
            assert torch.allclose(run(model, given), eager, atol=1e-5)
        graphs.append(counter.frame_count)
    assert graphs[1] == graphs[2] <= graphs[0]
    assert torch.allclose(run(model, given), plain, atol=1e-5)


# Keys that count for many


def with_mask(query, key, value, count_S):
    """Attention by definition, in float64, with log(count) in a mask."""
    mask = count_S.double().log()
    mask = mask[:, None, None] if mask.ndim == 2 else mask
    three = (x.double().transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(
        *three, attn_mask=mask.expand(len(query), 1, query.shape[1], -1)
    ).transpose(1, 2)


def in_channels(query, key, value, count_S):
    scale = query.shape[-1] ** -0.5
    columns = log_count_columns(count_S, key, scale)
    query, key, padded = with_log_counts(query, key, value, columns)
    assert query.shape[-1] == key.shape[-1] == padded.shape[-1]
    three = (x.transpose(1, 2) for x in (query, key, padded))
    return F.scaled_dot_product_attention(*three, scale=scale).transpose(1, 2)[
        ..., : value.shape[-1]
    ]


@pytest.mark.parametrize("D", [4, 15, 64, 72, 128])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_counts_in_channels_equal_a_mask_and_repeated_keys(D, dtype, bound):
    torch.manual_seed(D)
    query, key, value = (torch.randn(2, n, 3, D).to(dtype) for n in (7, 50, 50))
    count_S = torch.randint(1, 20, (50,)).float() ** 2
    expected = with_mask(query, key, value, count_S)
    found = in_channels(query, key, value, count_S)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= bound * expected.abs().max()
    again_S = torch.arange(50).repeat_interleave(count_S.int())
    repeated = with_mask(query, key[:, again_S], value[:, again_S], torch.ones(len(again_S)))
    assert torch.allclose(repeated, expected, atol=1e-12)
    plain = with_mask(query, key, value, torch.ones(50))
    assert (plain - expected).abs().max() > 0.1 * expected.abs().max()


def test_each_sample_may_have_counts_of_its_own():
    query, key, value = (torch.randn(2, n, 3, 16) for n in (7, 50, 50))
    count_BS = torch.rand(2, 50) * 30 + 0.01
    found, expected = (f(query, key, value, count_BS) for f in (in_channels, with_mask))
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_half_precision_loses_no_more_than_its_own_rounding_to_counts():
    """log(1000) itself, held in bfloat16, would be off by up to 1.5 %."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, 2, 128).bfloat16() for n in (64, 256, 256))
    count_S = torch.full((256,), 1000.0)
    count_S[128:] = 1003
    scale = 128**-0.5
    columns = log_count_columns(count_S, key, scale)
    query, key, _ = with_log_counts(query, key, value, columns)
    logits = (query.double() * scale)[0, :, 0] @ key.double()[0, :, 0].T
    bare = (query.double() * scale)[0, :, 0, :128] @ key.double()[0, :, 0, :128].T
    assert torch.allclose(logits - bare, count_S.double().log().expand(64, -1), atol=2e-4)


def test_counts_of_one_change_next_to_nothing_in_a_model():
    model, given, _ = flux()
    with rerouted(model, Weighted(torch.ones(GRID**2 + TEXT))):
        ones = run(model, given)
    assert torch.allclose(ones, run(model, given), atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "width", "used"),
    [("sage", 24, "native"), ("_native_cudnn", 24, "_native_cudnn"), ("flash", 136, "flash"),
     ("_native_cudnn", 136, "native"), ("_native_xla", 24, "native")],
)  # fmt: skip
def test_a_backend_that_cannot_hold_counts_gives_way_and_that_is_said(backend, width, used):
    seen = []

    def original(query, key, value, **kwargs):
        seen.append(kwargs["backend"])
        return value

    _SAID.clear()
    query = torch.randn(1, 3, 2, width - 8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            Weighted(torch.ones(3))(None, query, query, query, original, backend=backend)
    assert seen == [used] * 2
    assert [backend in str(one.message) for one in said] == [True] * (used != backend)


def test_the_backend_of_a_context_gives_way_too(monkeypatch):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", "sage")
    monkeypatch.setitem(_AttentionBackendRegistry._backends, "sage", None)
    _SAID.clear()
    model, given, shape = flux()
    with rerouted(model, Weighted(torch.ones(shape[1]))), pytest.warns(UserWarning, match="sage"):
        run(model, given)
