"""The public face, deliberate name by name."""

import inspect

import hilotoken


def test_the_names_of_the_design_are_there():
    promised = {"METHODS", "HiLo", "TokenPlan", "compress", "load_model", "plan_tokens"}
    assert promised | {"__version__"} <= set(hilotoken.__all__)


def test_every_public_name_is_deliberate():
    """Nothing but submodules beside what `__all__` lists; all of it there and documented."""
    found = {k for k, v in vars(hilotoken).items() if k[0] != "_" and not inspect.ismodule(v)}
    assert found <= set(hilotoken.__all__)
    for name in hilotoken.__all__:
        value = getattr(hilotoken, name)
        assert not callable(value) or inspect.getdoc(value)


def test_all_is_sorted_and_unique():
    assert len(set(hilotoken.__all__)) == len(hilotoken.__all__)
    assert sorted(hilotoken.__all__) == sorted(hilotoken.__all__, key=str)
