"""A step cache of diffusers as a control: every token runs, but not every block at every step."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..checks import number, settle
from ..record import Run
from .controls import Control, Edit
from .dense import Dense

# Whose blocks diffusers' cache knows, and was seen to run.
CACHED = ("FluxTransformer2DModel", "QwenImageTransformer2DModel")


@dataclass(frozen=True)
class StepCache(Control):
    """First Block Cache, diffusers' simpler TeaCache (arXiv 2411.19108): where the first block adds
    nearly what it added before, the others are taken to add what they last did, and do not run.

    threshold: relative change of what the first block adds up to which the others are skipped

    Raises:
        ValueError: a threshold below 0, at construction; a transformer whose blocks diffusers'
            cache does not know, or with a cache already, at the call.
    """

    threshold: float = 0.2

    def __post_init__(self) -> None:
        settle(self, threshold=number(0))

    @property
    def alike(self) -> bool:
        return False

    @property
    def adaptive(self) -> bool:
        return True

    @classmethod
    def knob(cls, steps: int, side: int) -> list[list[str]]:
        return [[f"threshold={t}" for t in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)]]

    def run(self, edit: Edit, pipe: Any, given: dict[str, Any], feather: int) -> tuple[Any, Run]:
        from diffusers import FirstBlockCacheConfig  # planning needs no diffusers

        _check(pipe.transformer)
        with _twin(pipe) as transformer:
            share = _counted(transformer)
            transformer.enable_cache(FirstBlockCacheConfig(threshold=self.threshold))
            output, run = edit(Dense(), given)
        return output, dataclasses.replace(run, blocks_run=share())


def _check(transformer: Any) -> None:
    if hasattr(transformer, "_orig_mod") or type(transformer).__name__ not in CACHED:
        raise ValueError(
            f"step_cache is diffusers' own, which runs on {', '.join(CACHED)}, not on "
            f"{type(transformer).__name__}: fewer_steps saves steps on any"
        )
    if transformer.is_cache_enabled:
        raise ValueError("step_cache found a cache enabled: call transformer.disable_cache()")


@contextmanager
def _twin(pipe: Any) -> Iterator[Any]:
    """The pipeline with modules of its own around the same weights, for this context.

    diffusers keeps a cache on the modules: another thread that shares the transformer would run by
    it, and what it leaves behind would stay.
    """
    own = pipe.transformer
    weights = {id(tensor): tensor for tensor in (*own.parameters(), *own.buffers())}
    pipe.transformer = copy.deepcopy(own, weights)
    try:
        yield pipe.transformer
    finally:
        pipe.transformer = own


def _counted(transformer: Any) -> Callable[[], float]:
    """A function that says which share of the blocks' attention ran."""
    calls, modules = [0, 0], [m for m in transformer.modules() if hasattr(m, "processor")]

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    transformer.register_forward_hook(count(0))
    for module in modules:
        module.register_forward_hook(count(1))
    return lambda: calls[1] / max(1, calls[0] * len(modules))
