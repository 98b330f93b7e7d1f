"""The step clock: steps told from branches of guidance, whatever the timesteps are rounded to."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from hilotoken.hooks import Made, StepClock


def euler():
    """FLUX's longest shift: in bfloat16 some neighbouring timesteps are one number."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(28, mu=3.2)
    half = scheduler.timesteps.bfloat16()
    assert (half[1:] == half[:-1]).any()
    return scheduler


def heun():
    """A scheduler of second order, which calls the model at most noise levels twice."""
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(6)
    assert len(scheduler.timesteps.unique()) < len(scheduler.timesteps)
    return scheduler


@pytest.mark.parametrize("make", [euler, heun])
@pytest.mark.parametrize("branches", [1, 2])
def test_steps_and_branches_are_told_apart(make, branches):
    scheduler = make()
    clock, seen, reads = StepClock(scheduler), [], []
    for timestep in scheduler.timesteps:
        time = timestep.bfloat16() / 1000

        def read(time: torch.Tensor = time) -> float:
            reads.append(None)
            return time.item()

        for _ in range(branches):
            clock.tick(read)
            seen.append((clock.step, clock.branch))
            assert clock.time == pytest.approx(timestep.item() / 1000, rel=5e-3)
        scheduler.step(torch.zeros(1, 4), timestep, torch.zeros(1, 4))
    expected = [(s, b) for s in range(len(scheduler.timesteps)) for b in range(branches)]
    assert seen == expected
    assert len(reads) == branches  # of the first step, whose place the scheduler does not know yet


def test_who_steps_no_scheduler_is_told_by_the_time():
    scheduler = euler()
    clock, seen = StepClock(scheduler), []
    for time in (1.0, 1.0, 0.5, 0.25, 0.25):
        clock.tick(lambda time=time: time)
        seen.append((clock.step, clock.branch, clock.time))
    assert seen == [(0, 0, 1.0), (0, 1, 1.0), (1, 0, 0.5), (2, 0, 0.25), (2, 1, 0.25)]
    bare = StepClock(SimpleNamespace(timesteps=range(3)))
    for time in (3.0, 2.0):
        bare.tick(lambda time=time: time)
    assert (bare.step, bare.time) == (1, 2.0)


def test_a_scheduler_left_by_another_run_is_no_sign_of_steps():
    scheduler = euler()
    for timestep in scheduler.timesteps[:3]:
        scheduler.step(torch.zeros(1, 4), timestep, torch.zeros(1, 4))
    clock = StepClock(scheduler)
    for time in (0.9, 0.8):
        clock.tick(lambda time=time: time)
    assert (clock.step, clock.branch) == (1, 0)


def test_sigmas_are_those_of_the_run_and_follow_the_scheduler():
    scheduler = euler()
    scheduler.set_begin_index(10)
    clock = StepClock(scheduler)
    clock.tick()
    assert clock.sigmas == scheduler.sigmas[10:-1].tolist()
    assert clock.sigma == scheduler.sigmas[10].item()
    scheduler.set_timesteps(4, mu=1.0)
    assert clock.sigma == scheduler.sigmas[0].item()


def test_what_is_made_of_tensors_is_made_anew_where_one_is_another_or_has_changed():
    made, calls = Made(), []
    x, y = torch.zeros(2), torch.zeros(2)

    def of(thing: torch.Tensor) -> int:
        return made.of((thing,), lambda: calls.append(None) or len(calls))

    assert [of(x), of(x), of(y), of(x)] == [1, 1, 2, 1]
    x += 1
    assert [of(x), of(y)] == [3, 2]
