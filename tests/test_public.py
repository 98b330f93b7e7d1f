"""The public face, deliberate name by name."""

import inspect
import subprocess
import sys

import pytest

import hilotoken


def test_the_names_of_the_design_are_there():
    promised = {"METHODS", "HiLo", "TokenPlan", "compress", "load_model", "plan_tokens"}
    assert promised | {"__version__"} <= set(hilotoken.__all__)


def test_every_public_name_is_deliberate():
    """Nothing but submodules beside what `__all__` lists; all of it there and documented."""
    hidden = {"TYPE_CHECKING", "Any"}
    found = {k for k, v in vars(hilotoken).items() if k[0] != "_" and not inspect.ismodule(v)}
    found -= hidden
    assert found <= set(hilotoken.__all__)
    for name in hilotoken.__all__:
        value = getattr(hilotoken, name)
        assert not callable(value) or inspect.getdoc(value)


def test_all_is_sorted_and_unique():
    assert len(set(hilotoken.__all__)) == len(hilotoken.__all__)
    assert sorted(hilotoken.__all__) == sorted(hilotoken.__all__, key=str)


PLANNING = """
import sys
import numpy as np
from PIL import Image
from hilotoken import METHODS, HiLo, plan_tokens
photo, mask = Image.new("RGB", (64, 64)), np.zeros((64, 64), np.float32)
mask[16:32, 16:32] = 1
assert plan_tokens(photo, mask, grid=(8, 8), method=HiLo(bucket=8)).tokens_run
heavy = {"diffusers", "transformers", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""


def test_planning_needs_neither_diffusers_nor_transformers():
    ended = subprocess.run([sys.executable, "-c", PLANNING], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_room_does_not_hide_the_function_of_its_name():
    code = "from hilotoken.compress import Compressed; import hilotoken; hilotoken.compress(1)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "int" in ended.stderr
    assert "not callable" not in ended.stderr


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hilotoken.nothing  # noqa: B018
