"""Beside diffusers' own machinery: offloading, casting, adapters, 8-bit weights, backends, caches.

One pipeline of each transformer class; what is said of it holds for the others of its class.
"""

import threading

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from family import Family
from peft import LoraConfig
from test_contract import Stop, worst
from test_families import FAMILIES, FEW, KEEP_ALL, arguments, plain_arguments, plain_steps, steps
from tiny import TOKENS, make_mask
from torch._dynamo.testing import CompileCounterWithBackend
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from hilotoken import compress

BY_NAME = {family.name: family for family in FAMILIES}
CHOSEN = [
    "FluxInpaintPipeline", "FluxKontextPipeline", "Flux2KleinInpaintPipeline",
    "ChromaInpaintPipeline", "LongCatImageEditPipeline", "BriaFiboEditPipeline",
    "QwenImageEditInpaintPipeline", "StableDiffusion3InpaintPipeline", "ZImageInpaintPipeline",
]  # fmt: skip
every_class = pytest.mark.parametrize(
    "family", [BY_NAME[name] for name in CHOSEN if name in BY_NAME], ids=lambda family: family.name
)


def offload_models(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def offload_groups(pipe):
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="leaf_level"
    )


def cast_layerwise(pipe):
    pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


def weights_of_eight_bits(pipe):
    quantize_(pipe.transformer, Int8WeightOnlyConfig())


def low_rank(pipe):
    linear = torch.nn.Linear
    layers = [n for n, m in pipe.transformer.named_modules() if isinstance(m, linear)]
    names = [name for name in layers if name.endswith((".to_q", ".to_v"))]
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))


def low_rank_fused(pipe):
    low_rank(pipe)
    pipe.transformer.fuse_lora()


def another_backend(pipe):
    pipe.transformer.set_attention_backend("_native_math")


MACHINERY = [
    offload_models, offload_groups, cast_layerwise, weights_of_eight_bits, low_rank,
    low_rank_fused, another_backend,
]  # fmt: skip


@pytest.fixture(autouse=True)
def skip_what_is_said_to_lack(request):
    given = getattr(request.node, "callspec", None)
    for value in given.params.values() if given else ():
        name = getattr(value, "__name__", request.node.originalname.removeprefix("test_"))
        name = name.replace("_", " ")
        if given and name in given.params["family"].lacks:
            pytest.skip(given.params["family"].lacks[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("machinery", MACHINERY, ids=lambda machinery: machinery.__name__)
@every_class
def test_beside_it_all_tokens_are_the_plain_pipeline_and_few_land_on_the_source(family, machinery):
    pipe = family.make(torch.float32)
    machinery(pipe)
    plain = plain_steps(family, pipe, arguments(family))
    kept = steps(family, pipe, compress(pipe, KEEP_ALL), arguments(family))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(kept, plain, strict=True))
    fast = compress(pipe, FEW)
    for _ in range(2):
        end = steps(family, pipe, fast, arguments(family))[-1][1]
        keep_K = fast.last_run.plan.keep_K
        dropped_N = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, keep_K, False)
        x0 = family.source(pipe, arguments(family))
        assert worst(end[:, dropped_N], x0[:, dropped_N]) <= 2e-6 * max(1, x0.abs().max())
    again = plain_steps(family, pipe, arguments(family))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(again, plain, strict=True))


@every_class
def test_compiled_blocks_compile_once_for_all_masks(family):
    torch._dynamo.reset()
    pipe, compiled = family.make(torch.float32), family.make(torch.float32)
    counter = CompileCounterWithBackend("eager")
    compiled.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend=counter)
    lengths, graphs = set(), []
    for box in ((70, 90, 150, 160), (0, 0, 90, 200), (9, 9, 12, 12)):
        given = {"mask_image": make_mask(box=box), "num_inference_steps": 2}
        fast = compress(compiled, FEW)
        ends = steps(family, compiled, fast, arguments(family, **given))[-1][1]
        eager = steps(family, pipe, compress(pipe, FEW), arguments(family, **given))[-1][1]
        assert worst(ends, eager) <= 1e-4 * max(1, eager.abs().max())
        lengths.add(fast.last_run.tokens_run)
        graphs.append(counter.frame_count)
    assert len(lengths) == 3
    assert graphs[0] == graphs[-1] > 0


def opens_contexts(family: Family) -> bool:
    return any(word in family.name for word in ("Qwen", "Klein", "LongCat"))


@every_class
def test_a_step_cache_works_or_is_refused_as_diffusers_refuses_it(family):
    pipe = family.make(torch.float32)
    plain = plain_steps(family, pipe, arguments(family))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    if not opens_contexts(family):
        with pytest.raises(ValueError, match="context"):
            compress(pipe, FEW)(**arguments(family))
        return
    kept = steps(family, pipe, compress(pipe, KEEP_ALL), arguments(family))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(kept, plain, strict=True))
    fast = compress(pipe, FEW)
    expected = steps(family, pipe, fast, arguments(family))[-1][1]
    # A run broken off in the middle must not lend its state to one of another length.
    stop = pipe.transformer.register_forward_hook(stop_second())
    with pytest.raises(Stop):
        compress(pipe, KEEP_ALL)(**arguments(family))
    stop.remove()
    assert torch.equal(steps(family, pipe, fast, arguments(family))[-1][1], expected)


def stop_second():
    calls = []

    def hook(*_, **__):
        calls.append(None)
        if len(calls) == 2:
            raise Stop

    return hook


def test_a_pipeline_that_shares_the_transformer_runs_untouched_in_another_thread():
    one, other = BY_NAME["FluxInpaintPipeline"], BY_NAME["FluxImg2ImgPipeline"]
    pipe, plain = one.make(torch.float32), other.make(torch.float32)
    plain.transformer = pipe.transformer
    alone = plain_steps(other, plain, arguments(other))[-1][1]
    compressed = steps(one, pipe, compress(pipe, FEW), arguments(one))[-1][1]
    found = []

    def meanwhile(*_):
        run = lambda: found.append(plain_steps(other, plain, arguments(other))[-1][1])  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return {}

    given = plain_arguments(one, pipe, arguments(one, callback_on_step_end=meanwhile))
    again = steps(one, pipe, compress(pipe, FEW), given)[-1][1]
    assert len(found) == 3
    assert all(torch.equal(image, alone) for image in found)
    assert torch.equal(again, compressed)
