"""Refreshes: what says when context is computed, and the steps that it comes to."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from families import BY_NAME

from hilotoken import HiLo, Refresh, compress
from hilotoken.methods.parse import as_words, method_from
from hilotoken.methods.refresh import check_shown, refresh_steps


def shifted(steps, mu=None, shift=1.0):
    """Sigmas as a scheduler of diffusers makes them."""
    dynamic = mu is not None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    linear = [1 - k / steps for k in range(steps)]
    scheduler.set_timesteps(sigmas=linear, mu=mu)
    return scheduler.sigmas[:-1].tolist()


SHIFTED = tuple(shifted(8, mu=1.15))  # FLUX's at 1024 px
SCHEDULES = {
    **{f"mu {mu:g}, 4": shifted(4, mu=mu) for mu in (-3, -1, 0, 1.15, 3.2)},
    **{f"mu {mu:g}, 9": shifted(9, mu=mu) for mu in (-3, -1, 0, 1.15, 3.2)},
    **{f"shift {shift:g}": shifted(8, shift=shift) for shift in (0.3, 3.0, 6.0)},
    "to nothing": [1 - k / 7 for k in range(8)],
    "late": [1.0, 0.99, 0.98, 0.97, 0.2],
    "from the middle": shifted(8, mu=1.15)[3:],
    "level": [1.0] * 6,
}


def drift(chosen, sigmas):
    """What has fallen of sigma squared since the last refresh, over all steps."""
    last = [max(j for j in chosen if j <= k) for k in range(len(sigmas))]
    return sum(abs(sigmas[j] ** 2 - sigmas[k] ** 2) for k, j in enumerate(last))


@pytest.mark.parametrize("sigmas", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_no_other_placement_drifts_less(sigmas, count):
    found = refresh_steps(count, sigmas)
    assert len(found) == min(count, len(sigmas))
    others = combinations(range(1, len(sigmas)), len(found) - 1)
    least = min(drift((0, *other), sigmas) for other in others)
    assert 0 in found
    assert drift(found, sigmas) <= least + 1e-9


@pytest.mark.parametrize("steps", [4, 5, 10, 20, 28, 50])
@pytest.mark.parametrize("mu", [-3, -1, 0, 1.15, 3.2])
def test_every_step_may_be_chosen_and_one_more_never_drifts_more(steps, mu):
    sigmas = shifted(steps, mu=mu)
    placed = [refresh_steps(count, sigmas) for count in range(1, steps + 3)]
    assert [len(found) for found in placed] == [min(n, steps) for n in range(1, steps + 3)]
    drifts = [drift(found, sigmas) for found in placed]
    assert drifts == sorted(drifts, reverse=True)
    assert all(type(step) is int for found in placed for step in found)


@pytest.mark.parametrize(
    ("mu", "count", "expected"),
    [(1.15, 3, {0, 3, 6}), (1.15, 2, {0, 5}), (0, 3, {0, 2, 5}), (0, 2, {0, 3}),
     (-2.5, 3, {0, 1, 3}), (-2.5, 2, {0, 1})],
)  # fmt: skip
def test_the_best_of_those_measured_are_found(mu, count, expected):
    assert refresh_steps(count, shifted(8, mu=mu)) == expected


def test_steps_that_are_given_stay():
    assert refresh_steps((0, 2, 5), [1.0] * 8) == {0, 2, 5}
    assert refresh_steps((0, 30), [1.0] * 8) == {0}


@pytest.mark.parametrize(
    ("chosen", "sigmas"),
    [({0}, SHIFTED), ({0, 1}, SHIFTED), ({0}, (1.0, 0.0)), ({0, 1}, (1.0, 0.999, 0.5))],
)
def test_keys_of_noise_are_refused_where_the_photo_is_in_the_noise_alone(chosen, sigmas):
    with pytest.raises(ValueError, match=f"steps .*{max(chosen)}.* keeps keys of noise"):
        check_shown(chosen, sigmas)


@pytest.mark.parametrize(
    ("chosen", "sigmas"), [({0, 2}, SHIFTED), ({0}, SHIFTED[3:]), ({0}, (1.0,)), ({0, 1}, (1, 1))]
)
def test_keys_of_a_noised_photo_are_not(chosen, sigmas):
    check_shown(chosen, sigmas)


@pytest.mark.parametrize("kind", ["Flux", "Chroma", "QwenImage", "StableDiffusion3", "ZImage"])
def test_one_refresh_in_pure_noise_is_refused(kind):
    family = BY_NAME[f"{kind}InpaintPipeline"]
    fast = compress(family.make(torch.float32), HiLo(refresh=1, bucket=8))
    with pytest.raises(ValueError, match=r"steps \[0\] keeps keys of noise: this pipeline shows"):
        fast(**family.arguments())
    fast(**family.arguments(strength=0.5, num_inference_steps=4))
    assert fast.last_run.refreshed == (0,)
    fast(**family.arguments(num_inference_steps=1))  # all of its steps are refreshes


@pytest.mark.parametrize("name", ["FluxFillPipeline", "FluxKontextPipeline"])
def test_where_the_photo_is_shown_one_refresh_will_do(name):
    family = BY_NAME[name]
    fast = compress(family.make(torch.float32), HiLo(refresh=1, bucket=8))
    fast(**family.arguments())
    assert fast.last_run.refreshed == (0,)


@pytest.mark.parametrize("at", [3, (0, 3, 6), "auto"])
def test_the_steps_alone_are_the_short_form(at):
    assert HiLo(refresh=at).refresh == Refresh(at) == HiLo(refresh=Refresh(at)).refresh
    assert HiLo(refresh=at) == HiLo(refresh=Refresh(at=at))
    assert replace(HiLo(refresh=at), dilate=1).refresh == Refresh(at)


def test_the_usual_drift_is_that_of_auto_alone():
    assert (Refresh("auto").drift, Refresh("auto", drift=0).drift, Refresh(2).drift) == (
        0.3,
        0,
        None,
    )


@pytest.mark.parametrize(
    "at",
    [0, -1, "often", (), (1, 2), (0, -2), True, 1.5, (0, 1.5), {0, 1}, range(1, 3), range(10**9),
     b"0"],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(at):
    with pytest.raises(ValueError, match="refresh must be a count of 1 or more, steps"):
        HiLo(refresh=at)
    with pytest.raises(ValueError, match="at must be a count of 1 or more, steps"):
        Refresh(at)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"at": 2, "blocks": "5-1"}, "blocks must be 0 or more and rise"),
     ({"at": 2, "blocks": "x"}, 'blocks must be "all" or like'),
     ({"at": 2, "blocks": "0", "text": True}, "leave out one of the two"),
     ({"at": 2, "store": "int4"}, "unknown store"), ({"at": "auto", "drift": -1}, "drift must be"),
     ({"at": 2, "drift": 0.3}, "drift=0.3 is for refreshes at 'auto', got 2"),
     ({"at": 2, "text": 1}, "text must be True or False"), ({"at": None}, "at must be a count")],
)  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Refresh(**options)


def test_one_set_of_keys_is_kept():
    with pytest.raises(ValueError, match="positions='aligned' has two"):
        HiLo(refresh=2, positions="aligned")


@pytest.mark.parametrize(
    ("words", "refresh"),
    [("refresh=3", Refresh(3)), ("refresh=(0,3,6)", Refresh((0, 3, 6))),
     ("refresh=auto", Refresh("auto")), ("refresh.at=2", Refresh(2)),
     ("refresh=3 refresh.store=float8", Refresh(3, store="float8")),
     ("refresh=2 refresh.text=True", Refresh(2, text=True)),
     ("refresh=2 refresh.capture=True", Refresh(2, capture=True)),
     ("refresh.blocks=0-3 refresh=2", Refresh(2, blocks="0-3")),
     ("refresh=auto refresh.drift=0.5", Refresh("auto", drift=0.5))],
)  # fmt: skip
def test_words_on_a_command_line(words, refresh):
    method = method_from("hilo", *words.split())
    assert method == HiLo(refresh=refresh)
    assert method_from(*as_words(method).split()) == method


@pytest.mark.parametrize(
    ("words", "message"),
    [("refresh.capture=True", "refresh.capture goes with refresh"),
     ("store=float8", r"hilo has no option 'store'; choose from .*'refresh.store'"),
     ("refresh.store=float8", "refresh.store goes with refresh: give that too"),
     ("refresh=2 refresh.store=int4", "refresh: unknown store 'int4'"),
     ("refresh=2 refresh.seldom=1", "no option 'refresh.seldom'")],
)  # fmt: skip
def test_wrong_words_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        method_from("hilo", *words.split())
