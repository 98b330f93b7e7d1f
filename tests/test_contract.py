"""The contract of the design on every pipeline of the table, tiny and real, with random weights.

The pipeline is as it was before after every one of these tests: the fixture `edit` sees to it.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from contract import (
    FEW,
    KEEP_ALL,
    Edit,
    Stop,
    dropped,
    edits,
    every_call,
    every_edit,
    rows,
    same,
    stop_at,
    whole_controlnet,
    worst,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from families import BY_NAME, FAMILIES, names_of, plain_arguments
from family import Lack
from tiny import TOKENS, fixed, inside, make_mask, make_photo
from torch import Tensor, nn

from hilotoken import HiLo, compress
from hilotoken.attention import rerouted
from hilotoken.methods.hilo import COARSE_CELLS
from hilotoken.plan import POSITIONS

INF = float("inf")
FAST = HiLo(dilate=1, detail=0.05, bucket=8)
SAMPLED = HiLo(score="random", context="sampled", seed=3)
# In half precision every row is called plainly, and these two in every way.
HALVES = rows(dtypes=[torch.bfloat16]) + [
    row
    for row in rows("every", [torch.bfloat16])
    if row[0].name in ("FluxFillPipeline", "FluxInpaintPipeline") and row[1] != "plain"
]


def places_mixed_up(transformer: Any) -> AbstractContextManager[Any]:
    """Every token stands where another did, and is what it was."""
    if hasattr(transformer, "rope_embedder"):
        return patch.object(transformer, "rope_embedder", turned(transformer.rope_embedder))
    if hasattr(transformer, "visual_rope_embeddings"):  # Kandinsky's
        embeddings = transformer.visual_rope_embeddings
        original = embeddings.forward
        return patch.object(embeddings, "forward", lambda *given: original(*given).flip(2))
    for name in ("get_rotary_pos_embed", "_get_rotary_pos_embed_for_range"):  # JoyImage's
        if hasattr(transformer, name):
            return patch.object(transformer, name, turned(getattr(transformer, name)))
    embed = transformer.pos_embed
    name = "cropped_pos_embed" if hasattr(embed, "cropped_pos_embed") else "forward"
    return patch.object(embed, name, turned(getattr(embed, name)))


def turned(places: Callable[..., Any]) -> Callable[..., Any]:
    def turn(found: Any) -> Any:
        if isinstance(found, Tensor):
            return found.flip(found.ndim - 2)
        return found and tuple(map(turn, found))

    return lambda *args, **kwargs: turn(places(*args, **kwargs))


def negated(value: Any) -> Any:
    return [-x for x in value] if isinstance(value, list) else -value


@every_edit
def test_the_tiny_pipeline_listens(edit):
    """Else nothing here could fail."""
    plain = edit.ran().steps[-1].end
    assert plain.shape[1] == TOKENS
    assert plain.std() > 0.1
    given = plain_arguments(edit.pipe, edit.arguments())
    photo, mask = names_of(edit.family)
    changes = [{photo: make_photo(seed=5)}]
    changes += [{mask: make_mask(box=(0, 0, 60, 60))}] if mask in given else []
    changes += [{k: negated(given[k])} for k in given if k.endswith("prompt_embeds")]
    changes += [{"guidance_scale": 1.5}] if "guidance_scale" in given else []
    for change in changes:
        assert worst(edit.run(**change).steps[-1].end, plain) > 1e-3, change.keys()
    with places_mixed_up(edit.pipe.transformer):
        assert worst(edit.run().steps[-1].end, plain) > 1e-3


@edits(rows("every") + HALVES)
def test_keeping_every_token_equals_the_untouched_pipeline(edit):
    kept = edit.ran(KEEP_ALL)
    assert kept.record.keep_ratio == 1
    assert same(kept.steps, edit.ran().steps)


@pytest.mark.parametrize("seed", range(2))
@every_edit
def test_a_permutation_of_all_tokens_equals_it(edit, seed):
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed))
    mixed, plain = edit.run(fixed(order)), edit.ran()
    for a, b in zip(mixed.steps, plain.steps, strict=True):
        assert worst(a.end, b.end) <= 2e-6 * max(1, b.end.abs().max())


@pytest.mark.parametrize("kept", [1, 40, 200])
@every_edit
def test_dropping_tokens_equals_a_key_mask_on_them(edit, kept):
    """In one call of the transformer; a reference of the photo drops the same tokens."""
    keep_K = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(1))[:kept].sort().values
    given = {"num_inference_steps": 1}
    given |= {"strength": 1.0} if "strength" in edit.arguments() else {}
    ran = edit.run(fixed(keep_K), **given)
    short, full = ran.steps[0].velocity, ran.record.sequence[0]
    seen_T = torch.zeros(full, dtype=torch.bool)
    for start in range(0, full, TOKENS):
        seen_T[start + keep_K] = True

    def attend(module, query, key, value, original, **kwargs):
        extra = key.shape[1] - full
        if extra < 0:  # text alone
            return original(query, key, value, **kwargs)
        seen_S = torch.ones(key.shape[1], dtype=torch.bool)
        seen_S[:full] = seen_T
        if not edit.family.image_first:
            seen_S = seen_S.roll(extra)
        mask = seen_S.expand(1, 1, query.shape[1], -1)
        given = kwargs.get("attn_mask")
        if given is not None:
            mask = mask & given if given.dtype == torch.bool else given.masked_fill(~mask, -INF)
        return original(query, key, value, **kwargs | {"attn_mask": mask})

    with rerouted(edit.pipe.transformer, attend), whole_controlnet(edit.pipe):
        masked = edit.run(**given).steps[0].velocity
    short, masked = (x[:, keep_K] for x in (short, masked))
    assert worst(short, masked) <= 2e-6 * masked.abs().max()
    if kept < 100:
        dense = edit.run(**given).steps[0].velocity
        assert worst(short, dense[:, keep_K]) > 1e-4  # the others were seen there


@edits(rows("every") + HALVES)
def test_a_dropped_token_ends_on_the_source(edit):
    ran = edit.ran(FAST)
    last, x0 = ran.steps[-1], edit.source()
    dropped_BN = torch.stack([dropped(ran.record, i) for i in range(len(last.end))])
    assert (dropped_BN.sum(1) > 60).all()
    x0 = x0.repeat(len(last.end) // len(x0), 1, 1)
    before, end, x0 = (x[dropped_BN].float() for x in (last.before, last.end, x0))
    if edit.dtype is torch.float32:
        assert worst(end, x0) <= 2e-6 * max(1, x0.abs().max())
    else:  # the scheduler rounds dt, dt * v and the sum, and v was rounded: half a unit each
        size = 3 * (before - x0).abs() + x0.abs()
        assert ((end - x0).abs() <= 1.02 * torch.finfo(edit.dtype).eps / 2 * size).all()


COARSE = [(family, kind, "open") for family in FAMILIES for kind in POSITIONS] + [
    (BY_NAME[name], kind, cells)
    for name in ("FluxFillPipeline", "FluxFillPipeline, AutoencoderTiny", "FluxInpaintPipeline")
    for kind in POSITIONS
    for cells in COARSE_CELLS
    if cells != "open"
]


@pytest.mark.parametrize(
    ("edit", "positions", "cells"),
    [
        pytest.param((family,), kind, cells, id=f"{family.name}-{kind}-{cells}")
        for family, kind, cells in COARSE
    ],
    indirect=["edit"],
)
def test_coarse_tokens_count_and_dropped_ones_still_follow(edit, positions, cells):
    options = {"dilate": 1, "detail": 0.05, "bucket": 1}
    method = HiLo(positions=positions, coarse_cells=cells, **options)
    if positions == "aligned" and Lack.ALIGNED in edit.family.lacks:
        with pytest.raises(ValueError, match="positions"):
            edit.run(method)
        return
    ran = edit.run(method)
    end, plan = ran.steps[-1].end, ran.record.plan
    assert plan.counts["coarse"] > 4
    dropped_N, x0 = dropped(ran.record), edit.source()
    assert worst(end[:, dropped_N], x0[:, dropped_N]) <= 2e-6 * max(1, x0.abs().max())
    without = edit.ran(HiLo(coarse=0, **options)).steps[-1].end
    assert worst(end[:, plan.keep_K], without[:, plan.keep_K]) > 1e-4


@every_edit
def test_a_key_of_count_n_weighs_as_that_key_n_times(edit):
    counts = torch.randint(1, 4, (TOKENS,), generator=torch.Generator().manual_seed(0))
    once, repeated = torch.arange(TOKENS), torch.arange(TOKENS).repeat_interleave(counts)
    weighted, unweighted, duplicated = (
        edit.run(method, num_inference_steps=2).steps[0].velocity
        for method in (fixed(once, counts.float(), weighted=True), fixed(once), fixed(repeated))
    )
    assert worst(weighted, duplicated) <= 1e-5 * max(1, weighted.abs().max())
    assert worst(weighted, unweighted) > 1e-3


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@every_edit
def test_pixels_outside_the_mask_are_the_photos(edit, output_type):
    image = compress(edit.pipe)(**edit.arguments(output_type=output_type))[0][0]
    photo, mask = (edit.arguments()[name] for name in names_of(edit.family))
    photo = photo[0] if isinstance(photo, list) else photo
    photo, mask = np.asarray(photo), inside(mask)
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).numpy()
    exact = photo if output_type == "pil" else photo.astype(np.float32) / 255
    image = np.asarray(image)
    assert image.shape == photo.shape
    assert np.array_equal(image[~mask], exact[~mask])
    assert (image[mask] != exact[mask]).mean() > 0.5


class Unplannable(HiLo):
    def plan(self, photo_B3HW, mask_B1HW, grid):
        raise Stop


@contextmanager
def broken_off(pipe: Any, place: str) -> Iterator[None]:
    """A run in this context is broken off in its second step."""
    names = ("blocks.0", "layers.0")
    block = next(m for n, m in pipe.transformer.named_modules() if n.endswith(names))
    watched, step = stop_at(2), pipe.scheduler.step
    breaking = {
        "block": lambda: block.register_forward_hook(stop_at(3)),
        "step": lambda: patch.object(
            pipe.scheduler, "step", lambda *args, **kwargs: watched() or step(*args, **kwargs)
        ),
        "decoder": lambda: pipe.vae.decoder.register_forward_hook(stop_at(1)),
    }.get(place, nullcontext)
    with breaking(), pytest.raises(Stop):
        yield


@pytest.mark.parametrize("place", ["nowhere", "plan", "block", "step", "decoder"])
@every_edit
def test_the_pipeline_afterwards_equals_the_pipeline_before(edit, place):
    """Wherever the run was broken off, with hooks and stand-ins of every kind in place."""
    pipe, aligned = edit.pipe, Lack.ALIGNED not in edit.family.lacks
    options = {"weights": True, "positions": "aligned" if aligned else "interpolated"}
    fast = compress(pipe, (Unplannable if place == "plan" else HiLo)(**options))
    given = edit.arguments(output_type="pil", num_inference_steps=4)
    if place == "nowhere":
        fast(**given)
    else:
        with broken_off(pipe, place):
            fast(**given)
        assert fast.last_run is None
    edit.check()
    assert same(edit.run().steps, edit.ran().steps)


@every_call
def test_generators_end_where_the_plain_pipeline_leaves_them(edit):
    for method in (FAST, SAMPLED) if edit.call == "plain" else (FAST,):
        ends = zip(edit.ran(method).generators, edit.ran().generators, strict=True)
        assert all(torch.equal(ours, plain) for ours, plain in ends)


@every_edit
def test_same_seed_same_result(edit):
    assert same(edit.run(SAMPLED).steps, edit.ran(SAMPLED).steps)
    other = edit.run(SAMPLED, generator=torch.Generator().manual_seed(8))
    assert not same(other.steps, edit.ran(SAMPLED).steps)


@every_edit
def test_references_are_shortened_alike_or_left_whole(edit):
    short = edit.ran(FEW).record
    whole = edit.run(HiLo(**vars(FEW) | {"references": "whole"})).record
    full, run = short.sequence
    assert full % TOKENS == 0
    assert run == full // TOKENS * short.tokens_run
    assert whole.sequence == (full, whole.tokens_run + full - TOKENS)


@every_edit
def test_without_a_mask_nothing_is_compressed(edit):
    given = edit.arguments()
    del given[names_of(edit.family)[1]]
    with pytest.raises((ValueError, TypeError), match="mask"):
        compress(edit.pipe)(**given)


MARKS: dict[str, Callable[[Any], Any]] = {
    "a hook": lambda pipe: pipe.transformer.register_forward_pre_hook(lambda *_: None),
    "a hook inside": lambda pipe: pipe.vae.decoder.conv_in.register_forward_hook(lambda *_: None),
    "a method shadowed": lambda pipe: setattr(pipe.scheduler, "step", pipe.scheduler.step),
    "a module's call shadowed": lambda pipe: setattr(
        pipe.transformer.x_embedder, "forward", pipe.transformer.x_embedder.forward
    ),
    "an attribute": lambda pipe: setattr(pipe.transformer.x_embedder, "kept", None),
    "an attribute of the pipeline": lambda pipe: setattr(pipe, "kept", None),
    "a weight": lambda pipe: pipe.transformer.x_embedder.weight.data.view(-1)[0].add_(1e-6),
    "a weight in the place of another": lambda pipe: setattr(
        pipe.transformer.x_embedder, "bias", nn.Parameter(pipe.transformer.x_embedder.bias.data)
    ),
    "a processor": lambda pipe: pipe.transformer.set_attn_processor(FluxAttnProcessor()),
    "a submodule": lambda pipe: setattr(pipe.transformer, "x_embedder", nn.Linear(16, 32)),
    "the mode of training": lambda pipe: pipe.transformer.pos_embed.eval(),
    "a scheduler": lambda pipe: setattr(pipe, "scheduler", copy.copy(pipe.scheduler)),
    "a setting": lambda pipe: pipe.scheduler.register_to_config(shift=2.0),
}


@pytest.mark.parametrize("kind", MARKS)
def test_a_mark_left_on_a_pipeline_is_found(kind):
    """The check at the end of every test can fail."""
    edit = Edit(BY_NAME["FluxFillPipeline"])
    edit.check()
    MARKS[kind](edit.pipe)
    with pytest.raises(AssertionError, match="left its mark on"):
        edit.check()
    edit.check()  # the next test is lent another


def test_a_class_that_was_patched_is_found():
    edit = Edit(BY_NAME["FluxFillPipeline"])
    pipe = edit.pipe
    with (
        patch.object(type(pipe), "__call__", type(pipe).__call__),
        patch.object(type(pipe.transformer), "forward", lambda *_: None),
        pytest.raises(AssertionError, match="class FluxTransformer2DModel"),
    ):
        edit.check()
