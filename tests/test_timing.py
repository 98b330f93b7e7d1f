"""The stopwatch: every pass counted, exceptions included, and nothing left behind."""

import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from hilotoken.timing import Stopwatch


class Sleeper(nn.Module):
    def forward(self, seconds: float) -> None:
        time.sleep(abs(seconds))
        if seconds < 0:
            raise ArithmeticError


def hooks(module: nn.Module) -> list:
    return [
        *module._forward_hooks,
        *module._forward_pre_hooks,
        *module._forward_hooks_always_called,
    ]


def test_passes_add_up_with_hooks_inside_and_exceptions():
    watch, module, other = Stopwatch(), Sleeper(), Sleeper()
    module.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    before = hooks(module)
    with watch.watch("work", module), watch.watch("other", other):
        module(0.02)
        with pytest.raises(ArithmeticError):
            module(-0.02)
        module(0.02)
    assert hooks(module) == before
    assert watch.seconds["work"] >= 6 * 0.02
    assert "other" not in watch.seconds
    module(0.01)
    assert watch.seconds["work"] < 60


def test_an_exception_in_a_hook_before_the_pass_is_timed_too():
    watch, module = Stopwatch(), nn.Linear(2, 2)

    def fail(*_):
        raise ArithmeticError

    module.register_forward_pre_hook(fail)
    with watch.watch("work", module), pytest.raises(ArithmeticError):
        module(torch.ones(2))
    assert watch.seconds["work"] > 0
    with watch.watch("work", module), pytest.raises(ArithmeticError):
        module(torch.ones(2))


def test_a_block_is_timed_even_if_it_raises():
    watch = Stopwatch()
    with pytest.raises(ArithmeticError), watch.time("plan"):
        raise ArithmeticError
    assert watch.seconds["plan"] > 0


class Event:
    """An accelerator's event: passes when the device gets there, a second later at each."""

    passed: ClassVar[list[float]] = []
    waited: ClassVar[int] = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "of cuda:1"
        self.passed.append(2.0 ** len(self.passed))
        self.at = self.passed[-1]

    def synchronize(self) -> None:
        Event.waited += 1

    def elapsed_time(self, other: "Event") -> float:
        return 1000 * (other.at - self.at)


def test_on_a_gpu_events_are_read_once_all_is_over(monkeypatch):
    backend = SimpleNamespace(Event=Event, current_stream=lambda device: f"of {device}")
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    watch = Stopwatch(torch.device("cuda", 1))
    for _ in range(2):
        with watch.time("dit"):
            pass
    assert Event.waited == 0
    assert watch.seconds == {"dit": (2 - 1) + (8 - 4)}
    assert Event.waited == 2
