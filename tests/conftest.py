"""Fixtures shared by all tests; what they lend is built in `contract.py`.

Heavy libraries are imported where they are needed: every process of a parallel run reads this file,
also the one that only hands out the tests.
"""

import sys

import pytest

KINDS = ("FluxFillPipeline", "FluxFillPipeline, AutoencoderTiny", "FluxInpaintPipeline")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def few_flops_are_counted():
    """Counting makes a batch of a tiny model take twice as long: of a training, the first alone."""
    from hilotoken.train import throughput

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "COUNTED", 1)
        yield


@pytest.fixture(autouse=True)
def the_backend_stays():
    """`set_attention_backend` chooses for the whole process: the next test shall not hear of it."""
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    registry = dispatch and dispatch._AttentionBackendRegistry
    before = registry and registry._active_backend
    yield
    if registry:
        registry.set_active_backend(before)


@pytest.fixture
def edit(request):
    """An edit of the table; its pipeline, lent to many tests, must come back as it was."""
    from contract import Edit

    lent = Edit(*request.param)
    yield lent
    lent.check()


@pytest.fixture
def pipe():
    """A real FluxFillPipeline with tiny random weights, lent too: alter only one of your own."""
    yield from _lent(KINDS[0])


@pytest.fixture(params=KINDS)
def any_pipe(request):
    """The same, once with each kind of VAE, and a FluxInpaintPipeline."""
    yield from _lent(request.param)


def _lent(name: str):
    from contract import Edit
    from families import BY_NAME

    lent = Edit(BY_NAME[name])
    yield lent.pipe
    lent.check()


@pytest.fixture
def hilo(monkeypatch, capfd):
    """Runs the command as `hilo ARGUMENTS` does."""
    from toys import Outcome

    from hilotoken import cli

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["hilo", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capfd.readouterr())

    return run
