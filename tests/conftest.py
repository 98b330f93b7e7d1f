"""Fixtures shared by all tests; what they lend is built in `contract.py`."""

import sys

import pytest
import torch
from contract import Edit
from diffusers.models import attention_dispatch
from families import BY_NAME
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
def edit(request):
    """An edit of the table; its pipeline, lent to many tests, must come back as it was."""
    lent = Edit(*request.param)
    yield lent
    lent.check()


@pytest.fixture
def pipe():
    """A real FluxFillPipeline with tiny random weights, lent too: alter only one of your own."""
    lent = Edit(BY_NAME["FluxFillPipeline"])
    yield lent.pipe
    lent.check()


KINDS = ("FluxFillPipeline", "FluxFillPipeline, AutoencoderTiny", "FluxInpaintPipeline")


@pytest.fixture(params=KINDS)
def any_pipe(request):
    """The same, once with each kind of VAE, and a FluxInpaintPipeline."""
    lent = Edit(BY_NAME[request.param])
    yield lent.pipe
    lent.check()


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
