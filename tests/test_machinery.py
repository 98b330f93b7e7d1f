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
from machinery import MACHINERY, low_rank, low_rank_fused

from hilotoken import compress


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("machinery", MACHINERY, ids=lambda machinery: machinery.__name__)
@of_classes(CLASSES)
def test_beside_it_all_tokens_are_the_plain_pipeline_and_few_land_on_the_source(edit, machinery):
    if machinery in (low_rank, low_rank_fused) and Lack.LOW_RANK in edit.family.lacks:
        pytest.skip(edit.family.lacks[Lack.LOW_RANK])
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


@of_classes(CLASSES, Lack.STEP_CACHE)
def test_a_step_cache_works_also_where_the_pipeline_opens_no_context_for_it(edit):
    family, pipe = edit.family, edit.family.make(torch.float32)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    if not opens_contexts(family):
        with pytest.raises(ValueError, match="context"):
            plain_steps(family, pipe, arguments(family))
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
