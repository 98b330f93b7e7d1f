"""A short run of the fuzz of photos and masks: `python tests/fuzz_photos.py` is the long one."""

import fuzz_photos
import pytest


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_no_seed_is_a_surprise(start: int) -> None:
    outcomes = {fuzz_photos.run(seed) for seed in range(start, start + 50)}
    assert len(outcomes) > 10  # healthy and damaged photos, masks
