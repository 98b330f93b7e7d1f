"""Decode a region approximately, where the decoder normalises over the whole picture.

GroupNorm, and attention in the middle of `AutoencoderKL`, look at all of the picture: a crop alone
decodes to something else. The middle is at the latents' own size and cheap: it runs whole. Behind
it are convolutions and GroupNorm alone, and all that those know of the rest of the picture is a
mean and a variance for each group of channels. A crop has its own part of these; what lies around
it adds that of a decode of the latents at half their size, a quarter of the work. By the whole
decode's own, a crop decodes to the same pixels.

What is lost follows from the weights, so it is measured: an autoencoder's first decode is done both
ways, and what comes back is the whole one.

B batch, C channels, G groups, h w latents.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decode import (
    Decode,
    RegionDecode,
    decode_margin,
    in_parts,
    least_margin,
    picture_of,
    strip_of_noise,
)
from .hooks import any_compiled, shadowed
from .windows import Box, area_of

APART = 1e-3  # an eighth of a level of 255: what a margin may leave out
OFFLOADED = ("_hf_hook", "_diffusers_hook")  # marks a layer whose weights come as it is called
LEVELS = 127.5  # of 255, in a unit of pictures in [-1, 1]

Statistics = dict[nn.GroupNorm, tuple[Tensor, Tensor]]  # means and variances, [B, G]

_MARGINS: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()
_ERRORS: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


class ApproximateDecode(RegionDecode):
    """Stands in for `vae.decode` in a run: crops that are normalised as the whole nearly is."""

    @classmethod
    def of(cls, vae: Any, way: str = "approximate") -> "ApproximateDecode":
        """Of a run.

        Raises:
            ValueError: the autoencoder needs no approximation, or cannot be approximated.
        """
        if reason := refusal(vae):
            raise ValueError(f"decode={way!r}: {reason}")
        margin = _MARGINS[vae.decoder]
        assert margin is not None
        return cls(vae, margin)

    def __call__(self, original: Callable[..., Any], latents: Tensor, *args: Any, **kw: Any) -> Any:
        output = super().__call__(original, latents, *args, **kw)
        if self.decoded == 1.0:
            return output
        if self.vae.decoder not in _ERRORS:
            mask_B1HW = kw.pop("mask_B1HW")
            del kw["photo_B3HW"]
            whole = original(latents, *args, **kw)
            one, other = (picture_of(o).float().clamp(-1, 1) for o in (output, whole))
            masked = (mask_B1HW > 0).repeat(len(one) // len(mask_B1HW), 3, 1, 1)
            error = LEVELS * (one - other)[masked].square().mean().sqrt()
            _ERRORS[self.vae.decoder], self.decoded, output = float(error), 1.0, whole
        self.error = _ERRORS[self.vae.decoder]
        return output

    @contextmanager
    def _by_box(
        self, decode: Decode, latents: Tensor, boxes: list[Box]
    ) -> Iterator[Callable[[Box], Any]]:
        decoder, (h, w) = self.vae.decoder, latents.shape[-2:]
        inside_hw = torch.zeros(h, w, dtype=torch.bool)
        for rows, columns in boxes:
            inside_hw[rows, columns] = True
        with recorded(decoder, inside_hw) as statistics:
            decode(halved(latents))
        with middle_known(decoder) as crop:

            def decode_box(box: Box) -> Any:
                crop(box)
                with normalised(statistics, area_of([box]) / (h * w)):
                    return decode(latents)

            yield decode_box


def halved(latents_BChw: Tensor) -> Tensor:
    """The latents at half their size, of the same mean and deviation in each channel.

    Means of four vary less than the four do, and what varies less is, to a decoder, a dull picture:
    by plain means a crop comes out no nearer to the whole than without any statistics.
    """
    half = F.avg_pool2d(latents_BChw, 2)
    (deviation, mean), (own, _) = (
        torch.std_mean(x, (-2, -1), keepdim=True) for x in (latents_BChw, half)
    )
    return (half - mean) / own.clamp_min(1e-6) * deviation + mean


def refusal(vae: Any) -> str:
    """Why no region is decoded approximately; empty where one can be."""
    name, decoder = type(vae).__name__, getattr(vae, "decoder", None)
    if in_parts(vae):
        return "does nothing while tiling or slicing is on: turn them off, or use 'whole'"
    if decode_margin(vae) is not None:
        return f"{name} decodes a region exactly: use 'auto' or 'region'"
    if not isinstance(decoder, nn.Module) or not _norms(decoder):
        return f"{name} has no GroupNorm behind a middle block: use 'auto' or 'whole'"
    if any_compiled(vae) or any(hasattr(m, mark) for m in _norms(decoder) for mark in OFFLOADED):
        return f"the {name} is compiled or offloaded layer by layer: use 'auto' or 'whole'"
    if decoder not in _MARGINS:
        _MARGINS[decoder] = _probe(vae)
    if _MARGINS[decoder] is None:
        return f"{name} looks at the whole picture by more than GroupNorm: use 'auto' or 'whole'"
    return ""


@torch.no_grad()
def _probe(vae: Any) -> int | None:
    """Latents around a crop of what comes out of the middle."""
    decoder, weight = vae.decoder, next(vae.decoder.parameters())
    if not isinstance(getattr(decoder, "conv_in", None), nn.Conv2d):
        return None
    strip = strip_of_noise(decoder.conv_in.out_channels).to(weight)

    def decode(features: Tensor) -> Tensor:
        latents = strip.new_zeros(1, decoder.conv_in.in_channels, *features.shape[-2:])
        with shadowed(decoder.mid_block, "forward", lambda *_, **__: features):
            return decoder(latents)

    try:
        with recorded(decoder) as statistics:
            decode(strip)
        with normalised(statistics):
            return least_margin(decode, strip, APART)
    except (TypeError, ValueError, RuntimeError):  # a decoder of another kind
        return None


def _norms(decoder: nn.Module) -> list[nn.GroupNorm]:
    """Those behind the middle, of an autoencoder that has one."""
    before = set(getattr(decoder, "mid_block", decoder).modules())
    after = (m for m in decoder.modules() if m not in before)
    return [m for m in after if isinstance(m, nn.GroupNorm) and m.affine]


def _statistics(norm: nn.GroupNorm, x_BCN: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances, [B, G]."""
    groups = x_BCN.float().unflatten(1, (norm.num_groups, -1)).flatten(2)
    variance_BG, mean_BG = torch.var_mean(groups, 2, correction=0)
    return mean_BG, variance_BG


@contextmanager
def recorded(decoder: nn.Module, without_hw: Tensor | None = None) -> Iterator[Statistics]:
    """The statistics that GroupNorm behind the middle takes in this context.

    without_hw: latents that they are to leave out, bool, not all of them
    """
    found: Statistics = {}

    def record(norm: nn.GroupNorm, original: Callable[..., Tensor], x: Tensor) -> Tensor:
        x_BCN = x.flatten(2)
        if without_hw is not None:
            left = F.interpolate((~without_hw).float()[None, None], x.shape[-2:], mode="area")
            places_N = left.flatten() >= left.max() / 2  # where few are left, the most outside
            x_BCN = x_BCN[..., places_N.to(x.device)]
        found[norm] = _statistics(norm, x_BCN)
        return original(x)

    with ExitStack() as stack:
        for norm in _norms(decoder):
            stack.enter_context(shadowed(norm, "forward", partial(record, norm)))
        yield found


@contextmanager
def normalised(statistics: Statistics, share: float = 0.0) -> Iterator[None]:
    """GroupNorm normalises by these statistics in this context, whatever it is given.

    share: of the whole that it is given; the statistics are of the rest
    """

    def normalise(norm: nn.GroupNorm, original: Callable[..., Tensor], x: Tensor) -> Tensor:
        mean_BG, variance_BG = statistics[norm]
        if share:
            own_BG, spread_BG = _statistics(norm, x.flatten(2))
            between_BG = share * (1 - share) * (own_BG - mean_BG).square()
            mean_BG = torch.lerp(mean_BG, own_BG, share)
            variance_BG = torch.lerp(variance_BG, spread_BG, share) + between_BG
        each = norm.num_channels // norm.num_groups
        scale_BC = (variance_BG + norm.eps).rsqrt().repeat_interleave(each, 1) * norm.weight.float()
        shift_BC = norm.bias.float() - mean_BG.repeat_interleave(each, 1) * scale_BC
        scale, shift = (t[..., None, None].to(x) for t in (scale_BC, shift_BC))
        return torch.addcmul(shift, x, scale)

    with ExitStack() as stack:
        for norm in statistics:
            stack.enter_context(shadowed(norm, "forward", partial(normalise, norm)))
        yield


@contextmanager
def middle_known(decoder: Any) -> Iterator[Callable[[Box], None]]:
    """In this context the middle runs once, and what is behind it gets a box of what came of it.

    Yields what sets the box.
    """
    known: list[Tensor] = []
    boxes: list[Box] = []

    def crop(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if not known:
            known.append(original(*args, **kwargs))
        return known[0][..., boxes[-1][0], boxes[-1][1]]

    with shadowed(decoder.mid_block, "forward", crop):
        yield boxes.append
