"""Edit a photo of any size by any supported pipeline; only masked pixels are put back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
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
from .request import Request, arguments_for, for_seeds, takes_together, working_size

TOGETHER = 4  # pictures made in one call of the pipeline: memory grows with them


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
        method: `HiLo()` unless given, or `HiLo(find=True)` without a mask; or a name, of `PRESETS`
            or `METHODS`
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
    [edit] = _edit_together(
        pipe, photo, mask, method, request, (seed,), size, context, feather, match, keep, progress
    )
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
    """Edit a photo once for each seed, several in one call of the pipeline; yields them in order.

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
    most = together if takes_together(pipe, request) else 1
    photo = _as_photo(photo)  # read once for all
    mask = None if mask is None else _as_mask(mask, photo)
    for start in range(0, len(seeds), most):
        own = tuple(range(start, min(start + most, len(seeds))))
        told = partial(progress, own) if progress else None
        chosen = [seeds[i] for i in own]
        yield from _edit_together(
            pipe, photo, mask, method, request, chosen, **options, progress=told
        )


def _edit_together(
    pipe: Any,
    photo: Photo | Image.Image | str | Path,
    mask: np.ndarray | Image.Image | str | Path | None,
    method: Method | str | None,
    request: Request,
    seeds: Sequence[int],
    size: int | None = None,
    context: float = CONTEXT,
    feather: int = 0,
    match: bool = True,
    keep: str | None = None,
    progress: Told | None = None,
) -> list[Edit]:
    """See `edit_photo`: an edit for each seed, all in one call of the pipeline for each region."""
    photo = _as_photo(photo)
    painted = None if mask is None else _as_mask(mask, photo)
    if feather < 0:  # said now, not after the run
        raise ValueError(f"feather must be 0 pixels or more, got {feather}")
    if request.control is not None and request.control.size != photo.size:
        raise ValueError(
            f"the control picture is {request.control.size}, the photo {photo.size}: resize it"
        )
    token, side = family_of(pipe).token_pixels, working_size(pipe, size)
    if painted is None:
        regions = [choose_region(np.ones(photo.pixels.shape[:2], bool), side, token=token)]
        method = method or (None if keep else HiLo(find=True))
    else:
        regions = choose_regions(painted, side, context, token)
    parts: list[list[Part]] = [[] for _ in seeds]
    edited = [photo] * len(seeds)
    fast = compress(pipe, method, match=match, keep=keep)
    for number, region in enumerate(regions):
        with ExitStack() as stack:
            if progress:
                stage = Stage("encode", number, len(regions), region)
                stack.enter_context(following(pipe, stage, progress))
            made = _edit_region(fast, photo, painted, region, request, seeds)
        for i, part in enumerate(made):
            shown = _found(photo, part) if painted is None else painted
            edited[i] = _paste(edited[i], shown, part, feather)
            parts[i].append(part)
    return [Edit(one, tuple(own)) for one, own in zip(edited, parts, strict=True)]


def _as_photo(photo: Photo | Image.Image | str | Path) -> Photo:
    if isinstance(photo, Image.Image):
        return Photo(np.asarray(photo.convert("RGB")), "RGB", "PNG")
    return photo if isinstance(photo, Photo) else load_photo(photo)


def _as_mask(mask: np.ndarray | Image.Image | str | Path, photo: Photo) -> np.ndarray:
    """Bool [H, W] of the photo's size."""
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


def _edit_region(
    fast: Compressed,
    photo: Photo,
    mask: np.ndarray | None,
    region: Region,
    request: Request,
    seeds: Sequence[int],
) -> list[Part]:
    before = region.take_photo(photo)
    small = None if mask is None else region.take_mask(mask)
    if request.control is not None:
        request = replace(request, control=region.take(request.control))
    given = arguments_for(fast.pipe, replace(request, seed=seeds[0]), before, small)
    output: Any = fast(**(for_seeds(given, seeds) if len(seeds) > 1 else given))
    assert fast.last_run is not None
    run, parts = fast.last_run.shared(len(seeds)), []
    for i, image in enumerate(output[0]):
        own = small
        if own is None:  # found, in the pipeline's own pixels
            assert run.mask is not None
            found_HW = run.mask[i % len(run.mask), 0].cpu().numpy() > 0
            own = np.asarray(Image.fromarray(found_HW).resize(before.size))
        after = image.convert("RGB").resize(before.size, Image.Resampling.LANCZOS)
        parts.append(Part(region, before, own, after, run))
    return parts


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
