"""The contract of the design on every pipeline of the table, tiny and real, with random weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import family_chroma
import family_flux
import family_flux2
import family_longcat
import family_qwen
import family_sd3
import family_zimage
import numpy as np
import pytest
import torch
from family import Family
from test_contract import Stop, state, stop_third, worst
from tiny import GRID, TOKENS, fixed, inside, make_photo
from torch import Tensor

from hilotoken import HiLo, compress
from hilotoken.attention import rerouted
from hilotoken.plan import POSITIONS

FAMILIES: list[Family] = [
    *family_flux.FAMILIES, *family_qwen.FAMILIES, *family_sd3.FAMILIES, *family_zimage.FAMILIES,
    *family_flux2.FAMILIES, *family_chroma.FAMILIES, *family_longcat.FAMILIES,
]  # fmt: skip
FEW = HiLo(dilate=1, detail=0.05, coarse=0, bucket=8)
KEEP_ALL = HiLo(detail=1.0, coarse=0)
INF = float("inf")

# Ways of calling that every pipeline has; a family adds its own.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "two images": lambda: {"num_images_per_prompt": 2},
    "unseeded": lambda: {"generator": None},
}
ROWS = [
    pytest.param(family, name, id=f"{family.name}-{name}")
    for family in FAMILIES
    for name in {**CALLS, **family.calls}
]
every_call = pytest.mark.parametrize(("family", "call"), ROWS)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(autouse=True)
def skip_what_is_said_to_lack(request):
    """A cell that does not hold is skipped with the reason that the docs give."""
    given = getattr(request.node, "callspec", None)
    family = given.params.get("family") if given else None
    cell = request.node.originalname.removeprefix("test_")
    for key in (cell, given and given.params.get("call")) if family else ():
        if key in family.lacks:
            pytest.skip(family.lacks[key])


def arguments(family: Family, call: str = "plain", dtype=torch.float32, **changes) -> dict:
    torch.manual_seed(3)
    made = family.arguments(dtype=dtype, **({**CALLS, **family.calls}[call]() | changes))
    return {k: v.to(dtype) if "embeds" in k and isinstance(v, Tensor) else v
            for k, v in made.items()}  # fmt: skip


def names_of(family: Family) -> tuple[str, str]:
    """What the pipeline calls the photo and its mask."""
    controls = "control_mask" in family.arguments()
    return ("control_image", "control_mask") if controls else ("image", "mask_image")


@contextmanager
def stepping(pipe) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Velocity and outcome of every step of the scheduler, before the pipeline blends anything."""
    original, seen = pipe.scheduler.step, []

    def step(velocity, *args, **kwargs):
        result = original(velocity, *args, **kwargs)
        seen.append((velocity.clone(), result[0].clone()))
        return result

    pipe.scheduler.step = step
    try:
        yield seen
    finally:
        del pipe.scheduler.step


def steps(family: Family, pipe, run, given: dict) -> list[tuple[Tensor, Tensor]]:
    """Velocity and outcome of every step, as tokens."""
    with stepping(pipe) as seen:
        run(**given)
    return [tuple(family.tokens(pipe, part) for part in pair) for pair in seen]  # type: ignore[misc]


def plain_arguments(family: Family, pipe, given: dict) -> dict:
    """Those that the pipeline itself takes: instruction editing has no mask."""
    import inspect

    takes = "mask_image" in inspect.signature(pipe.__call__).parameters
    return given if takes else {k: v for k, v in given.items() if k != "mask_image"}


def plain_steps(family: Family, pipe, given: dict) -> list[tuple[Tensor, Tensor]]:
    return steps(family, pipe, pipe, plain_arguments(family, pipe, given))


@every_family
def test_the_tiny_pipeline_listens(family):
    pipe = family.make(torch.float32)
    plain = plain_steps(family, pipe, arguments(family))[-1][1]
    assert plain.shape[1] == TOKENS
    assert plain.std() > 0.1
    embeds = [k for k in arguments(family) if k.endswith("prompt_embeds")]
    for change in ({names_of(family)[0]: make_photo(seed=5)}, *({k: None} for k in embeds[:1])):
        given = arguments(family)
        for key, value in change.items():
            negated = given[key]
            if value is None:
                value = [-x for x in negated] if isinstance(negated, list) else -negated
            given[key] = value
        assert worst(plain_steps(family, pipe, given)[-1][1], plain) > 1e-3


HALF = [
    pytest.param(family, "plain", torch.bfloat16, id=f"{family.name}-half") for family in FAMILIES
]


@pytest.mark.parametrize(
    ("family", "call", "dtype"),
    [*HALF, *(pytest.param(*row.values, torch.float32, id=row.id) for row in ROWS)],
)
def test_keeping_every_token_equals_the_untouched_pipeline(family, call, dtype):
    pipe = family.make(dtype)
    given = arguments(family, call, dtype)
    plain = plain_steps(family, pipe, given)
    fast = compress(pipe, KEEP_ALL)
    kept = steps(family, pipe, fast, arguments(family, call, dtype))
    assert fast.last_run.keep_ratio == 1
    for (velocity, end), (plain_velocity, plain_end) in zip(kept, plain, strict=True):
        assert torch.equal(velocity, plain_velocity)
        assert torch.equal(end, plain_end)


@every_family
def test_a_permutation_of_all_tokens_equals_it(family):
    pipe = family.make(torch.float32)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    plain = plain_steps(family, pipe, arguments(family))
    mixed = steps(family, pipe, compress(pipe, fixed(order)), arguments(family))
    for (_, end), (_, plain_end) in zip(mixed, plain, strict=True):
        assert worst(end, plain_end) <= 2e-6 * max(1, plain_end.abs().max())


@pytest.mark.parametrize("kept", [40, 200])
@every_family
def test_dropping_tokens_equals_a_key_mask_on_them(family, kept):
    """In one call of the transformer; a reference of the photo drops the same tokens."""
    pipe = family.make(torch.float32)
    keep_K = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(1))[:kept].sort().values
    fast = compress(pipe, fixed(keep_K))
    given = {"num_inference_steps": 1} | (
        {"strength": 1.0} if "strength" in arguments(family) else {}
    )
    short = steps(family, pipe, fast, arguments(family, **given))[0][0]
    full = fast.last_run.sequence[0]
    seen_T = torch.zeros(full, dtype=torch.bool)
    for start in range(0, full, TOKENS):
        seen_T[start + keep_K] = True

    def attend(module, query, key, value, original, **kwargs):
        extra = key.shape[1] - full
        if extra < 0:  # text alone
            return original(query, key, value, **kwargs)
        seen_S = torch.ones(key.shape[1], dtype=torch.bool)
        seen_S[:full] = seen_T
        if not family.image_first:
            seen_S = seen_S.roll(extra)
        mask = seen_S.expand(1, 1, query.shape[1], -1)
        given = kwargs.get("attn_mask")
        if given is not None:
            mask = mask & given if given.dtype == torch.bool else given.masked_fill(~mask, -INF)
        return original(query, key, value, **kwargs | {"attn_mask": mask})

    with rerouted(pipe.transformer, attend):
        masked = plain_steps(family, pipe, arguments(family, **given))[0][0]
    dense = plain_steps(family, pipe, arguments(family, **given))[0][0]
    short, masked, dense = (x[:, keep_K] for x in (short, masked, dense))
    assert worst(short, masked) <= 2e-6 * masked.abs().max()
    if kept < 100:
        assert worst(short, dense) > 1e-4  # the others were seen there


@every_call
def test_a_dropped_token_ends_on_the_source(family, call):
    pipe = family.make(torch.float32)
    fast = compress(pipe, FEW)
    end = steps(family, pipe, fast, arguments(family, call))[-1][1]
    dropped_N = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, fast.last_run.plan.keep_K, False)
    assert dropped_N.sum() > 60
    x0 = family.source(pipe, arguments(family, call))
    x0 = x0.repeat(len(end) // len(x0), 1, 1)
    assert worst(end[:, dropped_N], x0[:, dropped_N]) <= 2e-6 * max(1, x0.abs().max())


@pytest.mark.parametrize("positions", POSITIONS)
@every_family
def test_coarse_tokens_count_and_dropped_ones_still_follow(family, positions):
    pipe = family.make(torch.float32)
    options = {"dilate": 1, "detail": 0.05, "bucket": 1}
    fast = compress(pipe, HiLo(positions=positions, **options))
    if f"positions {positions}" in family.lacks:
        with pytest.raises(ValueError, match="positions"):
            fast(**arguments(family))
        return
    end = steps(family, pipe, fast, arguments(family))[-1][1]
    plan = fast.last_run.plan
    assert plan.counts["coarse"] > 4
    dropped_N = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, plan.keep_K, False)
    x0 = family.source(pipe, arguments(family))
    assert worst(end[:, dropped_N], x0[:, dropped_N]) <= 2e-6 * max(1, x0.abs().max())
    without = steps(family, pipe, compress(pipe, HiLo(coarse=0, **options)), arguments(family))
    assert worst(end[:, plan.keep_K], without[-1][1][:, plan.keep_K]) > 1e-4


@every_family
def test_a_key_of_count_n_weighs_as_that_key_n_times(family):
    pipe = family.make(torch.float32)
    counts = torch.randint(1, 4, (TOKENS,), generator=torch.Generator().manual_seed(0))
    once, repeated = torch.arange(TOKENS), torch.arange(TOKENS).repeat_interleave(counts)
    weighted, unweighted, duplicated = (
        steps(family, pipe, compress(pipe, method), arguments(family, num_inference_steps=2))[0][0]
        for method in (fixed(once, counts.float(), weighted=True), fixed(once), fixed(repeated))
    )
    assert worst(weighted, duplicated) <= 1e-5 * max(1, weighted.abs().max())
    assert worst(weighted, unweighted) > 1e-3


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@every_family
def test_pixels_outside_the_mask_are_the_photos(family, output_type):
    pipe = family.make(torch.float32)
    image = compress(pipe)(**arguments(family, output_type=output_type))[0][0]
    photo, mask = (arguments(family)[name] for name in names_of(family))
    photo, mask = np.asarray(photo), inside(mask)
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).numpy()
    exact = photo if output_type == "pil" else photo.astype(np.float32) / 255
    image = np.asarray(image)
    assert image.shape == photo.shape
    assert np.array_equal(image[~mask], exact[~mask])
    assert (image[mask] != exact[mask]).mean() > 0.5


@pytest.mark.parametrize("place", ["none", "block"])
@every_family
def test_the_pipeline_afterwards_equals_the_pipeline_before(family, place):
    pipe = family.make(torch.float32)
    plain, before = plain_steps(family, pipe, arguments(family)), state(pipe)
    fast = compress(pipe, HiLo())
    if place == "none":
        fast(**arguments(family, output_type="pil"))
    else:
        names = ("blocks.0", "layers.0")
        block = next(m for n, m in pipe.transformer.named_modules() if n.endswith(names))
        handle = block.register_forward_hook(stop_third())
        with pytest.raises(Stop):
            fast(**arguments(family, num_inference_steps=4))
        handle.remove()
        assert fast.last_run is None
    assert state(pipe) == before
    for thing in (pipe.scheduler, pipe.image_processor, getattr(pipe, "mask_processor", pipe)):
        assert not {"preprocess", "resize", "scale_noise", "_encode_vae_image"} & set(vars(thing))
    again = plain_steps(family, pipe, arguments(family))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(again, plain, strict=True))


@every_call
def test_generators_end_where_the_plain_pipeline_leaves_them(family, call):
    pipe = family.make(torch.float32)

    def after(run, given):
        run(**given)
        user = given.get("generator")
        return [torch.get_rng_state(), *([user.get_state()] if user else [])]

    plain = after(pipe, plain_arguments(family, pipe, arguments(family, call)))
    fast = compress(pipe, HiLo(score="random", context="sampled"))
    for found in (
        after(fast, arguments(family, call)),
        after(compress(pipe), arguments(family, call)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


@every_family
def test_same_seed_same_result(family):
    pipe = family.make(torch.float32)
    fast = compress(pipe, HiLo(context="sampled", seed=3))
    first, second = (steps(family, pipe, fast, arguments(family))[-1][1] for _ in range(2))
    assert torch.equal(first, second)


@every_family
def test_references_are_shortened_alike_or_left_whole(family):
    pipe = family.make(torch.float32)
    fast, whole = compress(pipe, FEW), compress(pipe, HiLo(**vars(FEW) | {"references": "whole"}))
    for run in (fast, whole):
        run(**arguments(family))
    full, run = fast.last_run.sequence
    assert full % TOKENS == 0
    assert run == full // TOKENS * fast.last_run.tokens_run
    assert whole.last_run.sequence == (full, whole.last_run.tokens_run + full - TOKENS)


@every_family
def test_without_photo_or_mask_nothing_is_compressed(family):
    pipe = family.make(torch.float32)
    given = arguments(family)
    del given[names_of(family)[1]]
    with pytest.raises((ValueError, TypeError), match="mask"):
        compress(pipe)(**given)
    assert GRID == (16, 16)
