"""Edit a photo of any size by any supported pipeline; only masked pixels are put back."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .adapters import family_of
from .checks import whole
from .composite import feather_weight
from .compress import Compressed, compress
from .methods import HiLo, Method
from .photo import Photo, load_mask, load_photo
from .progress import Stage, Told, following
from .record import Run
from .region import CONTEXT, Region, choose_region, choose_regions
from .request import Request, arguments_for, in_one_call, takes_together, working_size

TOGETHER = 4  # pictures made in one call of the pipeline: memory grows with them
UnderWay = Sequence[tuple[int, Stage]]  # which jobs, by their places, and the stage of each


@dataclass(frozen=True, eq=False)
class Part:
    """A region that was edited: working pictures before and after, mask, and the run's record."""

    region: Region
    before: Image.Image
    mask: np.ndarray
    after: Image.Image
    run: Run


@dataclass(frozen=True, eq=False)
class Edit:
    """An edited photo, and the parts that it was edited in, the most masked one first."""

    photo: Photo
    parts: tuple[Part, ...]

    @property
    def region(self) -> Region:
        return self.parts[0].region

    @property
    def before(self) -> Image.Image:
        return self.parts[0].before

    @property
    def mask(self) -> np.ndarray:
        return self.parts[0].mask

    @property
    def after(self) -> Image.Image:
        return self.parts[0].after

    @property
    def run(self) -> Run:
        """The record of the first part's run."""
        return self.parts[0].run

    def sum(self, name: str) -> Any:
        """Of a figure of `Run`, such as `dit_seconds`, the sum over all parts."""
        return sum(getattr(part.run, name) for part in self.parts)


@dataclass(frozen=True, eq=False)
class Job:
    """An edit that is wanted: photo, mask bool [H, W] or none, and what is asked for."""

    photo: Photo
    mask: np.ndarray | None
    request: Request


def edit_photo(
    pipe: Any,
    photo: Photo | Image.Image | str | Path,
    mask: np.ndarray | Image.Image | str | Path | None = None,
    method: Method | str | None = None,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    label: str = "",
    guidance: float | None = None,
    cfg: float | None = None,
    strength: float | None = None,
    references: Sequence[Image.Image] = (),
    control: Image.Image | None = None,
    steps: int | None = None,
    seed: int = 0,
    size: int | None = None,
    context: float = CONTEXT,
    feather: int = 0,
    match: bool = True,
    keep: str | None = None,
    progress: Told | None = None,
) -> Edit:
    """Edit the masked part of a photo; every other sample of it stays as it was, bit for bit.

    The pipeline works on a region around the mask, made larger or smaller to its working size;
    masks far apart are edited in regions of their own, by the same words and seed. Without a mask
    it works on the whole photo, and what the prompt changes is found.

    Args:
        pipe: any pipeline that `compress` takes
        photo: as `load_photo` reads it, a picture, or a file
        mask: bool [H, W], True where the photo is to change; or a picture or a file, white there;
            None for a pipeline that edits by instruction
        method: see `compress`; `HiLo(find=True)` unless given, without a mask
        prompt, negative_prompt, label, guidance, cfg, strength, references, control, steps, seed:
            see `Request`; `control` has the photo's size
        size: pixels of the working picture's longer side; unless given, the pipeline's own
        context: share of the mask's longer side that is shown to the pipeline on each side of it
        feather: pixels of the photo over which the edit is blended in, inside the mask
        match: lead the edit's colours to the photo's along the mask's border, see `match_border`
        keep: "found": see `compress`; without a mask
        progress: called with a `Stage` at every stage and after every step; what it raises breaks
            the edit off there, and the pipeline is as it was

    Raises:
        ValueError: an empty mask, a mask of another size, an option out of range or one that this
            pipeline does not take, an unknown label.
        TypeError: a pipeline that cannot be compressed.
        PhotoError: a file that cannot be read.
    """
    request = Request(
        prompt, negative_prompt, label, guidance, cfg, strength, tuple(references), control,
        steps, seed,
    )  # fmt: skip
    photo = as_photo(photo)
    job = Job(photo, None if mask is None else as_mask(mask, photo), request)
    told = (lambda under_way: progress(under_way[0][1])) if progress else None
    [edit] = edit_jobs(
        pipe, [job], method, together=1, size=size, context=context, feather=feather, match=match,
        keep=keep, progress=told,
    )  # fmt: skip
    return edit


def edit_variations(
    pipe: Any,
    photo: Photo | Image.Image | str | Path,
    mask: np.ndarray | Image.Image | str | Path | None = None,
    method: Method | str | None = None,
    *,
    seeds: Sequence[int],
    together: int = TOGETHER,
    progress: Callable[[tuple[int, ...], Stage], None] | None = None,
    **options: Any,
) -> Iterator[Edit]:
    """Edit a photo once for each seed, several in one call of the pipeline: yields them in order.

    Each is the edit that `edit_photo` makes of its seed: to rounding under the mask, bit for bit
    outside. A pipeline that takes no list of photos, and an edit with references or a control
    picture, is called for each by itself. The seconds of a run that made several are shared out.

    Args:
        seeds: of the noise, one for each edit
        together: how many are made in one call at most; memory grows with them
        progress: as in `edit_photo`, told first which of the seeds, by their places, are under way
        options: all others of `edit_photo`, but for its `seed`

    Raises:
        ValueError, TypeError, PhotoError: see `edit_photo`.
    """
    together = whole(1)("together", together)
    words = {field.name for field in fields(Request)} & options.keys() - {"seed"}
    request = Request(**{name: options.pop(name) for name in words})
    photo = as_photo(photo)  # read once for all
    mask = None if mask is None else as_mask(mask, photo)
    jobs = [Job(photo, mask, replace(request, seed=seed)) for seed in seeds]
    _check(jobs, options.get("feather", 0))
    most = together if takes_together(pipe, request) else 1

    def edits(start: int) -> list[Edit]:
        def told(under_way: UnderWay) -> None:
            assert progress is not None
            progress(tuple(start + number for number, _ in under_way), under_way[0][1])

        some, watch = jobs[start : start + most], told if progress else None
        return edit_jobs(pipe, some, method, together=len(some), **options, progress=watch)

    return (edit for start in range(0, len(jobs), most) for edit in edits(start))


def together_on(device: str) -> int:
    """How many pictures to make in one call on a device, where nobody says it.

    A GPU reads the model's weights once for all of them. A CPU takes as long as one by one.
    """
    return 1 if device.startswith("cpu") else TOGETHER


def edit_jobs(
    pipe: Any,
    jobs: Sequence[Job],
    method: Method | str | None = None,
    *,
    together: int = TOGETHER,
    size: int | None = None,
    context: float = CONTEXT,
    feather: int = 0,
    match: bool = True,
    keep: str | None = None,
    progress: Callable[[UnderWay], None] | None = None,
) -> list[Edit]:
    """Edit several photos, several regions in one call of the pipeline where it takes a batch.

    Each is the edit that `edit_photo` makes of it: to rounding under the mask, bit for bit outside.

    Args:
        jobs: all with a mask, or none
        together: regions that one call is of at most; those of one working size whose jobs ask for
            the same but for the seed
        progress: is told which jobs are under way, by their places, and the stage of each
        method, size, context, feather, match, keep: see `edit_photo`

    Raises:
        ValueError, TypeError: see `edit_photo`.
    """
    _check(jobs, feather)
    if method is None and keep is None and jobs[0].mask is None:
        method = HiLo(find=True)
    fast = compress(pipe, method, match=match, keep=keep)
    parts: dict[int, dict[int, Part]] = {number: {} for number in range(len(jobs))}
    for group in _groups(pipe, jobs, together, size, context):
        with ExitStack() as stack:
            if progress:
                stack.enter_context(_following(pipe, group, progress))
            made = _edit_pieces(fast, group)
        for piece, part in zip(group, made, strict=True):
            parts[piece.number][piece.stage.region] = part
    return [
        _joined(job, [part for _, part in sorted(parts[number].items())], feather)
        for number, job in enumerate(jobs)
    ]


def _check(jobs: Sequence[Job], feather: int) -> None:
    """Raise ValueError now rather than after a run."""
    if feather < 0:
        raise ValueError(f"feather must be 0 pixels or more, got {feather}")
    for job in jobs:
        control, size = job.request.control, job.photo.size
        if control is not None and control.size != size:
            raise ValueError(f"the control picture is {control.size}, the photo {size}: resize it")


@dataclass(frozen=True, eq=False)
class _Piece:
    """A region of a job, as the stage that it is before it begins; the job's place among all."""

    number: int
    job: Job
    stage: Stage


def _groups(
    pipe: Any, jobs: Sequence[Job], together: int, size: int | None, context: float
) -> Iterator[list[_Piece]]:
    """The regions of all jobs, those of one call together."""
    token, side = family_of(pipe).token_pixels, working_size(pipe, size)
    often = Counter((id(job.photo), id(job.mask)) for job in jobs)
    alike: dict[Hashable, list[_Piece]] = {}
    for number, job in enumerate(jobs):
        pair = id(job.photo), id(job.mask)
        regions = _regions(job, side, context, token)
        for i, region in enumerate(regions):
            piece = _Piece(number, job, Stage("encode", i, len(regions), region))
            key: Hashable = len(alike), number, i
            if takes_together(pipe, job.request):
                words = repr(replace(job.request, seed=0))
                # Pictures of one photo and mask share a plan where they are by themselves.
                key = region.height, region.width, words, (*pair, i) if often[pair] > 1 else None
            alike.setdefault(key, []).append(piece)
    for pieces in alike.values():
        for start in range(0, len(pieces), together):
            yield pieces[start : start + together]


def _regions(job: Job, side: int, context: float, token: int) -> list[Region]:
    if job.mask is None:
        return [choose_region(np.ones(job.photo.pixels.shape[:2], bool), side, token=token)]
    return choose_regions(job.mask, side, context, token)


def _following(
    pipe: Any, group: Sequence[_Piece], progress: Callable[[UnderWay], None]
) -> AbstractContextManager[None]:
    """Tell of the run of all pieces, of each its own stage."""

    def told(stage: Stage) -> None:
        def own(place: int, piece: _Piece) -> Stage:
            at = piece.stage
            show = lambda _: stage.show(place)  # noqa: E731
            return replace(stage, region=at.region, regions=at.regions, area=at.area, show=show)

        progress([(piece.number, own(place, piece)) for place, piece in enumerate(group)])

    return following(pipe, group[0].stage, told)


def _edit_pieces(fast: Compressed, group: Sequence[_Piece]) -> list[Part]:
    """Edit the regions in one call of the pipeline."""
    befores = [piece.stage.area.take_photo(piece.job.photo) for piece in group]
    masks = [
        None if piece.job.mask is None else piece.stage.area.take_mask(piece.job.mask)
        for piece in group
    ]
    given = []
    for piece, before, mask in zip(group, befores, masks, strict=True):
        request = piece.job.request
        if request.control is not None:
            request = replace(request, control=piece.stage.area.take(request.control))
        given.append(arguments_for(fast.pipe, request, before, mask))
    output: Any = fast(**(in_one_call(given) if len(given) > 1 else given[0]))
    assert fast.last_run is not None
    parts = []
    for i, (piece, before, own, image) in enumerate(
        zip(group, befores, masks, output[0], strict=True)
    ):
        run = fast.last_run.of_picture(i, len(group))
        if own is None:  # found, in the pipeline's own pixels
            assert run.mask is not None
            found_HW = run.mask[0, 0].cpu().numpy() > 0
            own = np.asarray(Image.fromarray(found_HW).resize(before.size))
        after = image.convert("RGB").resize(before.size, Image.Resampling.LANCZOS)
        parts.append(Part(piece.stage.area, before, own, after, run))
    return parts


def _joined(job: Job, parts: Sequence[Part], feather: int) -> Edit:
    """The photo with all its parts put back."""
    edited = job.photo
    for part in parts:
        mask = _found(job.photo, part) if job.mask is None else job.mask
        edited = _paste(edited, mask, part, feather)
    return Edit(edited, tuple(parts))


def as_photo(photo: Photo | Image.Image | str | Path) -> Photo:
    """A photo of whatever `edit_photo` takes for one."""
    if isinstance(photo, Image.Image):
        return Photo(np.asarray(photo.convert("RGB")), "RGB", "PNG")
    return photo if isinstance(photo, Photo) else load_photo(photo)


def as_mask(mask: np.ndarray | Image.Image | str | Path, photo: Photo) -> np.ndarray:
    """A mask, bool [H, W] of the photo's size, of whatever `edit_photo` takes for one."""
    if isinstance(mask, str | Path):
        return load_mask(mask, photo)
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L")) >= 128
    if mask.dtype != bool or mask.shape != photo.pixels.shape[:2]:
        shape = "x".join(map(str, mask.shape[1::-1] if mask.ndim == 2 else mask.shape))
        raise ValueError(
            f"the mask is {shape} of {mask.dtype} but the photo {photo.size[0]}x{photo.size[1]}: "
            "resize the mask, and make it bool"
        )
    return mask


def _found(photo: Photo, part: Part) -> np.ndarray:
    """The region that was found, as a mask of the whole photo: bool [H, W]."""
    return np.asarray(Image.fromarray(part.mask).resize(photo.size, Image.Resampling.NEAREST))


def _paste(photo: Photo, mask: np.ndarray, part: Part, feather: int) -> Photo:
    region = part.region
    size = (region.right - region.left, region.bottom - region.top)
    full = np.zeros((*mask.shape, 3), np.uint8)
    after = part.after.resize(size, Image.Resampling.LANCZOS)
    full[region.rows, region.columns] = np.asarray(after)
    weight = np.zeros(mask.shape, np.float32)
    weight[region.rows, region.columns] = feather_weight(mask[region.rows, region.columns], feather)
    return photo.with_edit(full, weight)
