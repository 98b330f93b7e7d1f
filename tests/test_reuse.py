"""Context computed seldom: exact where it must be, on every kind of transformer."""

import pytest
import torch
from contract import Stop, of_classes, plain_steps, steps, stop_at, whole_controlnet, worst
from families import BY_NAME, REFRESHED, arguments
from family import Family
from tiny import TOKENS

from hilotoken import HiLo, Refresh, compress, kv_store
from hilotoken.adapters import family_of
from hilotoken.attention import rerouted
from hilotoken.methods import ToDo

every_class = of_classes(REFRESHED)
METHODS = {
    "paper's": {"dilate": 1, "detail": 0.05, "bucket": 8},
    "sampled": {"dilate": 1, "detail": 0.05, "bucket": 8, "context": "sampled", "weights": True},
    "all": {"dilate": 1, "detail": 1.0, "coarse": 0},
}


def run(family: Family, pipe, call: str = "plain", changes=None, **options):
    fast = compress(pipe, HiLo(**options))
    return steps(family, pipe, fast, arguments(family, call, **(changes or {}))), fast.last_run


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
@every_class
def test_a_refresh_at_every_step_is_no_reuse(edit, options):
    family, pipe = edit.family, edit.pipe
    every, record = run(family, pipe, refresh=range(3), **options)
    plain, _ = run(family, pipe, **options)
    assert record.refreshed == (0, 1, 2)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(every, plain, strict=True))


@pytest.mark.parametrize(
    ("call", "blocks", "bucket"),
    [("plain", "all", 1), ("true CFG", "all", 32), ("plain", "1", 32)],
)
@every_class
def test_a_reuse_step_is_dense_attention_to_context_of_the_refresh(edit, call, blocks, bucket):
    """Dense, the keys and values of context overwritten by those of step 0, branch by branch.

    Where a block keeps none, its context is not seen at all, nor by any what fills up a bucket.
    """
    family, pipe = edit.family, edit.pipe
    if call != "plain" and call not in family.calls:
        pytest.skip("no second prompt")
    options = METHODS["all"] | {"refresh": Refresh((0, 2), blocks=blocks, bucket=bucket)}
    found, record = run(family, pipe, call, **options)
    assert record.refreshed == (0, 2)
    assert record.between == -(-record.counts["edit"] // bucket) * bucket
    edit_N, full = record.plan.edit_N, record.sequence[0]
    context_T = torch.cat([~edit_N, torch.ones(full - TOKENS, dtype=torch.bool)])
    context_X = context_T.nonzero().flatten()
    kept, calls, passed = {}, [], passed_over(pipe) if blocks != "all" else set()

    def attend(module, query, key, value, original, **kwargs):
        extra = key.shape[1] - full
        if extra < 0:
            return original(query, key, value, **kwargs)
        rows = context_X if family.image_first else context_X + extra
        place = (branch(), id(module))
        if id(module) in passed and place in kept:
            seen = torch.ones(key.shape[1], dtype=torch.bool).index_fill(0, rows, False)
            if kwargs.get("attn_mask") is not None:
                kwargs["attn_mask"] = kwargs["attn_mask"][..., seen]
            return original(query, key[:, seen], value[:, seen], **kwargs)
        if place not in kept:
            kept[place] = key[:, rows], value[:, rows]
        key, value = (
            x.index_copy(1, rows, y) for x, y in zip((key, value), kept[place], strict=True)
        )
        return original(query, key, value, **kwargs)

    def branch() -> int:
        return calls.count(calls[-1]) - 1

    def count(module, args, kwargs):
        index = pipe.scheduler.step_index
        calls.append(index if index is not None else pipe.scheduler.begin_index or 0)

    handle = pipe.transformer.register_forward_pre_hook(count, with_kwargs=True)
    with rerouted(pipe.transformer, attend), whole_controlnet(pipe):
        expected = plain_steps(family, pipe, arguments(family, call))
    handle.remove()
    edit = edit_N.nonzero().flatten()
    for step in (0, 1):  # at the next the context is computed anew
        a, b = found[step][0][:, edit], expected[step][0][:, edit]
        assert worst(a, b) <= 2e-6 * max(1, b.abs().max())
    everywhere = plain_steps(family, pipe, arguments(family, call))
    assert worst(found[1][0][:, edit], everywhere[1][0][:, edit]) > 1e-4


def passed_over(pipe) -> set[int]:
    """The first block's attention modules that see the image."""
    meant = {id(module) for module in family_of(pipe).attentions()}
    modules = pipe.transformer.named_modules()
    named = [(n.rpartition(".")[0], m) for n, m in modules if id(m) in meant]
    return {id(module) for block, module in named if block == named[0][0]}


@every_class
def test_between_refreshes_context_follows_the_source_and_the_sequence_is_short(edit):
    family, pipe, lengths = edit.family, edit.pipe, []
    names = ("blocks.0", "layers.0")
    hook = [m for n, m in pipe.transformer.named_modules() if n.endswith(names)][-1]
    name = "hidden_states"

    def watch(module, args, kwargs):
        x = kwargs[name] if name in kwargs else args[0]
        lengths.append(x.shape[1])

    handle = hook.register_forward_pre_hook(watch, with_kwargs=True)
    options = {"dilate": 1, "detail": 0.3, "coarse": 0, "bucket": 1}
    ends, record = run(family, pipe, refresh=(0, 1), **options)
    handle.remove()
    assert lengths[-1] < lengths[0]
    context_N = ~record.plan.edit_N
    x0 = family.source(pipe, arguments(family))
    assert worst(ends[-1][1][:, context_N], x0[:, context_N]) <= 2e-6 * max(1, x0.abs().max())
    assert record.mean_tokens_run < record.tokens_run


@every_class
def test_nothing_survives_a_run_or_an_exception(edit):
    family, pipe, method = edit.family, edit.pipe, HiLo(refresh=2)
    compress(pipe, method)(**arguments(family))
    edit.check()
    block = next(
        m for n, m in pipe.transformer.named_modules() if n.endswith(("blocks.0", "layers.0"))
    )
    handle = block.register_forward_hook(stop_at(3))
    with pytest.raises(Stop):
        compress(pipe, method)(**arguments(family, num_inference_steps=4))
    handle.remove()
    edit.check()
    first = steps(family, pipe, compress(pipe, method), arguments(family))[-1][1]
    new = family.make(torch.float32)
    assert torch.equal(first, steps(family, new, compress(new, method), arguments(family))[-1][1])


def test_a_prompt_that_changes_during_the_run_is_computed_anew():
    family = BY_NAME["FluxFillPipeline"]

    def change(pipe, step, timestep, given):
        return {"prompt_embeds": -given["prompt_embeds"]} if step == 1 else {}

    changes = {"callback_on_step_end": change, "num_inference_steps": 5,
               "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}  # fmt: skip
    _, record = run(family, family.make(torch.float32), changes=changes, refresh=1)
    assert record.refreshed == (0, 2)


@pytest.mark.parametrize(
    "name",
    ["FluxFillPipeline", "FluxKontextPipeline", "Flux2KleinPipeline", "LongCatImageEditPipeline"],
)
def test_text_may_be_kept_with_the_context(name):
    family = BY_NAME[name]
    pipe, texts = family.make(torch.float32), []
    handle = pipe.transformer.context_embedder.register_forward_pre_hook(
        lambda module, args: texts.append(args[0].shape[1])
    )
    kept, record = run(family, pipe, refresh=Refresh((0,), text=True))
    branches = len(texts) // record.steps
    assert min(texts[:branches]) > 0
    assert not any(texts[branches:])
    handle.remove()
    fresh, _ = run(family, pipe, refresh=(0,))
    assert torch.equal(kept[0][0], fresh[0][0])
    assert worst(kept[1][0], fresh[1][0]) > 1e-5
    every, _ = run(family, pipe, refresh=Refresh(range(3), text=True))
    plain, _ = run(family, pipe)
    assert torch.equal(every[-1][1], plain[-1][1])


@pytest.mark.parametrize(
    ("name", "message"),
    [("StableDiffusion3InpaintPipeline", "is not supported with Stable"),
     ("BriaFiboEditPipeline", "is not supported with BriaFibo"),
     ("QwenImageInpaintPipeline", "is not supported with QwenImage"),
     ("ChromaInpaintPipeline", "and an attention mask do not go together")],
)  # fmt: skip
def test_where_text_cannot_be_kept_it_is_said(name, message):
    family = BY_NAME[name]
    with pytest.raises(ValueError, match=rf"Refresh\(text=True\) {message}"):
        run(family, family.make(torch.float32), refresh=Refresh(2, text=True))


@pytest.mark.parametrize(("store", "share", "bound"), [("bfloat16", 0.5, 0.1), ("float8", 0.3, 1)])
def test_keys_and_values_may_be_kept_smaller(store, share, bound):
    family = BY_NAME["FluxFillPipeline"]
    pipe = family.make(torch.float32)
    whole, record = run(family, pipe, refresh=1)
    small, smaller = run(family, pipe, refresh=Refresh(1, store=store))
    layers, heads, channels = 2, 2, 16
    context = record.tokens_run - record.counts["edit"]
    assert record.kept_bytes == 4 * 2 * layers * heads * channels * context
    assert smaller.kept_bytes <= share * record.kept_bytes
    assert 0 < worst(small[-1][1], whole[-1][1]) < bound


def test_blocks_that_keep_nothing_take_no_memory():
    family = BY_NAME["FluxFillPipeline"]
    pipe = family.make(torch.float32)
    which = [Refresh(1, blocks=blocks) for blocks in ("all", "0-1", 0)]
    kept = [run(family, pipe, refresh=refresh)[1].kept_bytes for refresh in which]
    assert kept[0] == kept[1] == 2 * kept[2] > 0
    with pytest.raises(
        ValueError, match=r"refresh\.blocks must lie in \[0, 1\] and rise, got '1-2'"
    ):
        run(family, pipe, refresh=Refresh(1, blocks="1-2"))


@pytest.mark.parametrize(
    "refresh", [Refresh(2), Refresh(2, blocks="1"), Refresh(2, store="bfloat16")], ids=str
)
def test_too_little_memory_is_said_before_the_first_refresh(refresh, monkeypatch):
    family = BY_NAME["FluxFillPipeline"]
    pipe, ran = family.make(torch.float32), []
    _, record = run(family, pipe, refresh=refresh)
    monkeypatch.setattr(kv_store, "_free_memory", lambda device: record.kept_bytes)
    run(family, pipe, refresh=refresh)
    monkeypatch.setattr(kv_store, "_free_memory", lambda device: record.kept_bytes - 1)
    pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(
        MemoryError, match=r"use Refresh\(store='float8'\), fewer blocks, a smaller"
    ):
        run(family, pipe, refresh=refresh)
    assert not ran


@pytest.mark.parametrize(("drift", "expected"), [(0.0, (0, 2, 3, 4)), (1e9, (0,))])
def test_auto_refreshes_by_drift(drift, expected):
    """The first look at the context is at the step after the refresh, where it is remembered."""
    family = BY_NAME["FluxFillPipeline"]
    pipe = family.make(torch.float32)
    changes = {"num_inference_steps": 5}
    _, record = run(family, pipe, changes=changes, refresh=Refresh("auto", drift=drift))
    assert record.refreshed in (expected, (0, 1, 2, 3, 4))


def test_what_does_not_go_together_is_refused():
    pipe = BY_NAME["FluxFillPipeline"].make(torch.float32)
    with pytest.raises(ValueError, match="refresh"):
        compress(pipe, HiLo(refresh=2), inside=ToDo())
