"""`Refresh(capture=True)`: a reuse step is recorded once and repeated, and nothing else changes."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from contract import Stop, steps
from families import BY_NAME, CLASSES, arguments
from second_device import FAR, moved, watching
from tiny import latents, make_mask, make_photo, make_pipe
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hilotoken import HiLo, Refresh, compress
from hilotoken.hooks import hooked
from hilotoken.plan import TokenPlan
from hilotoken.replay import COPYING, CpuRecorder, Replay, recorder_for

AT = 2  # refreshes: at steps 0 and 4 of 8
FEW = {"dilate": 1, "detail": 0.3, "coarse": 0, "bucket": 8}
STEPS = {"num_inference_steps": 8}


def both(at: Any = AT, options: dict[str, Any] = FEW, **refresh: Any) -> tuple[HiLo, HiLo]:
    """The same method as it is, and captured."""
    plain, captured = (Refresh(at, capture=capture, **refresh) for capture in (False, True))
    return HiLo(refresh=plain, **options), HiLo(refresh=captured, **options)


@contextmanager
def recordings() -> Iterator[list[int]]:
    """How often each recording was repeated, in the order in which they were made."""
    record, found = CpuRecorder.record, []

    def counted(self: Any, run: Any, given: Any) -> Any:
        replay, number = record(self, run, given), len(found)
        found.append(0)

        def count() -> Any:
            found[number] += 1
            return replay()

        return count

    CpuRecorder.record = counted
    try:
        yield found
    finally:
        CpuRecorder.record = record


def of(name: str, call: str) -> dict[str, Any]:
    given = arguments(BY_NAME[name], call, **STEPS)
    if "Qwen" in name:  # a prompt that is not padded has no mask
        del given["prompt_embeds_mask"]
    return given


@pytest.mark.parametrize(
    ("name", "call", "recorded"),
    [
        ("FluxInpaintPipeline", "true CFG", 2),
        ("FluxFillPipeline", "plain", 1),
        ("Flux2KleinInpaintPipeline", "plain", 2),
        ("QwenImageEditInpaintPipeline", "plain", 1),
        ("StableDiffusion3InpaintPipeline", "plain", 1),
        ("ZImageInpaintPipeline", "plain", 1),
        ("BriaFibo2Pipeline", "plain", 2),
        ("JoyImageEditPipeline", "plain", 2),
        ("FluxInpaintPipeline", "two photos, two masks", 2),
    ],
)
def test_a_captured_edit_is_the_same_to_the_bit(name, call, recorded):
    """One recording a branch of guidance and a lane serves both spans between refreshes."""
    family = BY_NAME[name]
    pipe, given = family.make(torch.float32), of(name, call)
    plain, captured = both()
    expected = steps(family, pipe, compress(pipe, plain), given)
    fast = compress(pipe, captured)
    with recordings() as found:
        seen = steps(family, pipe, fast, of(name, call))
    assert all(torch.equal(a.end, b.end) for a, b in zip(seen, expected, strict=True))
    between = len(seen) - len(fast.last_run.refreshed)
    assert found == [between - 1] * recorded  # all but the first


@pytest.mark.parametrize(
    "methods",
    [
        both(store="float8"),
        both(store="bfloat16", text=True, bucket=32),
        both(blocks="1"),
        both("auto", drift=0.5),
        both(options={"context": "sampled", "bucket": 8}),  # weights
    ],
    ids=["float8", "text", "blocks", "auto", "weights"],
)
def test_so_it_is_with_every_option(methods):
    pipe = make_pipe()
    plain, captured = (latents(compress(pipe, method), **STEPS) for method in methods)
    assert torch.equal(plain, captured)


def test_later_calls_under_other_masks_and_prompts_record_anew():
    pipe = make_pipe()
    fast, plain = (compress(pipe, method) for method in both()[::-1])
    others: list[dict[str, Any]] = [
        {}, {"mask_image": make_mask(box=(150, 30, 200, 80))},
        {"prompt_embeds": torch.randn(1, 9, 16), "num_inference_steps": 7},
    ]  # fmt: skip
    with recordings() as found, torch.inference_mode():
        for changes in others:
            given = STEPS | changes
            assert torch.equal(latents(fast, **given), latents(plain, **given))
    assert found == [5, 5, 4]


@dataclass(frozen=True)
class Flipping(HiLo):
    """The edit goes over to the other side of the picture on the way."""

    def replan(self, step: int, plan: TokenPlan) -> TokenPlan:
        return replace(plan, edit_N=plan.edit_N.flip(0)) if step == 3 else plan


def test_another_plan_on_the_way_is_recorded_anew():
    """Of which a model that gathers its tokens inside would run the one before."""
    family = BY_NAME["StableDiffusion3InpaintPipeline"]
    pipe, seen = family.make(torch.float32), []
    with recordings() as found:
        for captured in (False, True):
            method = Flipping(detail=1.0, coarse=0, refresh=Refresh(AT, capture=captured))
            seen.append(steps(family, pipe, compress(pipe, method), arguments(family, **STEPS))[-1])
    assert torch.equal(seen[0].end, seen[1].end)
    assert len(found) == 2


def changing(act: Callable[[Any, int, dict], Any]) -> dict[str, Any]:
    """Arguments by which something happens at the end of every step."""

    def callback(pipe, step, timestep, given):
        return act(pipe, step, given) or given

    names = ["latents", "prompt_embeds"]
    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}


def prompts(pipe, step, given):
    return given | {"prompt_embeds": given["prompt_embeds"] / 2} if step in (2, 5) else given


def weights(pipe, step, given):
    weight = pipe.transformer.proj_out.weight
    pipe.transformer.proj_out.weight = nn.Parameter(weight / 2 if step == 2 else weight)


def in_place(pipe, step, given):
    pipe.transformer.proj_out.weight.data *= 0.9


def adapters(pipe, step, given):
    pipe.transformer.x_embedder.scaling = {"default": step // 3}


@pytest.mark.parametrize("act", [prompts, weights, in_place, adapters])
def test_what_changes_on_the_way_is_taken_up(act):
    expected, seen = (latents(compress(scaled(), m), **STEPS, **changing(act)) for m in both())
    assert torch.equal(seen, expected)
    still, _ = (latents(compress(scaled(), m), **STEPS) for m in both())
    assert not torch.equal(still, expected)


def scaled() -> Any:
    """A pipeline with a layer that looks as an adapter's does, and acts as one."""
    pipe = make_pipe()

    class Layer(nn.Linear):
        scaling, active_adapters, disable_adapters = {"default": 1}, ("default",), False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 + self.scaling["default"])

    pipe.transformer.x_embedder.__class__ = Layer
    return pipe


def test_nothing_is_left_of_a_run_or_of_one_that_breaks_off(monkeypatch):
    pipe = make_pipe()
    plain, captured = (compress(pipe, method) for method in both())
    expected, alive, record = latents(plain, **STEPS), weakref.WeakSet(), CpuRecorder.record

    def seen(self: Any, run: Any, given: Any) -> Any:
        replay = record(self, run, given)
        alive.add(replay)
        return replay

    def interrupted(self: Any, run: Any, given: Any) -> Any:
        run(*given)
        raise KeyboardInterrupt

    def late(pipe, step, given):
        if step == 5:
            assert len(alive) == 1
            raise Stop

    gc.disable()  # nor is it left to the collector
    try:
        monkeypatch.setattr(CpuRecorder, "record", seen)
        with pytest.raises(Stop):
            latents(captured, **STEPS, **changing(late))
        assert not alive
        monkeypatch.setattr(CpuRecorder, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            latents(captured, **STEPS)
        monkeypatch.setattr(CpuRecorder, "record", seen)
        assert torch.equal(latents(captured, **STEPS), expected)
        assert not alive
    finally:
        gc.enable()
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(latents(plain, **STEPS), expected)


def test_threads_record_one_after_another():
    """As tracing exchanges methods of every module for a while, and puts back what it found."""
    pipe, call, ended = make_pipe(), nn.Module.__call__, {}
    plain, captured = (compress(pipe, method) for method in both())
    expected = latents(plain, **STEPS)

    def run(number: int) -> None:
        parts = pipe.components | {"scheduler": copy.deepcopy(pipe.scheduler)}
        ended[number] = latents(compress(type(pipe)(**parts), captured.method), **STEPS)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(ended[0], expected)
    assert torch.equal(ended[1], expected)
    assert nn.Module.__call__ is call


# What cannot be captured is refused.


def test_the_users_hooks_on_the_model_itself_see_every_step():
    pipe, seen = make_pipe(), []
    handle = pipe.transformer.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    latents(compress(pipe, both()[1]), **STEPS)
    handle.remove()
    assert [x.shape[1] for x in seen] == [256] * 8


def test_a_model_in_which_more_happens_is_refused_by_name():
    pipe = make_pipe()
    model = pipe.transformer
    with pytest.raises(ValueError, match="on CUDA and on the CPU, not on meta"):
        recorder_for(model, FAR)
    block = model.transformer_blocks[0]
    with hooked(block, lambda module, args, kwargs: None):
        recorder_for(model, torch.device("cpu"))  # ours, which another thread may have put there
    handle = block.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ValueError, match=r"transformer_blocks\.0 has a forward hook .*lambda"):
        latents(compress(pipe, both()[1]), **STEPS)
    handle.remove()
    block._hf_hook = object()
    with pytest.raises(ValueError, match="accelerate's, such as offloading"):
        latents(compress(pipe, both()[1]), **STEPS)
    del block._hf_hook
    model.enable_layerwise_casting(torch.float16, torch.float32)
    with pytest.raises(ValueError, match=r"hooks of diffusers' .layerwise_casting"):
        latents(compress(pipe, both()[1]), **STEPS)
    compiled = make_pipe()
    compiled.transformer.compile_repeated_blocks()
    with pytest.raises(ValueError, match="leave FluxTransformer2DModel uncompiled"):
        latents(compress(compiled, both()[1]), **STEPS)
    with pytest.raises(ValueError, match="leave out capture"):
        compress(make_pipe(), both()[1]).open(make_photo(), reuse_context=True)


class Model(nn.Module):
    """Does as it is told."""

    def __init__(self, act: Callable[..., Any]) -> None:
        super().__init__()
        self.act, self.weight = act, nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, number: Any = 1) -> tuple[Tensor]:
        return (self.act(x, number) * self.weight,)


@pytest.mark.parametrize(
    "act",
    [
        lambda x, number: x * x.sum().item(),
        lambda x, number: x[x > 0].sum() * x,
        lambda x, number: x if (x > 0).any() else -x,
        lambda x, number: x + x.nonzero().sum(),
    ],
)
def test_a_pass_that_depends_on_the_host_cannot_be_captured(act):
    model = Model(act)
    replay = Replay(model, CpuRecorder())
    with torch.no_grad():
        replay(model.forward, torch.ones(3))
        with pytest.raises(ValueError, match=r"Model cannot be captured.*leave out capture"):
            replay(model.forward, torch.ones(3))


def test_numbers_stay_and_shapes_may_change():
    model = Model(lambda x, number: x.sum() * number)
    replay = Replay(model, CpuRecorder())
    with torch.no_grad(), recordings() as found:
        for length, number in ((2, 3), (2, 3), (2, 3), (4, 3), (4, 3), (4, 5), (4, 5)):
            x = torch.randn(length)
            assert torch.equal(replay(model.forward, x, number)[0], model(x, number)[0])
        assert found == [2, 1, 1]
        replay(model.forward, x, number=6)
        with pytest.raises(ValueError, match=r"\['number'\] was 6 at one step and 7 at the next"):
            replay(model.forward, x, number=7)
        with pytest.raises(ValueError, match="whether a object that"):
            replay(model.forward, x, number=object())


def test_gradients_and_what_autocast_keeps_are_refused():
    model = Model(lambda x, number: x)
    replay, x = Replay(model, CpuRecorder()), torch.ones(3)
    replay(model.forward, x)
    with pytest.raises(ValueError, match="no gradient goes through"):
        replay(model.forward, x)
    with torch.no_grad(), torch.autocast("cpu"), pytest.raises(ValueError, match="cache_enabled"):
        replay(model.forward, x)


@pytest.mark.parametrize("name", ["ChromaInpaintPipeline", "Kandinsky5I2IPipeline"])
def test_models_that_copy_at_every_pass_are_refused(name):
    family = BY_NAME[name]
    pipe = family.make(torch.float32)
    with pytest.raises(ValueError, match="copies from the host at every pass"):
        compress(pipe, both()[1])(**arguments(family))


def test_so_is_qwen_image_given_padded_prompts():
    family = BY_NAME["QwenImageEditInpaintPipeline"]
    with pytest.raises(ValueError, match="given encoder_hidden_states_mask, as prompts of several"):
        compress(family.make(torch.float32), both()[1])(**arguments(family, **STEPS))


@pytest.mark.parametrize("name", CLASSES)
def test_these_and_no_other_passes_copy_or_wait(name):
    """On the second device, at the last step, of the pass itself: what is diffusers' own counts."""
    family = BY_NAME[name]
    pipe = moved(family.make(torch.float32))
    forward, found = pipe.transformer.forward, []
    with watching() as watch:

        def watched(*args: Any, **kwargs: Any) -> Any:
            before = len(watch.stalls)
            output = forward(*args, **kwargs)
            found.append(watch.stalls[before:])
            return output

        pipe.transformer.forward = watched
        given = arguments(family, num_inference_steps=4)
        far = tree_map(lambda x: x.to(FAR) if isinstance(x, Tensor) else x, given)
        compress(pipe, both((0, 2))[0])(**far)
    assert bool(found[-1]) == (type(pipe.transformer).__name__ in COPYING)
