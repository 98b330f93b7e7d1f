"""The run of edits: the only part of the service that knows the model.

`run_tasks` decodes, edits and encodes; it tells of every step through `report`, and whoever wants
it to stop raises `Cancelled` there.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ..edit import Edit, Job, UnderWay, edit_jobs
from ..methods.parse import read_method
from ..plan import TokenPlan
from ..progress import Stage
from ..region import Region
from ..request import Request, takes_together, working_size
from .files import bounding_box, encode, pasted, read_mask, read_photo, with_patch
from .task import Cancelled, Event, Failed, Picture, Preview, Progress, Refused, Report, Task

log = logging.getLogger("hilotoken.serve")


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
        photo = read_photo("image", task.photo)
        for patch in task.patches:
            photo = with_patch(photo, patch)
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
        shown = pasted(self.photo, self.mask, stage.area, small)
        data = encode(shown, self.mask, self.task)
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


def _picture(task: Task, edit: Edit, mask: np.ndarray, image: int, seed: int) -> Picture:
    figures = {"tokens_run": round(edit.sum("mean_tokens_run"))}  # a step: some run seldom
    figures["tokens_full"] = edit.sum("tokens_full")
    for name in ("dit_seconds", "vae_seconds", "total_seconds"):
        figures[name] = round(edit.sum(name), 4)
    figures["steps"] = edit.run.steps
    parts = edit.parts if task.output == "patch" else ()
    plans = [drawn_plan(part.run.plan, part.region) for part in parts]
    data = encode(edit.photo, mask, task)
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
