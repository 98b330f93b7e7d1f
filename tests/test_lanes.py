"""A batch of photos and masks is each of them by itself: same plan, same tokens, same picture."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from contract import Edit, edits, steps, worst
from diffusers import FirstBlockCacheConfig
from families import BY_NAME, calls_of
from tiny import GRID, make_mask
from torch import nn

from hilotoken import HiLo, compress
from hilotoken.bench.measure.steer import steered
from hilotoken.lane import Lane
from hilotoken.methods import Refresh, ToMe, Within

COARSE = HiLo(dilate=1, detail=0.1, bucket=8)
METHODS = {
    "coarse": COARSE,
    "refresh": HiLo(dilate=1, context="sampled", refresh=2, bucket=8),
    "auto": HiLo(dilate=1, coarse=0, refresh=Refresh("auto", drift=0.5)),
}
# Rotary places shared by the batch; of each picture; places that are added, and guidance within the
# batch; a list of pictures, and guidance within it.
NAMES = [
    "FluxInpaintPipeline", "Flux2KleinInpaintPipeline", "StableDiffusion3InpaintPipeline",
    "ZImageInpaintPipeline",
]  # fmt: skip
EDITS = edits(
    [
        (BY_NAME[n], next(c for c in calls_of(BY_NAME[n]) if "two photos" in c), torch.float32)
        for n in NAMES
    ]
)


def one(name: str, call: str = "two photos, two masks") -> pytest.MarkDecorator:
    """One edit of two photos."""
    return edits([(BY_NAME[name], call, torch.float32)])


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(5 + seed)


def both(edit: Edit, **changes: Any) -> dict[str, Any]:
    """Two photos under two masks, each with noise of its own."""
    return edit.arguments(**changes) | {"generator": [noise(0), noise(1)]}


def alone(given: dict[str, Any], number: int) -> dict[str, Any]:
    """The arguments of one of the two."""

    def own(name: str, value: Any) -> Any:
        if name == "generator":
            return noise(number)
        if "embeds" in name or name.endswith("attention_mask"):
            return value[number : number + 1]
        return value[number] if isinstance(value, list) and len(value) == 2 else value

    return {name: own(name, value) for name, value in given.items()}


def check_alone(edit: Edit, fast: Any, given: dict[str, Any], plans: int = 2) -> None:
    """Each of a batch of two is what it is by itself."""
    found = steps(edit.family, fast.pipe, fast, dict(given))
    record = fast.last_run
    assert len(record.plans) == plans
    for number in range(2):
        single = steps(edit.family, fast.pipe, fast, alone(given, number))
        assert torch.equal(fast.last_run.plan.keep_K, record.plans[number % plans].keep_K)
        for of_both, own in zip(found, single, strict=True):
            apart = worst(of_both.velocity[number : number + 1], own.velocity)
            assert apart <= 1e-5 * max(1, own.velocity.abs().max())
            assert worst(of_both.end[number : number + 1], own.end) <= 1e-5
    assert worst(*found[-1].end) > 0.1  # the two are not one


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
@EDITS
def test_each_of_a_batch_is_as_it_is_alone(edit, method):
    check_alone(edit, compress(edit.pipe, method), both(edit))


def lengths(pipe: Any, call: Callable[[], Any]) -> list[tuple[int, ...]]:
    """Batch and tokens, text included, of every call of the transformer's last block."""
    found: list[tuple[int, ...]] = []
    blocks = [m for m in pipe.transformer.modules() if isinstance(m, nn.ModuleList) and len(m)]
    last = next(
        m for m in reversed(blocks) if hasattr(m[-1], "attn") or hasattr(m[-1], "attention")
    )

    def note(module: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        found.append(tuple(hidden.shape[:2]))

    handle = last[-1].register_forward_pre_hook(note, with_kwargs=True)
    call()
    handle.remove()
    return found


@EDITS
def test_each_runs_its_own_tokens_and_no_others(edit):
    fast, given = compress(edit.pipe, COARSE), both(edit)
    together = lengths(edit.pipe, lambda: fast(**given))
    singles = [lengths(edit.pipe, lambda i=i: fast(**alone(both(edit), i))) for i in range(2)]
    one, other = singles
    assert sorted(together) == sorted(one + other)
    assert set(one).isdisjoint(other)  # the masks are of different sizes


ALIKE = {
    "every step": HiLo(dilate=1, detail=0.1, coarse=0, bucket=8),
    "weights": HiLo(dilate=1, detail=0.0, context="sampled", bucket=8),
    "coarse": HiLo(dilate=1, detail=0.1, positions="native", weights=True, bucket=8),
    "refresh": HiLo(dilate=1, detail=0.0, context="sampled", refresh=2, bucket=8),
}
SHARING = edits(
    [
        (BY_NAME[n], next(c for c in calls_of(BY_NAME[n]) if "two photos" in c), torch.float32)
        for n in (*NAMES, "FluxFillPipeline", "QwenImageInpaintPipeline", "ChromaInpaintPipeline")
    ]
)


@pytest.mark.parametrize("method", ALIKE.values(), ids=ALIKE.keys())
@SHARING
def test_photos_that_run_as_many_tokens_share_a_call_and_each_is_as_it_is_alone(edit, method):
    """Two masks of one shape in two places: other tokens, as many of them."""
    masks = [make_mask(box=box) for box in ((48, 64, 112, 144), (144, 96, 208, 176))]
    fast, given = compress(edit.pipe, method), both(edit, mask_image=masks)
    found = lengths(edit.pipe, lambda: check_alone(edit, fast, given))
    record = fast.last_run
    calls = len(found) // 3 if record.refreshed is None else None
    batches = [batch for batch, _ in found]
    assert max(batches) == 2 * min(batches)
    if calls:  # as many together as alone
        assert batches[:calls] == [2 * batch for batch in batches[calls : 2 * calls]]


@pytest.mark.parametrize("name", ["weights", "refresh", "every step"])
@edits(
    [
        (BY_NAME[n], next(c for c in calls_of(BY_NAME[n]) if "two photos" in c), torch.float32)
        for n in ("FluxFillPipeline", "QwenImageInpaintPipeline", "Flux2KleinInpaintPipeline")
    ]
)
def test_photos_that_run_nearly_as_many_tokens_share_a_call_filled_up(edit, name):
    method = replace(ALIKE[name], dilate=2, bucket=1)
    masks = [make_mask(box=box) for box in ((48, 64, 160, 160), (96, 96, 208, 176))]
    fast, given = compress(edit.pipe, method), both(edit, mask_image=masks)
    found = lengths(edit.pipe, lambda: check_alone(edit, fast, given))
    alone = {length for batch, length in found if batch == 1}
    assert len(alone) > 1
    assert (2, max(alone)) in found


@one("FluxInpaintPipeline")
def test_one_that_comes_to_run_every_token_does_not_stop_the_other(edit, monkeypatch):
    """As where one picture's region is found before the other's."""
    arrive = Lane.arrive

    def arrive_and_rest(lane: Lane, call: Any) -> None:
        arrive(lane, call)
        if lane.count > 1 and lane.number == 1 and lane.clock.step == 1:
            lane.rest()

    masks = [make_mask(box=box) for box in ((48, 64, 112, 144), (144, 96, 208, 176))]
    fast, given = compress(edit.pipe, ALIKE["every step"]), both(edit, mask_image=masks)
    single = steps(edit.family, edit.pipe, fast, alone(given, 0))[-1].end
    monkeypatch.setattr(Lane, "arrive", arrive_and_rest)
    assert (
        worst(steps(edit.family, edit.pipe, fast, both(edit, mask_image=masks))[-1].end[:1], single)
        <= 1e-5
    )


def of_one_photo(edit: Edit) -> dict[str, Any]:
    """Two pictures of one photo under one mask."""
    given = both(edit)
    return given | {name: [given[name][0]] * 2 for name in ("image", "mask_image")}


@EDITS
def test_pictures_of_one_photo_and_mask_share_a_call_and_each_is_as_it_is_alone(edit):
    fast, given = compress(edit.pipe, COARSE), of_one_photo(edit)
    found = lengths(edit.pipe, lambda: check_alone(edit, fast, given, plans=1))
    batches = [batch for batch, _ in found]
    count = len(batches) // 3  # the two together, and then each alone
    assert batches[:count] == [2 * batch for batch in batches[count : 2 * count]]


@EDITS
def test_pictures_that_refresh_by_what_they_become_do_so_each_for_itself(edit):
    check_alone(edit, compress(edit.pipe, METHODS["auto"]), of_one_photo(edit))


@one("FluxInpaintPipeline")
def test_a_step_cache_is_kept_for_each_picture(edit):
    pipe = edit.family.make(torch.float32)  # diffusers leaves its registry of hooks on the modules
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    check_alone(edit, compress(pipe, COARSE), both(edit, num_inference_steps=6))


@one("FluxInpaintPipeline")
def test_a_method_inside_the_blocks_knows_whose_tokens_these_are(edit):
    fast = compress(edit.pipe, Within(COARSE, ToMe(reuse=2)))
    check_alone(edit, fast, both(edit, num_inference_steps=4))


@one("FluxKontextPipeline")
def test_a_region_is_found_in_each_picture(edit):
    """Two photos of which other parts change: each has a mask, and tokens, of its own."""
    fast = compress(edit.pipe, HiLo(find=True))

    def given(number: int | None = None) -> dict[str, Any]:
        made = both(edit, num_inference_steps=14)
        made = made if number is None else alone(made, number)
        return {name: value for name, value in made.items() if name != "mask_image"}

    source_BNC = edit.family.source(edit.pipe, given()).detach()
    target_BNC = source_BNC.clone().unflatten(1, GRID)
    for picture, rows in zip(target_BNC, (slice(3, 6), slice(9, 14)), strict=True):
        picture[rows, 4:9] += 3 * torch.randn(picture[rows, 4:9].shape, generator=noise(9))
    target_BNC = target_BNC.flatten(1, 2)

    def run(number: int | None = None) -> tuple[Any, Any]:
        part = slice(None) if number is None else slice(number, number + 1)
        with steered(edit.pipe, lambda sigma: target_BNC[part], source_BNC[part]):
            end = steps(edit.family, edit.pipe, fast, given(number))[-1].end
        return end, fast.last_run

    end_BNC, record = run()
    assert record.reasons == ()
    assert len(record.plans) == len(record.mask) == 2
    assert not torch.equal(*record.mask)
    for number in range(2):
        own_1NC, own = run(number)
        assert own.reasons == ()
        assert torch.equal(own.mask[0], record.mask[number])
        assert torch.equal(own.plan.keep_K, record.plans[number].keep_K)
        assert own.refreshed == record.refreshed
        assert worst(end_BNC[number : number + 1], own_1NC) <= 1e-5


@one("QwenImageControlNetInpaintPipeline", "two photos")
def test_photos_that_go_round_in_another_order_are_refused(edit):
    with pytest.raises(ValueError, match="num_images_per_prompt=1"):
        compress(edit.pipe, COARSE)(**edit.arguments(num_images_per_prompt=2))
