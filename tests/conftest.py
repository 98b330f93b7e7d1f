"""Fixtures shared by all tests; what they build is in `tiny.py`."""

import pytest
import torch
from tiny import make_pipe

torch.set_num_threads(1)


@pytest.fixture
def pipe():
    """A real FluxFillPipeline with tiny random weights, new for every test."""
    return make_pipe()


@pytest.fixture(params=["kl", "tiny", "inpaint"])
def any_pipe(request):
    """The same, once with each kind of VAE, and a FluxInpaintPipeline."""
    return make_pipe(request.param)
