"""Methods at one cost: what is counted, and how near each comes."""

from itertools import chain

import numpy as np
import pytest
from tiny import make_photo
from toys import saved_model, small_transformer

from hilotoken import load_model
from hilotoken.bench.measure import matched as matching
from hilotoken.bench.measure.matched import Costs, ladders_of, matched, matched_settings, nearest
from hilotoken.data.cases import CLASSES, Case, cases_of, hidden
from hilotoken.methods import METHODS
from hilotoken.methods.parse import method_from

SIDE, STEPS = 128, 4


@pytest.fixture(scope="module")
def costs():
    pipe = load_model(saved_model())
    pipe.register_modules(transformer=small_transformer())
    pipe.set_progress_bar_config(disable=True)
    return Costs(pipe, STEPS)


def _case(mask_class, name="a"):
    photo = np.asarray(make_photo(SIDE, SIDE))
    mask, seed = hidden(name, mask_class, SIDE)
    return Case(name, mask_class, photo, photo, mask, seed)


def test_every_method_of_the_registry_has_a_setting_for_every_cost():
    ladders = ladders_of(STEPS, SIDE // 16)
    rest = {"hilo", "dense", "random_keep"}
    assert set(METHODS) - set(ladders) == rest
    for name, each in ladders.items():
        for setting in chain.from_iterable(each):
            assert type(method_from(*setting.split())) is METHODS[name]


@pytest.mark.parametrize(
    ("setting", "share"),
    [("dense", 1), ("fewer_steps share=0.5", 0.5), ("fewer_steps share=0.25", 0.25)],
)
def test_shares_are_of_dense(costs, setting, share):
    assert costs.share(setting, _case("small")) == pytest.approx(share)


def test_fewer_tokens_cost_less_and_each_length_is_counted_once(costs, monkeypatch):
    small, large = (costs.share("hilo bucket=8", _case(name)) for name in ("small", "large"))
    assert 0 < small < large <= 1
    monkeypatch.setattr(matching, "flops_by_pass", pytest.fail)
    assert costs.share("hilo bucket=8", _case("small")) == small
    assert costs.mean("hilo bucket=8", [_case("small"), _case("large")]) == (small + large) / 2


def test_random_tokens_cost_what_hilos_do(costs):
    case = _case("small")
    name, setting = next(matched("hilo bucket=8 seed=3 dilate=1", [case], costs))
    assert (name, setting) == ("random_keep", "random_keep bucket=8 dilate=1")
    like = costs.share("hilo bucket=8 dilate=1", case)
    assert costs.share(setting, case) == pytest.approx(like, rel=0.02)


@pytest.mark.parametrize("like", ["dense", "tome", "hilo + todo"])
def test_a_budget_is_hilos(costs, like):
    with pytest.raises(ValueError, match="the budget is that of HiLo"):
        list(matched(like, [_case("small")], costs))


LADDERS = [["0.9", "0.7", "0.6"], ["0.8", "0.5", "0.1"]]


@pytest.mark.parametrize(
    ("budget", "found"),
    [(1, "0.9"), (0.9, "0.9"), (0.81, "0.9"), (0.79, "0.7"), (0.6, "0.6"), (0.4, "0.5"),
     (0.2, "0.1"), (0.01, "0.1")],
)  # fmt: skip
def test_the_nearest_setting_is_on_the_first_ladder_that_reaches_the_budget(budget, found):
    assert nearest(LADDERS, budget, float) == found


def test_the_settings_of_a_class_are_nearest_to_its_budget(costs, monkeypatch, tmp_path):
    ladders = {name: ladders_of(STEPS, 8)[name] for name in ("crop_stitch", "todo")}
    monkeypatch.setattr(matching, "ladders_of", lambda steps, side: ladders)
    monkeypatch.delitem(CLASSES, "large")
    make_photo(SIDE, SIDE).save(tmp_path / "a.png")
    found = matched_settings("hilo bucket=8", [tmp_path / "a.png"], costs, SIDE)
    assert list(found) == list(CLASSES)
    for case in cases_of(tmp_path / "a.png", SIDE):
        budget = costs.share("hilo bucket=8", case)
        for name, each in ladders.items():
            ladder = next((x for x in each if costs.share(x[-1], case) <= budget), each[-1])
            place = ladder.index(found[case.mask_class][name])
            off = [abs(costs.share(setting, case) - budget) for setting in ladder]
            assert off[place] == min(off)
