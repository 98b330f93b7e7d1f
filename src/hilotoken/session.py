"""A photo kept open: edits of it one after another, each paying for what is new.

    with fast.open(photo) as session:
        first = session.edit(mask, prompt="a red door", seed=1).images[0]
        others = [one.images[0] for one in session.variations(mask, 3, prompt="a red door")]
        session.accept(first)
        second = session.edit(another_mask, prompt="a lamp").images[0]

What is kept is found by its content, so it is used wherever it fits and nowhere else: pictures and
their latents, prompts and their embeddings, and, where asked for, the context's keys and values.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .arguments import mask_name, photo_name
from .checks import SEED, flag, whole
from .grid import as_batch
from .hooks import any_compiled
from .lending import Lending, Opened
from .memory import Memory
from .record import Run, brief

MEMORY = 8 * 2**30  # bytes: FLUX.1's whole context takes 2 GiB a refresh at 1024 px


class Session:
    """A photo, edited again and again by one compressed pipeline: `compress(pipe).open(photo)`.

    The first edit equals the pipeline's own call bit for bit. Later ones are equal to rounding,
    unless `reuse_context` is on. An edit that fails, or is interrupted, leaves all as it was.

    photo:         as the pipeline takes it: what the next edit starts from
    memory:        bytes that may be kept; what was used longest ago goes first
    reuse_context: edits under other masks take the context's keys and values from those before,
                   where seed, steps, prompt and photo are the same: faster, and near, not equal
    offload:       those keys and values wait in the CPU's memory
    last_run:      the record of the last edit; `reused` says what was taken from before

    Weights may change meanwhile, adapters and their scales too, and nothing stale is used.

    Raises:
        TypeError: the pipeline makes pictures from text alone; several photos.
        ValueError: an option out of range, or that would do nothing with this method.
    """

    def __init__(
        self,
        fast: Any,
        call: Callable[[tuple[Any, ...], dict[str, Any], Opened], Any],
        photo: Any,
        memory: int = MEMORY,
        reuse_context: bool = False,
        offload: bool = False,
    ) -> None:
        _check_one(photo)
        self._fast, self._call = fast, call
        self._photo_name, self._mask_name = photo_name(fast.pipe), mask_name(fast.pipe)
        self.memory = Memory(whole(0, 2**63)("memory", memory))
        self.reuse_context, self.offload = (
            flag("reuse_context", reuse_context),
            flag("offload", offload),
        )
        if reuse_context:
            self._check_context()
        if offload and fast.method.refresh is None:
            raise ValueError(
                f"offload: {brief(fast.method)} keeps no context that could wait elsewhere: give "
                "one with refresh, such as the preset 'fast', or leave out offload"
            )
        self._photos = [photo]
        self._closed = False
        self.last_run: Run | None = None

    @property
    def photo(self) -> Any:
        """The photo as it is now."""
        return self._photos[-1]

    @property
    def bytes(self) -> int:
        """Memory that what is kept takes now."""
        return self.memory.bytes

    def edit(self, mask: Any, *, seed: int | None = None, **arguments: Any) -> Any:
        """The pipeline's own output for an edit of the photo under this mask.

        Args:
            mask: as the pipeline takes it, white where the photo may change
            seed: of the noise; short for `generator`
            arguments: the pipeline's own

        Raises:
            ValueError: a session that is closed, a seed beside a generator; and see `compress`.
        """
        lending = Lending(self.memory, device=self._device) if self.reuse_context else None
        return self._edit(self.photo, mask, seed, arguments, lending)

    def variations(
        self, mask: Any, count: int, *, seed: int = 0, **arguments: Any
    ) -> Iterator[Any]:
        """Several results under one mask, of the seeds from `seed` on, each as it is done.

        All are of the photo as it is now, also where one of them is accepted meanwhile.

        The first is an edit like any other. By a method that refreshes, the others run the edit
        tokens alone: they take the context of the first, so all share the noise of its context.

        Raises:
            ValueError: a count below 1; and see `edit`.
        """
        count, seed = whole(1)("count", count), whole(0, SEED - count)("seed", seed)
        self._check_open()
        return self._variations(self.photo, mask, range(seed, seed + count), arguments)

    def _variations(
        self, photo: Any, mask: Any, seeds: range, arguments: dict[str, Any]
    ) -> Iterator[Any]:
        room = Memory((self.memory.limit or 0) - self.bytes)
        for seed in seeds:
            lends = seed == seeds[0] and len(seeds) > 1
            lending = Lending(room, lends, self._device, True)
            yield self._edit(photo, mask, seed, arguments, lending)

    def accept(self, image: Any) -> None:
        """Make a result the photo: the next edit starts from it, and encodes the change alone.

        Raises:
            TypeError: several pictures.
            ValueError: a picture of another size than the photo.
        """
        self._check_open()
        _check_one(image)
        new, now = (as_batch(x, 3).shape[-2:] for x in (image, self.photo))
        if new != now:
            raise ValueError(
                f"the image is {new[1]}x{new[0]} pixels, the photo {now[1]}x{now[0]}: open the "
                "photo at the size that the pipeline works at"
            )
        self._photos.append(image)

    def undo(self) -> Any:
        """The photo as it was before the last `accept`, which it is again.

        Raises:
            ValueError: nothing was accepted.
        """
        self._check_open()
        if len(self._photos) == 1:
            raise ValueError("nothing was accepted: the photo is as it was opened")
        self._photos.pop()
        return self.photo

    def close(self) -> None:
        """Let go of all that is kept; no more edits."""
        self._closed = True
        self.memory.clear()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kept = "closed" if self._closed else f"{self.bytes / 2**20:.1f} MiB kept"
        return f"<Session of {self._fast!r}: {kept}>"

    @property
    def _device(self) -> str | None:
        return "cpu" if self.offload else None

    def _edit(
        self,
        photo: Any,
        mask: Any,
        seed: int | None,
        arguments: dict[str, Any],
        lending: Lending | None,
    ) -> Any:
        self._check_open()
        for name in (self._photo_name, self._mask_name):
            if name in arguments:
                raise ValueError(f"{name} is the session's to give: open the photo, pass the mask")
        if seed is not None:
            if arguments.get("generator") is not None:
                raise ValueError("seed and generator both make the noise: give one of them")
            made = torch.Generator().manual_seed(whole(0, SEED)("seed", seed))
            arguments = arguments | {"generator": made}
        given = arguments | {self._photo_name: photo, self._mask_name: mask}
        output = self._call((), given, Opened(self.memory, lending))
        self.last_run = self._fast.last_run
        return output

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the session is closed: open the photo again")

    def _check_context(self) -> None:
        """Refuse to reuse a context that is not kept, or cannot be lent in part."""
        method = self._fast.method
        refresh = method.refresh
        why = ""
        if refresh is None:
            why = "keeps no context: give one with refresh, such as the preset 'fast'"
        elif refresh.blocks != "all":
            why = "keeps context in some blocks alone: leave out blocks"
        elif refresh.capture:
            why = "captures a step with the keys of one edit: leave out capture"
        elif getattr(method, "coarse", 0):
            why = "has coarse tokens, which follow the mask: give coarse=0"
        elif any_compiled(self._fast.pipe.transformer):
            why = "runs compiled, and compiled code takes no context of another edit"
        if why:
            raise ValueError(f"reuse_context: {brief(method)} {why}, or leave out reuse_context")


def _check_one(photo: Any) -> None:
    """Raise TypeError for several photos."""
    if isinstance(photo, list | tuple):
        raise TypeError(f"a session is of one photo, got {len(photo)}: give each by itself")
