"""How the pipelines of one transformer class make tokens of a photo: nothing of a run is in here.

The sequence is made of spans of image tokens: the target first, then references (clean tokens of
the photo, or of other pictures).

B batch, T image tokens of a call, N of the target's grid, C channels of x_t, D channels a token.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import rerouted
from ..capture import Seen
from ..hooks import Call, unwrap
from ..source import Source

# Pipelines whose model sees the photo as x_t alone, noised.
IN_NOISE_ALONE = (
    *("FluxInpaintPipeline", "FluxImg2ImgPipeline", "FluxControlInpaintPipeline"),
    *("FluxControlNetInpaintPipeline", "ChromaInpaintPipeline", "ChromaImg2ImgPipeline"),
    *("QwenImageInpaintPipeline", "QwenImageImg2ImgPipeline"),
    *("StableDiffusion3InpaintPipeline", "StableDiffusion3Img2ImgPipeline"),
    *("ZImageInpaintPipeline", "ZImageImg2ImgPipeline"),
)
PLACES = ("txt_ids", "img_ids")  # where tokens sit: one table for the whole batch, or one for each
MASKED_SD3 = 33  # channels of an SD3 that is given mask and masked latents too


class Family:
    """A pipeline seen as one of its family. Tokens in rows, places in `img_ids`.

    Families override what differs. `call` is always the transformer's keyword arguments.

    short:       the class of its short calls, see `base.ShortCall`
    text_rests:  whether its text may run with the context alone, see `without_text`
    ids_name:    the argument that holds the places of image tokens
    image_first: whether image tokens come before text in the attention
    photo_last:  whether the pipeline takes up the photo after a control picture
    listed:      the arguments that are a list of one for each picture
    shared:      those that the pictures of a batch have in common, besides one table of places
    shares:      whether pictures with plans of their own may share a call, see `together`
    fills:       whether then shorter sequences may be filled up: image tokens are rows, and last
    """

    short: ClassVar[Any]
    text_rests: ClassVar[bool] = False
    ids_name: ClassVar[str] = "img_ids"
    image_first: ClassVar[bool] = False
    photo_last: ClassVar[bool] = False
    listed: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ()
    shares: ClassVar[bool] = False
    fills: ClassVar[bool] = False

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @property
    def model(self) -> Any:
        """The transformer, as it is without torch.compile."""
        return unwrap(self.pipe.transformer)

    @property
    def shown_photo(self) -> bool:
        """Whether the model is shown the clean photo, in its channels or as a reference."""
        names = {base.__name__ for base in type(self.pipe).__mro__}
        return not names & set(IN_NOISE_ALONE) or self.model.config.in_channels == MASKED_SD3

    @property
    def latents_a_side(self) -> int:
        """Latents a side of a token: its channels are those of 2x2, in the order c, row, column."""
        return 2

    @property
    def token_pixels(self) -> int:
        """Pixels a side of a token."""
        pipe = self.pipe
        spatial = getattr(pipe, "vae_scale_factor_spatial", None)
        return self.latents_a_side * (spatial or pipe.vae_scale_factor)

    def grids(self, call: Call) -> list[tuple[int, int]]:
        """The grid of every span of image tokens, the target's first."""
        ids_TA = call[self.ids_name]
        ids_TA = ids_TA if ids_TA.ndim == 2 else ids_TA[0]
        kinds = ids_TA[:, 0]
        starts = [0, *((kinds[1:] != kinds[:-1]).nonzero().flatten() + 1).tolist(), len(kinds)]
        spans = [ids_TA[a:b, 1:3] for a, b in pairwise(starts)]
        return [tuple((x.amax(0) - x.amin(0) + 1).int().tolist()) for x in spans]  # type: ignore[misc]

    def tokens(self, call: Call) -> Tensor:
        """All image tokens of a call, [B, T, D]."""
        return call["hidden_states"]

    def batch(self, call: Call) -> int:
        """How many pictures a call is of; those of a second prompt in it count again."""
        return len(call["hidden_states"])

    def part(self, call: Call, number: int, count: int) -> Call:
        """The call of every `count`-th picture of the batch from `number` on, alone.

        Raises ValueError where the batch is no multiple of that.
        """
        batch = self.batch(call)
        if batch % count:
            raise ValueError(
                f"the transformer was given a batch of {batch}, but {count} pictures have plans of "
                "their own: this use is not supported"
            )
        if count == 1:
            return call

        def own(value: Any) -> Any:
            if isinstance(value, Tensor):  # a view: what is known by its address stays known
                return value[number::count] if value.ndim and len(value) == batch else value
            if isinstance(value, list | tuple):
                return type(value)(map(own, value))
            return {k: own(v) for k, v in value.items()} if isinstance(value, dict) else value

        tables = (name for name in PLACES if getattr(call.get(name), "ndim", 0) == 2)
        shared = {*self.shared, *tables}
        part = {name: value if name in shared else own(value) for name, value in call.items()}
        return part | {name: call[name][number::count] for name in self.listed}

    def joined(self, answers: list[Any]) -> Any:
        """The answers of all parts of a batch as that of the batch: see `part`."""
        if len(answers) == 1:
            return answers[0]
        if isinstance(answers[0], Tensor):
            return torch.stack(answers, 1).flatten(0, 1)
        return [one for group in zip(*answers, strict=True) for one in group]

    def each_place(self, shorts: Sequence[Any], calls: Sequence[Call]) -> Any:
        """Rotary places of short calls that are one, as an attention module is to be given them.

        None where each picture of a batch has places of its own anyway.
        """
        return None

    def pictures_of(self, call: Call, least: int) -> int:
        """How many different pictures the batch is of: guidance may go through them twice.

        least: a number that it is a multiple of
        """
        batch, tokens_BTD = self.batch(call), self.tokens(call)
        fewer = (n for n in range(least, batch, least) if batch % n == 0)
        return next((n for n in fewer if torch.equal(tokens_BTD[n:], tokens_BTD[:-n])), batch)

    def pack(self, latents: Tensor) -> Tensor:
        """Latents as the pipeline's VAE step leaves them, [B, C/4, 2h, 2w], as tokens [B, N, C]."""
        B, C, height, width = latents.shape
        return self.pipe._pack_latents(latents, B, C, height, width)

    def encode(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels in [-1, 1] as the pipeline's own normalised latents."""
        return type(self.pipe)._encode_vae_image(self.pipe, image=photo_B3HW, generator=generator)

    def encode_tokens(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels in [-1, 1], of any size that makes whole tokens, as tokens [B, n, C]."""
        photo_B3HW = photo_B3HW.to(self.pipe._execution_device, self.pipe.vae.dtype)
        return self.pack(self.encode(photo_B3HW, generator))

    def make_source(self, seen: Seen, mask_image: Any, call: Call) -> tuple[Source, Tensor] | None:
        """The source on the target's grid and its mask [B, 1, H, W], from 0 to 1.

        None where no photo or no mask went by.
        """
        mask_B1HW = seen.mask_B1HW
        if mask_B1HW is None and mask_image is not None:
            mask_B1HW = seen.mask_like_photo(mask_image)
        if seen.photo_B3HW is None or mask_B1HW is None:
            return None
        if seen.photo_B3HW.shape[1] != 3:
            raise ValueError(
                "image was given as latents: give the photo itself, its pixels are planned on"
            )
        grid = self.grids(call)[0]
        size = [n * self.token_pixels for n in grid]
        photo_B3HW, latents = seen.photo_B3HW.float(), seen.latents
        if list(photo_B3HW.shape[-2:]) != size:  # a reference of another size than the target
            photo_B3HW = F.interpolate(photo_B3HW, size, mode="bilinear", antialias=True)
            latents = None
        if list(mask_B1HW.shape[-2:]) != size:
            mask_B1HW = F.adaptive_max_pool2d(mask_B1HW.float(), size)
        if latents is None:  # each photo as if it were the only one
            latents_BNC = torch.cat([self._encode_alone(one) for one in photo_B3HW.split(1)])
        else:
            latents_BNC = self.pack(latents)
        if latents_BNC.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"the photo's latents make {latents_BNC.shape[1]} tokens, but the grid is {grid}: "
                "this use is not supported"
            )
        return Source(photo_B3HW, latents_BNC, grid), mask_B1HW.float()

    def _encode_alone(self, photo_13HW: Tensor) -> Tensor:
        private = torch.Generator().manual_seed(0)  # the user's generator stays untouched
        return self.encode_tokens(photo_13HW, private)

    def attentions(self) -> list[Any]:
        """The attention modules whose keys are those of the image."""
        return [module for module in self.model.modules() if getattr(module, "processor", None)]

    def attending(
        self, run: Any, modules: list[Any] | None = None, aligns: bool = True
    ) -> Iterable[AbstractContextManager[None]]:
        """What weighs keys and aligns places in attention, where the run's short call has any.

        Args:
            modules: the attentions that it is for; all of the transformer's unless given
            aligns: whether a processor's answer is aligned; else the family has its own way
        """
        weighted, aligned = run.inside
        aligned = aligned and aligns
        if not (weighted or aligned):
            return ()

        def weigh(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
        ) -> Tensor:
            return run.short.weigh(module, query, key, value, original, **kw)

        def align(output: Any, redo: Callable[[Any], Any]) -> Any:
            return run.short.align(output, redo)

        again = align if aligned else None
        return (rerouted(self.pipe.transformer, weigh, modules, again),)

    def apart(self) -> Iterable[AbstractContextManager[None]]:
        """What keeps other models that run modules of the transformer out of what is put there."""
        return ()

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        """What is put inside the transformer for a run, whose `short` is the short call under way.

        Put on anew when `run.inside` is no longer the same.

        Raises:
            ValueError: what this family cannot do.
        """
        return ()

    def without_text(self, call: Call) -> Call:
        """The call with no text tokens, their keys and values being kept."""
        raise ValueError(
            f"Refresh(text=True) is not supported with {type(self.pipe).__name__}: leave out text"
        )
