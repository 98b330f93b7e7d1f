"""A photo kept open: the first edit to the bit, later ones from what is kept, nothing left behind."""

import threading

import numpy as np
import pytest
import torch
from contract import Stop, of_classes, stepping, stop_at
from tiny import arguments, make_mask, make_photo, make_pipe

from hilotoken import HiLo, Refresh, compress
from hilotoken.arguments import mask_name, photo_name
from hilotoken.memory import Memory, bytes_of, fingerprint

WHOLE = HiLo(dilate=1, detail=1.0, coarse=0, refresh=(0, 2))
SAMPLED = HiLo(dilate=1, detail=0.05, bucket=8, context="sampled", refresh=(0, 2))
NAMES = ["FluxFillPipeline", "QwenImageEditInpaintPipeline", "FluxInpaintPipeline"]
FAMILIES = of_classes(NAMES)
ELSEWHERE = (150, 30, 200, 80)


def opened(edit, method=WHOLE, **options):
    """A session on a pipeline of the table, its mask, and the other arguments."""
    given = edit.arguments()
    fast = compress(edit.pipe, method)
    photo, mask = given.pop(photo_name(edit.pipe)), given.pop(mask_name(edit.pipe))
    del given["generator"]
    return fast, fast.open(photo, **options), mask, given


def velocities(edit, run):
    """What the run gives, and the velocity of every step."""
    with stepping(edit.pipe) as seen:
        output = run()
    return output, [step.velocity for step in seen]


def moved(edit, mask):
    other = make_mask(box=ELSEWHERE)
    return other.resize(mask.size)


@FAMILIES
def test_the_first_edit_and_every_later_one_equal_an_edit_from_nothing(edit):
    fast, session, mask, given = opened(edit)
    for each, seed in ((mask, 7), (moved(edit, mask), 7), (mask, 8)):
        generator = torch.Generator().manual_seed(seed)
        names = photo_name(edit.pipe), mask_name(edit.pipe)
        alone = given | dict(zip(names, (session.photo, each), strict=True))
        expected = fast(**alone, generator=generator).images
        found = session.edit(each, seed=seed, **given).images
        assert torch.equal(found, expected)
    assert session.last_run.reused["latents"] == 1
    assert session.last_run.reused["prompts"] == 1
    assert session.last_run.reused["context"] == 0
    session.close()
    assert session.bytes == 0


@pytest.mark.parametrize("method", [WHOLE, SAMPLED], ids=["whole", "sampled"])
@of_classes([*NAMES, "ZImageInpaintPipeline"])
def test_a_context_lent_to_the_same_edit_changes_nothing(edit, method):
    _, session, mask, given = opened(edit, method, reuse_context=True)
    pair = [session.edit(mask, seed=7, **given).images for _ in range(2)]
    assert session.last_run.reused["context"] == 1
    edit_N = session.last_run.plan.edit_N
    first, second = (edit.family.tokens(edit.pipe, x)[:, edit_N] for x in pair)
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)
