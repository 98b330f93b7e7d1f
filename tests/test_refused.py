"""Pipelines known not to work are refused with the reason, and what works is listed."""

import diffusers
import pytest
from tiny import arguments, make_pipe

from hilotoken import HiLo, compress
from hilotoken.adapters import ADAPTERS, REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_known_not_to_work_is_refused_with_the_reason(name):
    known = getattr(diffusers, name)  # a name that diffusers has
    pipe = known.__new__(type("Mine", (known,), {}))  # a subclass is refused alike
    with pytest.raises(TypeError, match=name) as refusal:
        compress(pipe)
    assert REFUSED[name] in str(refusal.value)
    assert "FluxFillPipeline" in str(refusal.value)


def test_nothing_is_both_supported_and_refused():
    assert not REFUSED.keys() & {name for name, _ in ADAPTERS}
    assert all(hasattr(diffusers, name) for name, _ in ADAPTERS)


@pytest.mark.parametrize(
    ("of", "name", "value", "message"),
    [
        ("transformer", "_parallel_config", object(), "context parallelism on"),
        ("transformer", "hf_device_map", {"a": 0, "b": 1}, "spread over 0, 1 by its device_map"),
        ("pipe", "hf_device_map", {"transformer": 0, "vae": 1}, "autoencoder on 1"),
    ],
)
def test_several_devices_are_refused_by_name(of, name, value, message):
    pipe = make_pipe()
    setattr(pipe.transformer if of == "transformer" else pipe, name, value)
    fast = compress(pipe, HiLo())
    with pytest.raises(ValueError, match=message):
        fast(**arguments())
