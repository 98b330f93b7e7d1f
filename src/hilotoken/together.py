"""Lanes that run about as many tokens, in one call of the transformer.

Whatever acts on tokens one by one takes them as any batch, the shorter sequences filled up at their
ends. In the attention each lane's pictures have that lane's rotary places, weights and kept keys,
and nothing of what fills them up.

B batch, S image tokens, L tokens of text and image, H heads, D channels a head.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .attention import filled_up, rerouted
from .hooks import Call
from .lane import Lane

TABLES = ("txt_ids", "img_ids", "img_shapes")  # of places, which each lane has of its own
FILL = 1 / 8  # of a sequence may be what fills it up: it costs as much as other tokens


class Shared:
    """Which lanes of a run share a call.

    known: those that did, by their numbers
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.known: dict[tuple[int, ...], Together] = {}

    def turns(self) -> list["Lane | Together"]:
        """The lanes of the call under way: those alike at once, the others one after another."""
        alike: dict[Hashable, list[Lane]] = {}
        for lane in self.lanes:
            alike.setdefault(_kind_of(lane), []).append(lane)
        return [self._turn(group) for lanes in alike.values() for group in _of_a_length(lanes)]

    def _turn(self, lanes: list[Lane]) -> "Lane | Together":
        if len(lanes) == 1:
            return lanes[0]
        numbers = tuple(lane.number for lane in lanes)
        if numbers not in self.known:
            self.known[numbers] = Together(lanes)
        return self.known[numbers]


class Together:
    """Some lanes as if they were one: see `lane.Lane`, whose part it takes in a call.

    short: what a family's stand-ins ask, answered by each lane for its own pictures
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes, self.family = lanes, lanes[0].family
        self.short = Shorts(lanes)
        self._places: Any = None  # rotary ones, of the call under way
        self._fill = dict.fromkeys(lanes, 0)  # how many tokens fill up each one's sequence
        self._alike = False  # whether attention is the same for all pictures
        self._inside = ExitStack()
        self._is_inside = False

    @property
    def inside(self) -> tuple[bool, bool]:
        """What is to act on all pictures alike: nothing, since `attend` does it for each."""
        return False, False

    def shorten(self) -> Call:
        """The lanes' short calls as one."""
        calls = [lane.shorten() for lane in self.lanes]
        self._places = self.family.each_place([lane.short for lane in self.lanes], calls)
        longest = max(map(_length, self.lanes))
        self._fill = {lane: longest - _length(lane) for lane in self.lanes}
        filled = any(self._fill.values())
        self._alike = not filled and not any(lane.reuse or lane.inside[0] for lane in self.lanes)
        if filled:
            calls = [
                call | {"hidden_states": filled_up(call["hidden_states"], fill)}
                for call, fill in zip(calls, self._fill.values(), strict=True)
            ]
        return _joined(calls, self.family.listed)

    def enter(self) -> None:
        """Put inside the transformer what acts there."""
        if self._is_inside:
            return
        self._is_inside = True
        places = (lambda: self._places) if self._places is not None else None
        model, modules = self.family.model, self.family.attentions()
        for stand_in in (
            *self.family.stand_ins(self),
            rerouted(model, self.attend, modules, places=places),
        ):
            self._inside.enter_context(stand_in)

    def leave(self) -> None:
        """Take out of the transformer what was put inside."""
        self._is_inside = False
        self._inside.close()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """Attention of each lane's pictures as that lane by itself would have it."""
        if self._alike:
            return original(query, key, value, **kw)
        joint = key.shape[1] == query.shape[1]  # else keys of an image prompt

        def own(lane: Lane, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
            fill = self._fill[lane]
            queries, keys = query.shape[1] - fill, key.shape[1] - fill * joint
            masked = kw if mask is None else kw | {"attn_mask": mask[..., :keys]}
            query, key, value = query[:, :queries], key[:, :keys], value[:, :keys]
            output = lane.attend(module, query, key, value, original, **masked)
            return filled_up(output, fill)

        mask = kw.get("attn_mask")
        if mask is not None:
            mask = mask.expand(len(query), *mask.shape[1:])
        return _each(self.lanes, own, query, key, value, mask)

    def restore(self, velocity: Any) -> dict[int, Any]:
        """The answer of each, whole again, by the number of its pictures."""
        count = len(velocity) // len(self.lanes)
        parts = [velocity[i * count : (i + 1) * count] for i in range(len(self.lanes))]
        answers: dict[int, Any] = {}
        for lane, part in zip(self.lanes, parts, strict=True):
            fill = self._fill[lane]
            answers |= lane.restore(part[:, : part.shape[1] - fill] if fill else part)
        return answers


class Shorts:
    """The short calls of lanes, as what families put inside a transformer asks for them."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes

    @property
    def shapes(self) -> Any:
        """The whole grids, which are the same for all: of Qwen-Image."""
        return self._first.shapes

    def short_table(self, pos_embed: Any, whole_TD: Tensor) -> Tensor:
        """As long as each one's own, which is in force in the attention: of Qwen-Image."""
        return self._first.short_table(pos_embed, whole_TD)

    def gathered(self, model: Any, *whole: Tensor) -> Any:
        """What is gathered of each lane's tokens: of SD3 and Z-Image."""
        return _each(self.lanes, lambda lane, *own: lane.short.gathered(model, *own), *whole)

    def put_back(self, short_BSC: Tensor) -> Tensor:
        """What is put back of each lane's tokens: of SD3 and Z-Image."""
        return _each(self.lanes, lambda lane, own: lane.short.put_back(own), short_BSC)

    @property
    def _first(self) -> Any:
        return self.lanes[0].short


def _each(lanes: Sequence[Lane], function: Callable[..., Any], *batches: Tensor | None) -> Any:
    """What the function gives for each lane and its own part of the batches, as a batch again."""
    count = len(lanes)
    parts = [[None] * count if x is None else x.chunk(count) for x in batches]
    made = [function(*given) for given in zip(lanes, *parts, strict=True)]
    if isinstance(made[0], tuple):
        return tuple(map(torch.cat, zip(*made, strict=True)))
    return torch.cat(made)


def _length(lane: Lane) -> int:
    assert lane.short is not None
    return len(lane.short.counts_S)


def _of_a_length(lanes: list[Lane]) -> list[list[Lane]]:
    """Lanes of one kind, those together of which no sequence has to be filled up by much."""
    if len(lanes) == 1:  # which may run every token, and has no short sequence
        return [lanes]
    groups: list[list[Lane]] = []
    for lane in sorted(lanes, key=_length, reverse=True):
        if groups and _length(lane) >= (1 - FILL) * _length(groups[-1][0]):
            groups[-1].append(lane)
        else:
            groups.append([lane])
    return [sorted(group, key=lambda lane: lane.number) for group in groups]


def _kind_of(lane: Lane) -> Hashable:
    """Equal for lanes of which one call can be made; else of this lane alone."""
    call = lane.shorten()
    if lane.short is None or lane.inside[1]:  # whole; or attention is to be asked twice
        return lane.number
    if not lane.family.fills:
        return _length(lane), _kind(call)
    own = {*TABLES, "hidden_states"}
    return _kind({name: value for name, value in call.items() if name not in own})


def _kind(value: Any) -> Hashable:
    """The shape of an argument, or what else it has to be equal in."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_kind, value))
    if isinstance(value, dict):
        return tuple((name, _kind(own)) for name, own in value.items())
    return value if isinstance(value, Hashable) else id(value)


def _joined(calls: Sequence[Any], listed: Sequence[str] = ()) -> Any:
    """Calls of one kind as a call of all their pictures; parts of them likewise."""
    first = calls[0]
    if all(call is first for call in calls):
        return first
    if isinstance(first, dict):
        tables = {name: first[name] for name in TABLES if name in first}
        lists = {name: [one for call in calls for one in call[name]] for name in listed}
        others = first.keys() - tables.keys() - lists.keys()
        joined = {name: _joined([call[name] for call in calls]) for name in others}
        return joined | tables | lists
    if isinstance(first, list | tuple):
        return type(first)(map(_joined, zip(*calls, strict=True)))
    return torch.cat(list(calls)) if isinstance(first, Tensor) else first
