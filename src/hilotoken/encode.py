"""Encode what is new: of a picture most of which was encoded before, the rest is taken from then.

The masked picture that Fill models are shown is the photo but for the mask, and a photo that a
user goes on with is the one before but for the edit. Around what changed an encoder of convolutions
alone makes the same latents as before. See `decode`, and of the same kinds of autoencoder. Where it
is a stack of layers, what the first ones made of the picture before is kept beside the latents:
most of the work is theirs, and a change has not spread far there.

B batch, C latent channels, h w latents, H W pixels.
"""

import copy
import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .decode import (
    APART,
    FURTHEST,
    ROWS,
    WORTH,
    boxes_of,
    check_region,
    in_parts,
    scaled,
    tight_boxes,
)
from .hooks import shadowed
from .memory import Key, Memory, fingerprint, weights_of
from .windows import (
    Box,
    Layer,
    area_of,
    layers_of,
    run_windows,
    whole_windows,
    windows_changed,
    work_of,
)

ROUNDING = 5e-7  # half of what may come of a crop and of what is left out together
KIND = "encoded"
LAST = 0.25  # of an encoder's work: what the layers at its end do, of which nothing is kept
_NUMBERS = itertools.count()  # tell pictures of one size apart

Encode = Callable[..., Any]  # pictures to an autoencoder's output


class Reach(NamedTuple):
    """How far an encoder looks, in latents: around a crop, and beyond a change."""

    margin: int
    spread: int


_REACHES: WeakKeyDictionary[nn.Module, Reach | None] = WeakKeyDictionary()  # in single precision


def encode_reach(vae: Any) -> Reach | None:
    """How far the encoder looks where that matters; None if a crop has other latents.

    Probed on a strip of noise, as `decode.decode_margin` is.
    """
    encoder = getattr(vae, "encoder", None)
    if not isinstance(encoder, nn.Module) or in_parts(vae):
        return None
    weight = next(encoder.parameters(), None)
    if weight is None or weight.dtype != torch.float32:  # kernels round half precision by the shape
        return None
    if encoder not in _REACHES:
        _REACHES[encoder] = _probe(vae, weight)
    return _REACHES[encoder]


@torch.no_grad()
def _probe(vae: Any, weight: Tensor) -> Reach | None:
    width, generator = 2 * FURTHEST + 1, torch.Generator().manual_seed(0)
    try:
        scale = (
            64 // _latents(type(vae).encode(vae, torch.zeros(1, 3, 64, 64).to(weight))).shape[-1]
        )
        noise = torch.randn(1, 3, ROWS * scale, width * scale, generator=generator).clamp(-1, 1)
        strip = noise.to(weight)
        encode = lambda x: _latents(type(vae).encode(vae, x))  # noqa: E731
        first = strip.clone()
        first[..., 0] = torch.nan
        spread, whole = encode(first), encode(strip)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None  # pictures of another kind, a distribution, or weights elsewhere
    if spread[..., -1].isnan().any() or whole.shape[-1] != width:
        return None
    middle = whole[..., FURTHEST : FURTHEST + 1]

    def near(found: Tensor) -> bool:
        return bool((found - middle).abs().max() <= ROUNDING * middle.abs().max().clamp_min(1))

    def cropped(margin: int) -> Tensor:
        crop = strip[..., (FURTHEST - margin) * scale : (FURTHEST + margin + 1) * scale]
        return encode(crop)[..., margin : margin + 1]

    def changed(margin: int) -> Tensor:
        other = -strip
        kept = slice((FURTHEST - margin) * scale, (FURTHEST + margin + 1) * scale)
        other[..., kept] = strip[..., kept]
        return encode(other)[..., FURTHEST : FURTHEST + 1]

    margins = range(FURTHEST)
    least = [bisect_left(margins, True, key=lambda m: near(of(m))) for of in (cropped, changed)]
    return Reach(*least)


def _latents(output: Any) -> Tensor:
    """Of an autoencoder's output; AttributeError where it is a distribution."""
    return output[0] if isinstance(output, tuple) else output.latents


class Front:
    """The first layers of an encoder's stack, which do most of its work.

    size: of the pictures, height and width
    """

    def __init__(self, stack: nn.Module, layers: Sequence[Layer], size: tuple[int, int]) -> None:
        windows = whole_windows(layers, size)
        self.whole = work_of(layers, windows)
        left, count = self.whole, 0
        while left > LAST * self.whole:
            left -= work_of(layers[count : count + 1], windows[count : count + 2])
            count += 1
        self.stack, self.left, self.size = stack, left, size
        self.first, self.last = layers[:count], layers[count:]

    def windows(self, changed: list[Box]) -> list[list[Box]]:
        """For each box of pixels that changed, the windows of the first layers."""
        return [windows_changed(self.first, self.size, box) for box in changed]

    def share(self, windows: list[list[Box]]) -> float:
        """Of all of the encoder's work, that for these windows and of the last layers."""
        return (self.left + sum(work_of(self.first, own) for own in windows)) / self.whole

    def encode(
        self, encode: Encode, picture: Tensor, known: Tensor | None, windows: list[list[Box]]
    ) -> tuple[Any, Tensor]:
        """The encoder's output, and what the first layers made.

        known: what they made of another picture, from which this differs in the windows alone;
            None if all of them are to run
        """
        made: list[Tensor] = []

        def run(_: Any, x: Tensor) -> Tensor:
            if known is None:
                middle = x
                for layer in self.first:
                    middle = layer.module(middle)
            else:
                middle = known.clone()
                for own in windows:
                    part = run_windows(self.first, own, x[..., own[0][0], own[0][1]])
                    middle[..., own[-1][0], own[-1][1]] = part
            made.append(middle)
            for layer in self.last:
                middle = layer.module(middle)
            return middle

        with shadowed(self.stack, "forward", run):
            output = encode(picture)
        return output, made[0]


class Known(NamedTuple):
    """A picture that was encoded, what came of it, and what the first layers of a stack made."""

    picture: Tensor
    output: Any
    middle: Tensor | None


class Encoding:
    """Stands in for `vae.encode` in a run: what is in the memory is not encoded again.

    A picture seen before gets the latents, or the distribution, that it got then; one that differs
    in a region is encoded there alone, where the autoencoder allows.

    asked, ran: of all pictures so far their pixels, and of those the share that was the encoder's
        work
    """

    def __init__(
        self, vae: Any, memory: Memory, reach: Reach | None, layers: Sequence[Layer] = ()
    ) -> None:
        self.vae, self.memory, self.reach, self.layers = vae, memory, reach, layers
        self.asked = self.ran = 0

    @classmethod
    def of(cls, vae: Any, way: str, memory: Memory | None) -> "Encoding | None":
        """Of a run; None where all of it is encoded.

        Args:
            way: "auto", "region" or "whole"
            memory: of the session that the run is of, if any

        Raises:
            ValueError: see `check_region`.
        """
        layers = [] if way == "whole" else _exact_layers(vae)
        reach = None if way == "whole" or layers else encode_reach(vae)
        check_region("encode", way, vae, bool(layers) or reach is not None)
        if not layers and reach is None and memory is None:
            return None
        return cls(vae, memory or Memory(), reach, layers)

    @cached_property
    def _weights(self) -> Key:
        """Those that it encodes by, which are the same for all of a run."""
        return weights_of(self.vae)

    @property
    def share(self) -> float:
        """Of the work asked for, what was done."""
        return self.ran / self.asked if self.asked else 1.0

    def __call__(self, original: Encode, picture: Any, *args: Any, **kw: Any) -> Any:
        if not isinstance(picture, Tensor) or args or kw or torch.is_grad_enabled():
            return original(picture, *args, **kw)
        key = KIND, picture.shape, picture.dtype, picture.device, self._weights
        found = self._from_memory(original, picture, key) or self._whole(original, picture)
        made, ran = found
        size = picture.shape[0] * picture.shape[-2] * picture.shape[-1]
        self.asked, self.ran = self.asked + size, self.ran + ran * size
        if ran:
            kept = made._replace(picture=picture.clone(), output=copy.deepcopy(made.output))
            self.memory.put((*key, next(_NUMBERS)), kept)
        return made.output

    def _whole(self, original: Encode, picture: Tensor) -> tuple[Known, float]:
        front = self._front(picture)
        if front is None:
            return Known(picture, original(picture), None), 1.0
        return Known(picture, *front.encode(original, picture, None, [])), 1.0

    def _front(self, picture: Tensor) -> Front | None:
        if not (self.layers and picture.ndim == 4) or in_parts(self.vae):
            return None
        return Front(self.vae.encoder.layers, self.layers, tuple(picture.shape[-2:]))  # type: ignore[arg-type]

    def _from_memory(
        self, original: Encode, picture: Tensor, key: Key
    ) -> tuple[Known, float] | None:
        """What the memory makes of the picture, and the share that was encoded."""
        nearest, least = None, 1.0
        for name, known in self.memory.of_kind(KIND):
            share = _differing(picture, known.picture).mean().item() if name[:-1] == key else 1.0
            if share < least:
                nearest, least = name, share
        if nearest is None:
            return None
        known = self.memory.get(nearest)
        if not least:
            return known._replace(output=copy.deepcopy(known.output)), 0.0
        if known.middle is not None and (front := self._front(picture)):
            return self._behind(front, original, picture, known)
        if self.reach is None or picture.ndim != 4 or in_parts(self.vae):
            return None
        return self._anew(original, picture, known)

    def _behind(
        self, front: Front, original: Encode, picture: Tensor, known: Known
    ) -> tuple[Known, float] | None:
        """The picture by what the first layers made of the one that was known."""
        scale = math.prod(layer.down for layer in self.layers)
        if any(side % scale for side in front.size):
            return None
        grid = front.size[0] // scale, front.size[1] // scale
        boxes = tight_boxes(_differing(picture, known.picture), grid, APART)
        windows = front.windows([scaled(box, scale) for box in boxes])
        if (share := front.share(windows)) > WORTH:
            return None
        return Known(picture, *front.encode(original, picture, known.middle, windows)), share

    def _anew(self, original: Encode, picture: Tensor, known: Known) -> tuple[Known, float] | None:
        """What came of the picture that was known, encoded anew where the change reaches."""
        assert self.reach is not None
        output = copy.deepcopy(known.output)
        latents = _latents(output)
        (H, W), (h, w) = picture.shape[-2:], latents.shape[-2:]
        if H % h or W % w or H // h != W // w:
            return None
        boxes = boxes_of(_differing(picture, known.picture), (h, w), sum(self.reach))
        if (share := area_of(boxes) / (h * w)) > WORTH:
            return None
        for box in boxes:
            rows, columns = scaled(box, H // h)
            part = _latents(original(picture[..., rows, columns]))
            pairs = list(zip(box, (h, w), strict=True))
            right = [_without_margin(side, limit, self.reach.margin) for side, limit in pairs]
            own = [
                slice(r.start - s.start, r.stop - s.start)
                for r, (s, _) in zip(right, pairs, strict=True)
            ]
            latents[..., right[0], right[1]] = part[..., own[0], own[1]]
        return Known(picture, output, None), share


def _exact_layers(vae: Any) -> list[Layer]:
    """The encoder's layers, where windows of them come to the same as the whole."""
    layers = layers_of(getattr(vae, "encoder", None))
    weights = [p.dtype for layer in layers for p in layer.module.parameters()]
    # In half precision kernels round by the shape.
    return [] if in_parts(vae) or set(weights) != {torch.float32} else layers


def _differing(picture: Tensor, known: Tensor) -> Tensor:
    """Where two pictures differ, in any channel: 0 or 1, [B, 1, ...]."""
    return (picture != known).any(1, keepdim=True).float()


def _without_margin(side: slice, limit: int, margin: int) -> slice:
    """The part of a box's side whose latents are right: up to the picture's edge, where it is."""
    start = side.start + margin if side.start else 0
    return slice(start, side.stop - margin if side.stop < limit else limit)


class Prompts:
    """Stands in for `pipe.encode_prompt`: the same arguments get the same answer.

    asked, found: calls so far, and those that the memory answered
    """

    def __init__(self, pipe: Any, memory: Memory) -> None:
        self.pipe, self.memory = pipe, memory
        self.asked = self.found = 0

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = fingerprint((args, kwargs))
        if given is None or torch.is_grad_enabled():
            return original(*args, **kwargs)
        encoders = [
            m for name, m in self.pipe.components.items() if name.startswith("text_encoder")
        ]
        key = "prompt", given, weights_of(*encoders)
        answer, self.asked = self.memory.get(key), self.asked + 1
        if answer is not None:
            self.found += 1
            return copy.deepcopy(answer)
        answer = original(*args, **kwargs)
        self.memory.put(key, copy.deepcopy(answer))
        return answer
