"""One edit as a value: what is asked for, and what is told of it on the way."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from ..methods.presets import DEFAULT


@dataclass(frozen=True)
class Preset:
    """A method and steps under one name, and what they cost in words."""

    method: str
    steps: int
    cost: str


PRESETS = {
    "fast": Preset("fast", 8, "fewest tokens"),
    "balanced": Preset("balanced", 8, "all around it looked at once"),
    "faithful": Preset("faithful", 8, "nearest to dense"),
    "dense": Preset("dense", 8, "every token"),
}


class Cancelled(Exception):
    """Nobody waits for these edits any more."""


class Refused(ValueError):
    """A task that cannot be run as asked; `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Patch:
    """An earlier edit: an RGBA PNG, opaque where it changes the photo, and its corner's place."""

    left: int
    top: int
    png: bytes


@dataclass(frozen=True)
class Task:
    """What is asked for: a photo and a mask as files, and the options of `edit_photo`.

    mask_mode: what in the mask is edited, as `photo.read_mask` has it: "alpha", what is at least
               half transparent; "white", what is at least half white
    method:    a preset's name, or a method and its options as words, such as "hilo detail=0.2"
    count:     pictures wanted; the i-th has the seed `seed + i`
    together:  so many are made in one call of the pipeline at most, of this task and of others that
               ask for the same
    partials:  previews wanted of each
    output:    "png", "jpeg", "webp"; or "patch": an RGBA PNG of the mask's bounding box alone
    quality:   of JPEG and lossy WebP, 0 to 100; None for as good as it gets: lossless WebP
    patches:   earlier edits that this one builds on, in their order
    """

    photo: bytes
    mask: bytes
    mask_mode: str = "alpha"
    prompt: str = ""
    label: str = ""
    method: str = DEFAULT
    steps: int = 8
    size: int | None = None
    seed: int = 0
    feather: int = 0
    match: bool = True
    count: int = 1
    together: int = 1
    partials: int = 0
    output: str = "png"
    quality: int | None = None
    patches: tuple[Patch, ...] = ()

    @property
    def kind(self) -> Hashable:
        """Equal for tasks that may be run at once: what is asked for, but for photo and seed."""
        words = self.prompt, self.label, self.method
        return *words, self.steps, self.size, self.feather, self.match, self.together


@dataclass(frozen=True)
class Progress:
    """Steps done of all steps of all pictures."""

    done: int
    of: int


@dataclass(frozen=True)
class Preview:
    """What the model expects the picture to become, in the task's output format."""

    image: int
    index: int
    data: bytes
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """A finished picture and the figures of its run.

    box:   left, top, width, height of the mask's bounding box in the photo, which patches cover
    plans: of a patch, the tokens that ran in each region: see `drawn_plan`
    """

    image: int
    data: bytes
    seed: int
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    figures: dict[str, Any] = field(default_factory=dict)
    plans: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Failed:
    """Why there is no picture; with `param`, the request's own fault."""

    message: str
    param: str | None = None
    refused: bool = False


Event = Progress | Preview | Picture | Failed
Report = Callable[[int, Event], None]  # of which task, by its place
