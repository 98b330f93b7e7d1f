"""What a step of the transformer costs the host by part, dense and compressed, by `torch.profiler`.

`python -m benchmarks.profile_steps -o FILE.csv`: a FLUX Inpaint pipeline of tiny tensors with real
blocks, one of each kind. An operation counts for the innermost part that it is done in. The
profiler slows all that it looks at: operations and shares tell, and microseconds little;
`overhead.py` has those.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from diffusers import FluxTransformer2DModel
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.overhead import edit, pipeline
from hilotoken.adapters.base import ShortCall
from hilotoken.adapters.coarse import Coarse
from hilotoken.attention import Weighted
from hilotoken.bench.results.rows import append_rows
from hilotoken.methods.parse import method_from
from hilotoken.reuse import Reuse

METHODS = ("hilo coarse=0", "hilo", "hilo weights=True", "hilo coarse=0 refresh=2")
MODEL, REST = "model", "hooks, clock"
PARTS = {
    "shorten": (ShortCall, "shorten"),
    "coarse tokens": (Coarse, "tokens"),
    "restore": (ShortCall, "restore"),
    "choose, lay out": (Reuse, "before"),
    "take up": (Reuse, "after"),
}
# Inside of these the attention itself is the model's.
ATTENTIONS = {"keep, attend": (Reuse, "attend"), "weights": (Weighted, "__call__")}


@dataclass(frozen=True)
class ProfileRow:
    """Of a call of the transformer after a run's first.

    what:       a method's text, or "dense"
    part:       "model" is what diffusers does; others are hilotoken's
    operations: of PyTorch, the mean; not counting those that they are made of: on a GPU a launch, or a view
    cpu_us:     the host's microseconds under the profiler, the median
    """

    what: str
    part: str
    operations: float
    cpu_us: float


class Profiled(FluxTransformer2DModel):
    """Profiles every call. `spent`: of each, operations and microseconds by part."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.spent: list[dict[str, tuple[int, float]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with profile(activities=[ProfilerActivity.CPU]) as seen, record_function(REST):
            output = super().__call__(*args, **kwargs)
        self.spent.append(by_part(seen.events()))
        return output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with record_function(MODEL):
            return super().forward(*args, **kwargs)


Profiled.__name__ = "FluxTransformer2DModel"  # by which a pipeline's family is known


def by_part(events: Any) -> dict[str, tuple[int, float]]:
    """Operations and microseconds of each part, of the profiler's events."""
    names = {MODEL, REST, *PARTS, *ATTENTIONS}
    number, spent = Counter(), Counter()
    for event in events:
        part = next((e.name for e in _upward(event) if e.name in names), "")
        above = event.cpu_parent
        number[part] += _is_aten(event) and not (above and _is_aten(above))
        spent[part] += event.self_cpu_time_total
    return {part: (number[part], spent[part]) for part in spent if part}


def _upward(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _is_aten(event: Any) -> bool:
    return event.name.startswith("aten::")


@contextmanager
def named_parts() -> Iterator[None]:
    """Every part is a range of the profiler's."""
    with ExitStack() as stack:
        for parts, wrap in ((PARTS, _within), (ATTENTIONS, _around_model)):
            for part, (kind, name) in parts.items():
                wrapped = wrap(part, getattr(kind, name))
                stack.enter_context(patch.object(kind, name, wrapped))
        yield


def _within(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return function(*args, **kwargs)

    return call


def _around_model(part: str, attend: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, module: Any, q: Any, k: Any, v: Any, original: Any, **kwargs: Any) -> Any:
        return attend(self, module, q, k, v, _within(MODEL, original), **kwargs)

    return _within(part, call)


def rows(methods: dict[str, Any], rounds: int) -> Iterator[ProfileRow]:
    pipe = pipeline(Profiled)
    found: dict[str, list[dict[str, tuple[int, float]]]] = {name: [] for name in methods}
    with named_parts():
        for round in range(rounds + 1):
            for name, method in methods.items():
                pipe.transformer.spent.clear()
                edit(pipe, method)
                found[name] += pipe.transformer.spent[1:] if round else []  # the first warms up
    for name, calls in found.items():
        for part in dict.fromkeys(part for call in calls for part in call):
            number, spent = zip(*(call.get(part, (0, 0.0)) for call in calls), strict=True)
            yield ProfileRow(name, part, mean(number), median(spent))


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A CSV.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 5,
    method: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
) -> None:
    """Profile a step by part."""
    torch.set_num_threads(1)
    chosen: Any = {name: method_from(*name.split()) for name in method or METHODS}
    with torch.no_grad():
        found = list(rows({"dense": None, **chosen}, rounds))
    for row in found:
        print(f"{row.operations:7.1f} operations  {row.cpu_us:8.1f} us  {row.what}: {row.part}")
    if output:
        append_rows(output, found)


if __name__ == "__main__":
    typer.run(main)
