"""`compress(pipe, method)`: the pipeline, run on the tokens that matter.

For the length of one call: capture the source, plan, attach hooks to the object in
`pipe.transformer`, run the pipeline, detach, composite, record. Outside a call the user's pipeline
is as it always was, so there is nothing to disable and two wrappers never meet.
"""

import inspect
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .adapters import family_of
from .arguments import (
    MASKS,
    PHOTOS,
    check_crop,
    check_pixels,
    exact_mask,
    exact_photo,
    first_of,
    makes_from_text,
    named,
    read_mask,
    takes_mask,
    with_plain_masks,
)
from .attach import attached, vae_parts
from .blocks.attach import placed
from .checks import choice, flag, unless_none, whole
from .composite import composite_images
from .grid import as_batch
from .layout import layout_of
from .lending import Opened
from .method import Method
from .methods import Dense, HiLo, Within, as_method, preset
from .methods.find import Find
from .methods.udit import check_phases
from .plan import whole_plan
from .record import Run, brief
from .session import MEMORY, Session
from .timing import Stopwatch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def compress(
    pipe: "DiffusionPipeline",
    method: Method | str | None = None,
    *,
    inside: Method | None = None,
    feather: int = 0,
    match: bool = False,
    decode: str = "auto",
    encode: str = "auto",
    keep: str | None = None,
) -> "Compressed":
    """A callable that stands in for the pipeline and runs it compressed.

    It takes the pipeline's own arguments and returns its own output, with the photo's own pixels
    outside the mask; other attributes are the pipeline's. Where the pipeline has no `mask_image`
    (instruction editing), the callable takes one. A pipeline that makes pictures from text alone
    is run by a method that acts inside blocks; there is no photo to plan by or put back.

    Args:
        pipe: a diffusers pipeline that edits under a mask, or makes pictures from text
        method: a method, or a name, of `PRESETS` or `METHODS`; unless given, "balanced", and with
            `inside`, which nothing that keeps keys goes with, `HiLo()`
        inside: what acts inside the blocks on the tokens that `method` leaves: short for
            `Within(method, inside)`
        feather: pixels over which the edit is blended in, inside the mask
        match: lead the edit's colours to the photo's along the mask's border, see `match_border`
        decode: "region" decodes what the mask needs alone, "whole" all; "auto" a region where a
            crop of the latents decodes to the same pixels, as the autoencoder itself tells, and
            the whole by `Dense()`, which compresses nothing. "approximate" decodes a region where
            an autoencoder normalises over the whole, such as FLUX's, by statistics of a smaller
            decode; how far off it is `last_run.decode_error` says, measured at the first decode
        encode: the same for what is encoded: of a picture that is the photo but for the mask, or
            but for an edit, "region" encodes the difference alone; to rounding the same latents
        keep: "found": no mask is given; what the run changed is found when it ends, and all else is
            the photo's own pixels. Every token runs. To find it early, which saves most of the
            steps, give `HiLo(find=True)` instead

    Raises:
        TypeError: the pipeline is not one that can be compressed, and the message lists those that
            can; or the method is none.
        ValueError: an argument out of range, an unknown name, or methods that do not go together.
    """
    if type(pipe) is Compressed:
        raise TypeError("this pipeline is compressed already: compress the pipeline it wraps")
    feather, match = whole(0)("feather", feather), flag("match", match)
    choice("auto", "region", "approximate", "whole")("decode", decode)
    choice("auto", "region", "whole")("encode", encode)
    unless_none(choice("found"))("keep", keep)
    if method is None and (keep or inside):
        method = Dense() if keep else HiLo()
    method = as_method(method, partial(_preset_for, pipe))
    method = method if inside is None else Within(method, inside)
    if not (method.site == "blocks" and makes_from_text(pipe)):
        try:
            family_of(pipe)
        except TypeError as error:
            if not makes_from_text(pipe):
                raise
            raise TypeError(
                f"{error}. It takes no photo and no mask to plan by: methods that act inside "
                "blocks, such as ToMe(), run on it"
            ) from None
    if method.inner:
        layout_of(pipe.transformer)
    check_phases(pipe.transformer, method)
    if keep or method.find:
        _check_finds(pipe, method, keep)
    return Compressed(pipe, method, feather, match, decode, encode, keep)


def _check_finds(pipe: Any, method: Method, keep: str | None) -> None:
    """Raise ValueError where no region can be found, or needs a mask in the first place."""
    if keep and (method.shortens or method.site == "call"):
        raise ValueError(
            f"keep={keep!r} finds what changed once every token ran, and {brief(method)} runs a "
            "part by a mask: leave one out, or give HiLo(find=True)"
        )
    if "mask_image" in inspect.signature(pipe.__call__).parameters:
        raise ValueError(
            f"{type(pipe).__name__} is given a mask, so there is none to find: leave out find and "
            "keep, or take a pipeline that edits by instruction"
        )
    if makes_from_text(pipe) or not family_of(pipe).shown_photo:
        raise ValueError(
            f"{type(pipe).__name__} is not shown the photo beside the noise, and changes all of "
            "it: a region is found of instruction editing, such as FluxKontextPipeline"
        )


def _preset_for(pipe: Any, name: str) -> Method:
    try:
        family = family_of(pipe)
    except TypeError:  # which `compress` refuses, with a reason
        return preset(name)
    return preset(name, family.shown_photo, family.text_rests)


class Compressed:
    """See `compress`. `last_run` holds the record of the last call that ended well."""

    _OWN = frozenset({"pipe", "method", "feather", "match", "decode", "encode", "keep", "last_run"})
    pipe: Any  # pipelines have no call in common that a type could state

    def __init__(
        self,
        pipe: Any,
        method: Any,
        feather: int,
        match: bool,
        decode: str,
        encode: str,
        keep: str | None = None,
    ) -> None:
        self.pipe, self.method, self.keep = pipe, method, keep
        self.feather, self.match = feather, match
        self.decode, self.encode = decode, encode
        self.last_run: Run | None = None

    def __getattr__(self, name: str) -> Any:
        if name in Compressed._OWN:  # not set yet: while copied or unpickled
            raise AttributeError(name)
        return getattr(self.pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Compressed._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The pipeline's, so that what looks at it, as AutoPipeline does, finds the pipeline."""
        return type(self.pipe)

    def __repr__(self) -> str:
        return f"<{type(self.pipe).__name__} compressed by {brief(self.method)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        own = self.pipe, self.method, self.feather, self.match
        own += self.decode, self.encode, self.keep
        return Compressed, own, {"last_run": self.last_run}

    def to(self, *args: Any, **kwargs: Any) -> "Compressed":
        """Move the pipeline; what comes back is still compressed."""
        self.pipe.to(*args, **kwargs)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own arguments and output."""
        return self._call(args, kwargs)

    def open(
        self,
        photo: Any,
        *,
        memory: int = MEMORY,
        reuse_context: bool = False,
        offload: bool = False,
    ) -> Session:
        """Open a photo, to edit it several times: see `Session`."""
        if self.keep or self.method.find:
            raise ValueError(
                "a session edits under masks, and this finds its own region: leave out find and "
                "keep, or call it for each edit"
            )
        return Session(self, self._call, photo, memory, reuse_context, offload)

    def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], opened: Opened | None = None
    ) -> Any:
        method = self.method
        if method.site == "call":

            def edit(by: Method, given: dict[str, Any]) -> tuple[Any, Run]:
                return self._edit(by, (), given, opened)

            given = named(self.pipe, args, kwargs)
            output, run = method.run(edit, self.pipe, given, self.feather)
        elif method.site == "blocks" and makes_from_text(self.pipe):
            output, run = self._generate(method, args, kwargs)
        else:
            output, run = self._edit(method, args, kwargs, opened)
        self.last_run = replace(run, method=method)
        return output

    def _generate(
        self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Run]:
        """From text alone: nothing is captured, nothing put back."""
        watch, started = Stopwatch(self.pipe._execution_device), time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(watch.watch("vae", *vae_parts(self.pipe)))
            stack.enter_context(watch.watch("dit", self.pipe.transformer))
            placement = stack.enter_context(
                placed(self.pipe.transformer, method, self.pipe.scheduler)
            )
            output = self.pipe(*args, **kwargs)
        assert placement.tokens is not None  # else the pipeline would have failed
        seconds = watch.seconds  # waits for the device, so that the total is whole
        return output, Run(
            whole_plan(placement.tokens.grid),
            method,
            placement.clock.step + 1,
            (placement.length, placement.length),
            0.0,
            seconds.get("dit", 0.0),
            seconds.get("vae", 0.0),
            time.perf_counter() - started,
            placement.kept,
        )

    def _edit(
        self,
        method: Method,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        opened: Opened | None,
    ) -> tuple[Any, Run]:
        """Under a mask, given or found, by what the pipeline makes of photo and mask."""
        given = named(self.pipe, args, kwargs)
        if not takes_mask(self.pipe):
            kwargs = {name: value for name, value in kwargs.items() if name != "mask_image"}
        image, mask_image = first_of(given, PHOTOS), first_of(given, MASKS)
        find = method.find or (Find() if self.keep else None)
        if find and mask_image is not None:
            raise ValueError(
                "mask_image was given, and the region is to be found: leave out the mask, or give "
                "a method without find and no keep"
            )
        if mask_image is None and not find:
            raise ValueError(
                "mask_image was not given: there is nothing to compress by; give one, white where "
                "the photo is to be edited; HiLo(find=True) and keep='found' do without, and the "
                "pipeline itself"
            )
        check_pixels("image", image, lowest=-1)  # which pipelines take as [-1, 1]
        if not find and not read_mask(mask_image).any():
            raise ValueError("mask_image has nothing in it: paint white where the photo may change")
        cropped = check_crop(self.pipe, given)
        args, kwargs = with_plain_masks(self.pipe, args, kwargs)
        started = time.perf_counter()
        ways = self.decode, self.encode
        with attached(self.pipe, method, mask_image, *ways, opened, find) as run:
            output = self.pipe(*args, **kwargs)
        if cropped:  # the pipeline has pasted it back: the whole photo, at its own size
            output = self._composite(output, as_batch(image, 3).float(), read_mask(mask_image))
        elif given.get("output_type", "pil") != "latent":
            assert run.source is not None  # else the first step refused
            assert run.mask_B1HW is not None
            photo_B3HW = exact_photo(image, run.source.photo_B3HW)
            mask_B1HW = run.mask_B1HW
            if not find and not takes_mask(self.pipe):
                mask_B1HW = exact_mask(mask_image, mask_B1HW)
            output = self._composite(output, photo_B3HW, mask_B1HW)
        return output, run.record(method, started)

    def _composite(self, output: Any, photo_B3HW: Tensor, mask_B1HW: Tensor) -> Any:
        mixed = composite_images(output[0], photo_B3HW, mask_B1HW, self.feather, self.match)
        if isinstance(output, tuple):
            return (mixed, *output[1:])
        setattr(output, next(iter(output.keys())), mixed)  # `images`; of Kandinsky, `image`
        return output
