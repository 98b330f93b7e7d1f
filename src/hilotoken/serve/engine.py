"""One edit as a value: what is asked for, what is told on the way, and the run between.

The only part of the service that knows the model. `run_tasks` decodes, edits and encodes; it tells
of every step through `report`, and whoever wants it to stop raises `Cancelled` there.
"""

import io
import logging
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import photo as photo_room
from ..edit import Edit, Job, UnderWay, edit_jobs
from ..methods.parse import read_method
from ..methods.presets import DEFAULT
from ..photo import Photo, PhotoError, load_photo, save_photo
from ..plan import TokenPlan
from ..progress import Stage
from ..region import Region
from ..request import Request, takes_together, working_size

log = logging.getLogger("hilotoken.serve")


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


def describe(pipe: Any) -> dict[str, Any]:
    """What a client has to know of a pipeline: labels, whether it reads a prompt, working size."""
    labels = list(getattr(pipe, "labels", ()))
    return {
        "labels": labels,
        "reads_prompt": getattr(pipe, "text_encoder", None) is not None,
        "working_size": working_size(pipe, None),
    }


def run_tasks(pipe: Any, tasks: Sequence[Task], report: Report) -> None:
    """Edit as tasks of one kind say; every picture is reported as it is done.

    A task that fails, by a file that cannot be read or by the model, is reported to have `Failed`.
    Where tasks cannot be run at once, each is run by itself.

    Raises:
        Cancelled: what `report` raises, between two steps; the pipeline is as it was.
    """
    opened: list[_Opened] = []
    for place, task in enumerate(tasks):
        own = partial(report, place)
        with _failing(own):
            opened.append(_Opened(pipe, task, own))
    if len(opened) > 1:
        try:
            _run(pipe, opened)
            return
        except Cancelled:
            raise
        except Exception as error:  # of one of them, or of memory that is enough for one
            log.warning("edits at once failed by %s: each by itself", type(error).__name__)
    for one in opened:
        with _failing(one.report):
            _run(pipe, [one])


@contextmanager
def _failing(report: Callable[[Event], None]) -> Iterator[None]:
    """What goes wrong in this context is reported as the end of a task."""
    try:
        yield
    except (Cancelled, EOFError, OSError):  # nobody waits, or nobody is there any more
        raise
    except Refused as error:
        report(Failed(str(error), error.param, refused=True))
    except Exception as error:  # the model's own: out of memory and the like
        log.exception("an edit failed")
        report(Failed(f"the edit failed: {type(error).__name__}"))


def _refusing(param: str | None, do: Callable[[], Any]) -> Any:
    """What `do` returns; its ValueError or TypeError is the request's fault."""
    try:
        return do()
    except Refused:
        raise
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        named = param or next((n for n in ("prompt", "label", "steps") if n in text), None)
        raise Refused(text, named) from error


class _Opened:
    """A task whose files were read: its edits, and what is told of them."""

    def __init__(self, pipe: Any, task: Task, report: Callable[[Event], None]) -> None:
        self.task, self.report = task, report
        photo = _read("image", task.photo)
        for patch in task.patches:
            photo = _apply(photo, patch)
        self.photo, self.mask = photo, read_mask(task, photo)
        self.method = _refusing("method", partial(read_method, task.method))
        _refusing("working_size", partial(working_size, pipe, task.size))
        words = partial(Request, prompt=task.prompt, label=task.label, steps=task.steps)
        self.seeds = [(task.seed + image) % 2**32 for image in range(task.count)]
        requests = [_refusing(None, partial(words, seed=seed)) for seed in self.seeds]
        self.jobs = [Job(photo, self.mask, request) for request in requests]
        self.done = [0] * task.count  # steps of each picture

    def follow(self, image: int, stage: Stage) -> None:
        """Report progress and, where wanted, previews of the region under way."""
        if stage.name != "denoise":
            return
        self.done[image] += 1
        steps = stage.regions * self.task.steps  # of a picture
        all_steps = self.task.count * steps
        self.report(Progress(min(sum(self.done), all_steps), all_steps))
        wanted = min(self.task.partials, steps - 1)
        shown_at = [round((i + 1) * steps / (wanted + 1)) for i in range(wanted)]
        if self.done[image] in shown_at:
            self._preview(image, stage, shown_at.index(self.done[image]))

    def _preview(self, image: int, stage: Stage, index: int) -> None:
        small = stage.preview()
        if small is None:  # latents of a layout that is not known
            return
        shown = _paste(self.photo, self.mask, stage.area, small)
        data = _encode(shown, self.mask, self.task)
        self.report(Preview(image, index, data, bounding_box(self.mask)))

    def end(self, image: int, edit: Edit) -> None:
        self.report(_picture(self.task, edit, self.mask, image, self.seeds[image]))


def _run(pipe: Any, opened: Sequence[_Opened]) -> None:
    """Make the pictures of the tasks, several in a call of the pipeline where it takes a batch."""
    pictures = [(one, image) for one in opened for image in range(one.task.count)]
    task, first = opened[0].task, opened[0].jobs[0].request
    most = task.together if takes_together(pipe, first) else 1
    for start in range(0, len(pictures), most):
        some = pictures[start : start + most]

        def follow(under_way: UnderWay, some: Sequence[tuple[_Opened, int]] = some) -> None:
            for number, stage in under_way:
                one, image = some[number]
                one.follow(image, stage)

        edit = partial(
            edit_jobs, pipe, [one.jobs[image] for one, image in some], opened[0].method,
            together=most, size=task.size, feather=task.feather, match=task.match, progress=follow,
        )  # fmt: skip
        for (one, image), edited in zip(some, _refusing(None, edit), strict=True):
            one.end(image, edited)


def read_mask(task: Task, photo: Photo) -> np.ndarray:
    """The task's mask in the photo's upright frame, bool [H, W], True where it is edited."""
    with _as_file("mask", task.mask) as path:
        return photo_room.read_mask(path, photo, mask_from=task.mask_mode).pixels


@contextmanager
def _as_file(name: str, data: bytes) -> Iterator[Path]:
    """The bytes as a file, for readers that take a path; errors name the field, not the path."""
    with tempfile.TemporaryDirectory(prefix="hilo-") as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            yield path
        except PhotoError as error:
            raise Refused(str(error).replace(str(path), name), name) from error


def _read(name: str, data: bytes) -> Photo:
    with _as_file(name, data) as path:
        return load_photo(path)


def _apply(photo: Photo, patch: Patch) -> Photo:
    picture = _read("patch", patch.png)
    alpha, rgb = picture.alpha(), np.asarray(picture.rgb())
    height, width = rgb.shape[:2]
    rows = slice(patch.top, patch.top + height)
    columns = slice(patch.left, patch.left + width)
    fits = (
        min(patch.left, patch.top) >= 0
        and rows.stop <= photo.size[1]
        and columns.stop <= photo.size[0]
    )
    if alpha is None or not fits:
        raise Refused("a patch must have alpha and lie inside the photo", "patch")
    return _with_part(photo, rows, columns, rgb, alpha > 0)


def _with_part(
    photo: Photo, rows: slice, columns: slice, rgb: np.ndarray, mask: np.ndarray
) -> Photo:
    """The photo with a part of it replaced where the mask, of that part, says."""
    shape = photo.pixels.shape[:2]
    full, weight = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32)
    full[rows, columns], weight[rows, columns] = rgb, mask
    return photo.with_edit(full, weight)


def _paste(photo: Photo, mask: np.ndarray, region: Region, picture: Image.Image) -> Photo:
    size = (region.right - region.left, region.bottom - region.top)
    rgb = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    part = mask[region.rows, region.columns]
    return _with_part(photo, region.rows, region.columns, rgb, part)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is True."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _picture(task: Task, edit: Edit, mask: np.ndarray, image: int, seed: int) -> Picture:
    figures = {"tokens_run": round(edit.sum("mean_tokens_run"))}  # a step: some run seldom
    figures["tokens_full"] = edit.sum("tokens_full")
    for name in ("dit_seconds", "vae_seconds", "total_seconds"):
        figures[name] = round(edit.sum(name), 4)
    figures["steps"] = edit.run.steps
    parts = edit.parts if task.output == "patch" else ()
    plans = [drawn_plan(part.run.plan, part.region) for part in parts]
    data = _encode(edit.photo, mask, task)
    return Picture(image, data, seed, edit.photo.size, bounding_box(mask), figures, plans)


def drawn_plan(plan: TokenPlan, region: Region) -> dict[str, Any]:
    """A plan as plain numbers: what a page needs to draw it over the photo."""
    edit = plan.edit_N.nonzero().flatten().tolist()
    native = plan.keep_K.tolist()
    return {
        "grid": list(plan.grid),
        "region": [region.left, region.top, region.right, region.bottom],
        "edit": edit,
        "detail": sorted(set(native) - set(edit)),
        "coarse": plan.cells_M.tolist(),
        "stride": plan.stride,
    }


def _encode(photo: Photo, mask: np.ndarray, task: Task) -> bytes:
    """The picture in the task's output format."""
    if task.output == "patch":
        return encode_patch(photo, mask)
    if task.output == "jpeg" or (task.output == "webp" and task.quality is not None):
        quality = 95 if task.quality is None else task.quality
        options = {"subsampling": 0} if task.output == "jpeg" else {}
        file = io.BytesIO()
        photo.rgb().save(
            file, task.output.upper(), quality=quality, icc_profile=photo.icc, **options
        )
        return file.getvalue()
    return encode_photo(photo, task.output)


def encode_photo(photo: Photo, output: str) -> bytes:
    """The photo with all its samples and metadata; Refused where the format cannot hold it."""
    with tempfile.TemporaryDirectory(prefix="hilo-") as folder:
        path = Path(folder) / f"photo.{output}"
        try:
            save_photo(photo, path)
        except PhotoError as error:
            raise Refused(str(error).replace(str(path), "the image"), "output_format") from error
        return path.read_bytes()


def encode_patch(photo: Photo, mask: np.ndarray) -> bytes:
    """The mask's bounding box as an RGBA PNG, opaque where the mask is True."""
    left, top, width, height = bounding_box(mask)
    picture = photo.rgb().crop((left, top, left + width, top + height))
    part = mask[top : top + height, left : left + width]
    picture.putalpha(Image.fromarray(part.astype(np.uint8) * 255))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def save(photo: bytes, patches: tuple[Patch, ...], output: str) -> bytes:
    """A photo with the edits that were made of it, in a lossless format with its metadata."""
    edited = _read("image", photo)
    for patch in patches:
        edited = _apply(edited, patch)
    return encode_photo(edited, output)
