"""Fixtures shared by all tests; what they build is in `tiny.py`."""

import sys

import pytest
import torch
from diffusers.models import attention_dispatch
from tiny import make_pipe
from toys import Outcome

from hilotoken import cli

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def the_backend_stays():
    """`set_attention_backend` chooses for the whole process: the next test shall not hear of it."""
    registry = attention_dispatch._AttentionBackendRegistry
    before = registry._active_backend
    yield
    registry.set_active_backend(before)


@pytest.fixture
def pipe():
    """A real FluxFillPipeline with tiny random weights, new for every test."""
    return make_pipe()


@pytest.fixture(params=["kl", "tiny", "inpaint"])
def any_pipe(request):
    """The same, once with each kind of VAE, and a FluxInpaintPipeline."""
    return make_pipe(request.param)


@pytest.fixture
def hilo(monkeypatch, capfd):
    """Runs the command as `hilo ARGUMENTS` does."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hilo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capfd.readouterr())

    return run
