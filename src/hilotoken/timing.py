"""Seconds spent in the parts of a pipeline, by ordinary hooks around their forward passes.

A device works behind the host, so the host's clock would tell when work was asked for. On a GPU
events are put between the work instead, and read once all is over: nobody waits for them meanwhile.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .hooks import After, Before, hooked

Mark = Any  # a reading of the host's clock, or an event of the device


class Stopwatch:
    """Seconds by part. A part entered again adds to its sum.

    Args:
        device: where the parts run, whose events are put on its current stream; an event passes
            at once where nothing is under way, so that work of the host is counted too
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self._started: dict[str, Mark] = {}
        self._passed: dict[str, list[tuple[Mark, Mark]]] = {}

    def start(self, part: str) -> None:
        self._started[part] = _mark(self.device)

    def stop(self, part: str) -> None:
        if part not in self._started:
            return  # a hook before the one that starts it raised
        marks = self._started.pop(part), _mark(self.device)
        self._passed.setdefault(part, []).append(marks)

    @property
    def seconds(self) -> dict[str, float]:
        """The sums so far; reading them waits for the device."""
        return {
            part: sum(_between(start, stop) for start, stop in marks)
            for part, marks in self._passed.items()
        }

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        self.start(part)
        try:
            yield
        finally:
            self.stop(part)

    @contextmanager
    def watch(self, part: str, *modules: nn.Module) -> Iterator[None]:
        """Time every forward pass of the modules, hooks attached inside this context included."""
        with ExitStack() as stack:
            for module in modules:
                around = hooked(module, self._starts(part), self._stops(part), first=True)
                stack.enter_context(around)
            yield

    def _starts(self, part: str) -> Before:
        return lambda module, args, kwargs: self.start(part)

    def _stops(self, part: str) -> After:
        return lambda module, args, kwargs, output: self.stop(part)


def _mark(device: torch.device) -> Mark:
    if device.type in ("cuda", "xpu"):
        backend = torch.get_device_module(device)
        event = backend.Event(enable_timing=True)
        event.record(backend.current_stream(device))
        return event
    if device.type == "mps":
        event = torch.mps.Event(enable_timing=True)
        event.record()
        return event
    return time.perf_counter()


def _between(start: Mark, stop: Mark) -> float:
    if isinstance(start, float):
        return stop - start
    stop.synchronize()
    return start.elapsed_time(stop) / 1000
