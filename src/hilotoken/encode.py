"""Encode what is new: of a picture most of which was encoded before, the rest is taken from then.

The masked picture that Fill models are shown is the photo but for the mask, and a photo that a
user goes on with is the one before but for the edit. Around what changed an encoder of convolutions
alone makes the same latents as before. See `decode`, and of the same kinds of autoencoder.

B batch, C latent channels, h w latents, H W pixels.
"""

import copy
import itertools
from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .decode import FURTHEST, ROWS, WORTH, area_of, boxes_of, check_region, in_parts
from .memory import Key, Memory, fingerprint, weights_of

ROUNDING = 5e-7  # half of what may come of a crop and of what is left out together
KIND = "encoded"
_NUMBERS = itertools.count()  # tell pictures of one size apart


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


class Encoding:
    """Stands in for `vae.encode` in a run: what is in the memory is not encoded again.

    A picture seen before gets the latents, or the distribution, that it got then; one that differs
    in a region is encoded there alone, where the autoencoder allows.

    asked, ran: latents of all pictures so far, and of them those that were encoded
    """

    def __init__(self, vae: Any, memory: Memory, reach: Reach | None) -> None:
        self.vae, self.memory, self.reach = vae, memory, reach
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
        reach = None if way == "whole" else encode_reach(vae)
        check_region("encode", way, vae, reach is not None)
        if reach is None and memory is None:
            return None
        return cls(vae, memory or Memory(), reach)

    @cached_property
    def _weights(self) -> Key:
        """Those that it encodes by, which are the same for all of a run."""
        return weights_of(self.vae)

    @property
    def share(self) -> float:
        """Of the latents asked for, those that were encoded."""
        return self.ran / self.asked if self.asked else 1.0

    def __call__(self, original: Callable[..., Any], picture: Any, *args: Any, **kw: Any) -> Any:
        if not isinstance(picture, Tensor) or args or kw or torch.is_grad_enabled():
            return original(picture, *args, **kw)
        key = KIND, picture.shape, picture.dtype, picture.device, self._weights
        output, ran = self._from_memory(original, picture, key)
        if output is None:
            output, ran = original(picture), 1.0
        size = picture.shape[0] * picture.shape[-2] * picture.shape[-1]
        self.asked, self.ran = self.asked + size, self.ran + ran * size
        if ran:
            kept = picture.clone(), copy.deepcopy(output)
            self.memory.put((*key, next(_NUMBERS)), kept)
        return output

    def _from_memory(
        self, original: Callable[..., Any], picture: Tensor, key: Key
    ) -> tuple[Any, float]:
        """What the memory makes of the picture, None for nothing; the share that was encoded."""
        nearest, least = None, 1.0
        for name, (known, _) in self.memory.of_kind(KIND):
            if name[:-1] == key and (share := _differing(picture, known).mean().item()) < least:
                nearest, least = name, share
        if nearest is None or (least and not self._by_parts(picture)):
            return None, 1.0
        known, output = self.memory.get(nearest)
        output = copy.deepcopy(output)
        return self._anew(original, picture, known, output) if least else (output, 0.0)

    def _by_parts(self, picture: Tensor) -> bool:
        return self.reach is not None and picture.ndim == 4 and not in_parts(self.vae)

    def _anew(
        self, original: Callable[..., Any], picture: Tensor, known: Tensor, output: Any
    ) -> tuple[Any, float]:
        """What came of the picture that was known, encoded anew where the change reaches."""
        assert self.reach is not None
        latents = _latents(output)
        (H, W), (h, w) = picture.shape[-2:], latents.shape[-2:]
        if H % h or W % w or H // h != W // w:
            return None, 1.0
        boxes = boxes_of(_differing(picture, known), (h, w), sum(self.reach))
        if (share := area_of(boxes) / (h * w)) > WORTH:
            return None, 1.0
        for box in boxes:
            rows, columns = (slice(s.start * (H // h), s.stop * (H // h)) for s in box)
            part = _latents(original(picture[..., rows, columns]))
            pairs = list(zip(box, (h, w), strict=True))
            right = [_without_margin(side, limit, self.reach.margin) for side, limit in pairs]
            own = [
                slice(r.start - s.start, r.stop - s.start)
                for r, (s, _) in zip(right, pairs, strict=True)
            ]
            latents[..., right[0], right[1]] = part[..., own[0], own[1]]
        return output, share


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
