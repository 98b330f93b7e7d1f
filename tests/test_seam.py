"""A plan is a value: a run takes another in the middle, on three families."""

from dataclasses import dataclass, field

import family_flux
import family_qwen
import family_sd3
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from tiny import Fixed, make_mask
from torch import Tensor

from hilotoken import HiLo, compress
from hilotoken.attach import attached
from hilotoken.plan import TokenPlan

GRID = (16, 16)
FLUX, QWEN, SD3 = (
    next(family for family in rows.FAMILIES if family.name.endswith("InpaintPipeline"))
    for rows in (family_flux, family_qwen, family_sd3)
)
FAMILIES = pytest.mark.parametrize("family", [FLUX, QWEN, SD3], ids=lambda family: family.name)


def plan_of(method: HiLo) -> TokenPlan:
    photo_B3HW = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(3))
    mask_B1HW = torch.zeros(1, 1, 256, 256)
    mask_B1HW[..., 96:160, 96:160] = 1
    return method.plan(photo_B3HW, mask_B1HW, GRID)


FEW = plan_of(HiLo(dilate=1, detail=0.05, coarse=0, bucket=8))
OTHERS = plan_of(HiLo(dilate=3, detail=0.2, bucket=8, score="random"))
WEIGHED = plan_of(HiLo(context="sampled", dilate=1, bucket=8))


@dataclass(frozen=True)
class InTurn(Fixed):
    """Another plan from a step on."""

    later: dict[int, TokenPlan] = field(default_factory=dict)

    def replan(self, step: int, plan: TokenPlan) -> TokenPlan:
        return self.later.get(step, plan)


def ends(family, pipe, call, start: Tensor | None = None) -> list[Tensor]:
    """The latents after each step; the first step's end is `start` where one is given."""
    found: list[Tensor] = []

    def note(pipe, step, time, given):
        if step == 0 and start is not None:
            given = {"latents": start}
        found.append(given["latents"].clone())
        return given

    call(**family.arguments(num_inference_steps=3), callback_on_step_end=note)
    return found


@FAMILIES
@pytest.mark.parametrize("later", [OTHERS, WEIGHED], ids=["coarse", "weights"])
def test_a_method_may_return_another_plan_for_a_step(family, later):
    pipe = family.make(torch.float32)
    both = compress(pipe, InTurn(FEW, {1: later}))
    changed = ends(family, pipe, both)
    first = ends(family, pipe, compress(pipe, Fixed(FEW)))
    rest = ends(family, pipe, compress(pipe, Fixed(later)), start=first[0])
    assert torch.equal(changed[0], first[0])
    assert not torch.equal(changed[1], first[1])  # another plan is another result
    assert all(torch.equal(a, b) for a, b in zip(changed[1:], rest[1:], strict=True))
    assert both.last_run.plan.tokens_run == later.tokens_run


@pytest.mark.parametrize("family", [FLUX, QWEN], ids=lambda family: family.name)
def test_a_step_cache_forgets_what_is_of_another_plan(family):
    pipe, method = family.make(torch.float32), InTurn(FEW, {1: OTHERS})
    plain = ends(family, pipe, compress(pipe, method))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    cached = ends(family, pipe, compress(pipe, method))
    assert all(torch.equal(a, b) for a, b in zip(cached, plain, strict=True))


@FAMILIES
def test_a_plan_is_replaced_in_the_middle_of_a_run(family):
    pipe, seen = family.make(torch.float32), []

    def call(callback_on_step_end, **given):
        def swap(pipe, step, time, latents):
            if step == 0:
                run.first.use(OTHERS)
            seen.append(run.first.short.ran)
            return callback_on_step_end(pipe, step, time, latents)

        with attached(pipe, Fixed(FEW), make_mask()) as run:
            return pipe(**given, callback_on_step_end=swap)

    changed = ends(family, pipe, call)
    first = ends(family, pipe, compress(pipe, Fixed(FEW)))
    rest = ends(family, pipe, compress(pipe, Fixed(OTHERS)), start=first[0])
    assert all(torch.equal(a, b) for a, b in zip(changed[1:], rest[1:], strict=True))
    assert seen[1:] == [OTHERS.tokens_run] * 2


def test_what_was_kept_under_one_plan_is_not_used_under_another():
    """A refresh comes with a new plan, whatever the method says of its steps."""
    pipe = FLUX.make(torch.float32)

    @dataclass(frozen=True)
    class Widening(HiLo):
        def replan(self, step: int, plan: TokenPlan) -> TokenPlan:
            return OTHERS if step == 2 else plan

    fast = compress(pipe, Widening(dilate=1, detail=0.1, bucket=8, refresh=(0, 3)))
    fast(**FLUX.arguments(num_inference_steps=4))
    refreshed = fast.last_run.refreshed
    assert refreshed == (0, 2, 3)


def test_a_plan_for_another_grid_is_refused():
    pipe = FLUX.make(torch.float32)
    wrong = plan_of(HiLo()).to(torch.device("cpu"))
    smaller = HiLo().plan(torch.rand(1, 3, 128, 128), torch.ones(1, 1, 128, 128), (8, 8))
    with pytest.raises(ValueError, match=r"grid of \(8, 8\)"):
        compress(pipe, InTurn(wrong, {1: smaller}))(**FLUX.arguments())
