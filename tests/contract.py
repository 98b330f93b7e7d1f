"""The contract's one helper: edits of the table's pipelines, watched, remembered, and checked.

A pipeline is built once a session and lent to test after test; when a test ends, `Edit.check` holds
the pipeline against what it was.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import SchedulerMixin
from families import BY_NAME, FAMILIES, arguments, calls_of, plain_arguments, skips
from family import Family, Lack
from torch import Tensor, nn

from hilotoken import HiLo, compress
from hilotoken.attention import aside
from hilotoken.hooks import shadowed
from hilotoken.record import Run

KEEP_ALL = HiLo(detail=1.0, coarse=0)
FEW = HiLo(dilate=1, detail=0.05, coarse=0, bucket=8)


def worst(left: Tensor, right: Tensor) -> float:
    return (left.float() - right.float()).abs().max().item()


# Runs.


class Step(NamedTuple):
    """One step of the scheduler, as tokens, before the pipeline blends anything."""

    velocity: Tensor
    end: Tensor
    before: Tensor


@contextmanager
def stepping(pipe: Any) -> Iterator[list[Step]]:
    """Every step of the scheduler for the length of this context."""
    original, seen = pipe.scheduler.step, []

    def step(velocity, timestep, sample, *args, **kwargs):
        result = original(velocity, timestep, sample, *args, **kwargs)
        seen.append(Step(velocity.clone(), result[0].clone(), sample.clone()))
        return result

    pipe.scheduler.step = step
    try:
        yield seen
    finally:
        del pipe.scheduler.step


def steps(family: Family, pipe: Any, run: Callable[..., Any], given: dict) -> list[Step]:
    """Every step of a run, as tokens."""
    with stepping(pipe) as seen:
        run(**given)
    return [Step(*(family.tokens(pipe, part) for part in step)) for step in seen]


def plain_steps(family: Family, pipe: Any, given: dict) -> list[Step]:
    return steps(family, pipe, pipe, plain_arguments(pipe, given))


def same(left: list[Step], right: list[Step]) -> bool:
    """Whether all velocities and outcomes are, to the bit."""
    return len(left) == len(right) and all(
        torch.equal(a.velocity, b.velocity) and torch.equal(a.end, b.end)
        for a, b in zip(left, right, strict=True)
    )


class Ran(NamedTuple):
    """What a run gave: its steps, its record (None of the plain pipeline), and the states that it
    left the global generator and the user's in."""

    steps: list[Step]
    record: Run | None
    generators: list[Tensor]


def dropped(record: Run, picture: int = 0) -> Tensor:
    """bool [N]: the tokens of the grid that did not run of a picture of the batch."""
    every_N = torch.ones(record.tokens_full, dtype=torch.bool)
    return every_N.index_fill(0, record.plans[picture % len(record.plans)].keep_K, False)


def whole_controlnet(pipe: Any) -> AbstractContextManager[Any]:
    """A ControlNet that runs blocks of the transformer's drops nothing in them."""
    if not hasattr(pipe, "controlnet"):
        return nullcontext()

    def apart(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with aside(pipe.transformer):
            return original(*args, **kwargs)

    return shadowed(pipe.controlnet, "forward", apart)


# What a call could leave behind.


class Same:
    """Equal to what holds the very same thing, which it keeps alive."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __repr__(self) -> str:
        return f"Same({type(self.thing).__name__} at {id(self.thing):x})"


def state(pipe: Any) -> dict[str, Any]:
    """Everything that a call could leave on the pipeline, its parts and their modules and classes.

    Equal before and after: names of attributes, weights to the bit, hooks, processors, submodules,
    methods, configuration. What diffusers' own call sets anew is left out: values of underscored
    names, and a scheduler's.
    """
    parts = {"pipe": pipe, **_public(pipe), **pipe.components}
    things = {"pipe": pipe}
    for name, part in parts.items():
        inner = part.named_modules() if isinstance(part, nn.Module) else [("", part)]
        things |= {f"{name}.{place}": thing for place, thing in inner if hasattr(thing, "__dict__")}
    found = {name: _marks(thing) for name, thing in things.items()}
    classes = {type(thing) for thing in things.values()}
    return found | {f"class {kind.__qualname__}": _public_of(kind) for kind in classes}


def _public_of(kind: type) -> dict[str, Any]:
    """What a class does, without what Python and diffusers note on it as it is used."""
    return {n: v for n, v in vars(kind).items() if not n.startswith("_") or n == "__call__"}


def _public(thing: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _marks(thing: Any) -> tuple[Any, ...]:
    own, names = vars(thing), vars(thing).keys() | set()
    if isinstance(thing, SchedulerMixin):
        values = {k: v for k, v in own.items() if callable(v)}
    else:
        values = {k: v for k, v in own.items() if k in _OF_EVERY_MODULE or not k.startswith("_")}
    config = getattr(thing, "config", None)
    if isinstance(config, dict):  # of diffusers, where printing it adds underscored names
        config = {k: v for k, v in config.items() if not k.startswith("_")}
    empty = dict, OrderedDict  # as most hooks of a module are
    settled = {k: _value(v) for k, v in values.items() if type(v) not in empty or v}
    return names, Same(type(thing)), settled, _value(config)


def _value(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | tuple | None):
        return value
    if isinstance(value, dict):
        return {k: _value(v) for k, v in value.items()}
    if isinstance(value, Tensor):
        return Same(value), value._version, _bits(value)
    holds = not isinstance(value, nn.Module | type) and hasattr(value, "__dict__")
    return Same(value), vars(value).keys() | set() if holds else None


def _bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


# Runs broken off.


class Stop(Exception):
    pass


def stop_at(call: int) -> Callable[..., None]:
    """A hook that breaks the run off at its `call`-th call."""
    calls: list[None] = []

    def hook(*_: Any, **__: Any) -> None:
        calls.append(None)
        if len(calls) == call:
            raise Stop

    return hook


# Pipelines and runs of the session.

_pipes: dict[tuple[Family, torch.dtype], tuple[Any, dict[str, Any]]] = {}
_runs: dict[tuple[Any, ...], Ran] = {}


@dataclass(frozen=True)
class Edit:
    """A pipeline of the table, lent for one test, in a dtype, and one way of calling it."""

    family: Family
    call: str = "plain"
    dtype: torch.dtype = torch.float32

    @property
    def pipe(self) -> Any:
        """Built once a session, and run once: what its first call sets is there."""
        key = self.family, self.dtype
        if key not in _pipes:
            pipe = self.family.make(self.dtype)
            pipe(**plain_arguments(pipe, arguments(self.family, dtype=self.dtype)))
            _pipes[key] = pipe, state(pipe)
        return _pipes[key][0]

    def check(self) -> None:
        """The pipeline is as it was; if not, it is lent no more."""
        key = self.family, self.dtype
        if key not in _pipes:
            return
        pipe, before = _pipes[key]
        after = state(pipe)
        if after != before:
            del _pipes[key]
            names = before.keys() | after.keys()
            changed = [name for name in names if before.get(name) != after.get(name)]
            raise AssertionError(f"the test left its mark on {sorted(changed)}")

    def arguments(self, **changes: Any) -> dict[str, Any]:
        return arguments(self.family, self.call, self.dtype, **changes)

    def run(self, method: Any = None, **changes: Any) -> Ran:
        """By a method, or the plain pipeline."""
        pipe, given = self.pipe, self.arguments(**changes)
        fast = compress(pipe, method) if method else None
        if fast is None:
            given = plain_arguments(pipe, given)
        users = given.get("generator") or []
        found = steps(self.family, pipe, fast or pipe, given)
        users = users if isinstance(users, list) else [users]
        states = [torch.get_rng_state(), *(user.get_state() for user in users)]
        return Ran(found, fast.last_run if fast else None, states)

    def ran(self, method: Any = None) -> Ran:
        """The same run, remembered: a run leaves nothing behind, so it need not be repeated."""
        key = self.family, self.call, self.dtype, method
        if key not in _runs:
            _runs[key] = self.run(method)
        return _runs[key]

    def source(self) -> Tensor:
        """The pipeline's own source latents."""
        return self.family.source(self.pipe, self.arguments())


Row = tuple[Family, str, torch.dtype]


def rows(calls: str = "plain", dtypes: Iterable[torch.dtype] = (torch.float32,)) -> list[Row]:
    """Every row of the table, called plainly or in every way, in each dtype."""
    return [
        (family, call, dtype)
        for dtype in dtypes
        for family in FAMILIES
        for call in (calls_of(family) if calls == "every" else [calls])
    ]


def edits(rows: Iterable[Row], *cells: Lack) -> pytest.MarkDecorator:
    """Parametrizes a test by the fixture `edit`.

    A row is skipped, with the reason that the docs give, where its family lacks one of the cells
    or that way of calling. Tests of one family run in one process, which has built its pipeline.
    """
    return pytest.mark.parametrize("edit", [_param(row, cells) for row in rows], indirect=True)


def _param(row: Row, cells: Iterable[Lack]) -> Any:
    family, call, dtype = row
    half = "-half" if dtype is torch.bfloat16 else ""
    marks = [*skips(family, call, *cells), pytest.mark.xdist_group(family.name)]
    return pytest.param(row, id=f"{family.name}-{call}{half}", marks=marks)


def of_classes(names: Iterable[str], *cells: Lack) -> pytest.MarkDecorator:
    """Parametrizes a test by plain edits of the named pipelines."""
    return edits([(BY_NAME[name], "plain", torch.float32) for name in names], *cells)


every_edit, every_call = edits(rows()), edits(rows("every"))
