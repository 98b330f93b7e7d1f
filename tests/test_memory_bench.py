"""Memory predicted on the meta device, against what is counted by hand."""

import pytest
import torch

from hilotoken.bench.measure import memory
from hilotoken.bench.measure.memory import bench_memory, peak_bytes


def test_a_peak_is_what_lives_at_once():
    def run():
        a = torch.empty(100, dtype=torch.float32)  # 400
        b = a + 1  # 800
        c = b.view(10, 10)[:5]  # a view is nothing more
        del a, b
        return c * 2  # 400 that c holds, and 200

    assert peak_bytes(run) == 800
    assert peak_bytes(lambda: [torch.empty(50) for _ in range(3)]) == 3 * 100  # bfloat16


@pytest.fixture(scope="module")
def rows():
    return {(r.model, r.preset, r.store): r for r in bench_memory(["flux"], ["fast"], [512])}


def test_kept_keys_are_those_of_the_context_and_its_text(rows):
    row = rows["flux", "fast", "as they are"]
    edit = row.tokens_run - row.kept_gb * 1e9 / (2 * 3072 * 57 * 2) + 512
    assert edit == pytest.approx(round(edit), abs=1e-6)
    assert 0 < edit < row.tokens_run
    assert rows["flux", "fast", "float8"].kept_gb == pytest.approx(row.kept_gb / 2)


def test_flux_is_as_large_as_it_is_published_and_cards_follow(rows):
    made = memory._Made.of(memory.MODELS["flux"])
    assert made.weights / 2 == pytest.approx(11.9e9, rel=0.01)
    row = rows["flux", "fast", "as they are"]
    assert row.all_gb > row.offload_gb > 23.8 > row.group_gb
    assert (row.fits_all, row.fits_offload, row.fits_group) == (48, 48, 12)


def test_what_is_not_known_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown model 'sdxl'; choose from"):
        next(bench_memory(["sdxl"], ["fast"], [512]))
    with pytest.raises(ValueError, match="multiple of 16 pixels, got 500"):
        next(bench_memory(["flux"], ["fast"], [500]))
