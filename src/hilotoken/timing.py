"""Seconds spent in the parts of a pipeline, by ordinary hooks around their forward passes."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .hooks import After, Before, hooked


class Stopwatch:
    """Seconds by part. A part entered again adds to its sum."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def start(self, part: str) -> None:
        self._started[part] = _now()

    def stop(self, part: str) -> None:
        if part not in self._started:
            return  # a hook before the one that starts it raised
        elapsed = _now() - self._started.pop(part)
        self.seconds[part] = self.seconds.get(part, 0.0) + elapsed

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


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # work on the device is asynchronous
    return time.perf_counter()
