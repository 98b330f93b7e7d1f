"""Beside diffusers' own machinery: offloading, casting, adapters, 8-bit weights, backends, caches.

One pipeline of each transformer class; what is said of it holds for the others of its class.
"""

import pytest
import torch
from contract import (
    FEW,
    KEEP_ALL,
    Stop,
    dropped,
    of_classes,
    plain_steps,
    same,
    steps,
    stop_at,
    worst,
)
from diffusers import FirstBlockCacheConfig
from families import CLASSES, arguments, opens_contexts
from family import Lack
from machinery import MACHINERY
from tiny import make_mask
from torch._dynamo.testing import CompileCounterWithBackend

from hilotoken import compress


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("machinery", MACHINERY, ids=lambda machinery: machinery.__name__)
@of_classes(CLASSES)
def test_beside_it_all_tokens_are_the_plain_pipeline_and_few_land_on_the_source(edit, machinery):
    family, pipe = edit.family, edit.family.make(torch.float32)
    machinery(pipe)
    plain = plain_steps(family, pipe, arguments(family))
    assert same(steps(family, pipe, compress(pipe, KEEP_ALL), arguments(family)), plain)
    fast, x0 = compress(pipe, FEW), edit.source()
    for _ in range(2):
        end = steps(family, pipe, fast, arguments(family))[-1].end
        dropped_N = dropped(fast.last_run)
        assert worst(end[:, dropped_N], x0[:, dropped_N]) <= 2e-6 * max(1, x0.abs().max())
    assert same(plain_steps(family, pipe, arguments(family)), plain)


@of_classes(CLASSES, Lack.COMPILED)
def test_compiled_blocks_compile_once_for_all_masks(edit):
    torch._dynamo.reset()
    family, compiled = edit.family, edit.family.make(torch.float32)
    counter = CompileCounterWithBackend("eager")
    compiled.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend=counter)
    lengths, graphs = set(), []
    for box in ((70, 90, 150, 160), (0, 0, 90, 200), (9, 9, 12, 12)):
        given = {"mask_image": make_mask(box=box), "num_inference_steps": 2}
        fast = compress(compiled, FEW)
        ends = steps(family, compiled, fast, edit.arguments(**given))[-1].end
        eager = edit.run(FEW, **given).steps[-1].end
        assert worst(ends, eager) <= 1e-4 * max(1, eager.abs().max())
        lengths.add(fast.last_run.tokens_run)
        graphs.append(counter.frame_count)
    assert len(lengths) == 3
    assert graphs[0] == graphs[-1] > 0


@of_classes(CLASSES, Lack.STEP_CACHE)
def test_a_step_cache_works_or_is_refused_as_diffusers_refuses_it(edit):
    family, pipe = edit.family, edit.family.make(torch.float32)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    if not opens_contexts(family):
        with pytest.raises(ValueError, match="context"):
            compress(pipe, FEW)(**arguments(family))
        return
    kept = steps(family, pipe, compress(pipe, KEEP_ALL), arguments(family))
    assert same(kept, edit.ran().steps)
    fast = compress(pipe, FEW)
    expected = steps(family, pipe, fast, arguments(family))
    # A run broken off in the middle must not lend its state to one of another length.
    handle = pipe.transformer.register_forward_hook(stop_at(2))
    with pytest.raises(Stop):
        compress(pipe, KEEP_ALL)(**arguments(family))
    handle.remove()
    assert same(steps(family, pipe, fast, arguments(family)), expected)
