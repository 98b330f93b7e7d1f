"""Stable Diffusion 3 and 3.5: pictures, places added to their tokens by `pos_embed`.

B batch, M coarse tokens, S tokens of the short sequence, D channels, P side of the table of places.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks import shadowed
from ..plan import TokenPlan, gather, token_positions
from .pictures import Pictures, PicturesShort


class SD3Short(PicturesShort):
    places_MD: Tensor | None = None  # what `pos_embed` adds to the coarse tokens

    def condition(self, masked_BmC: Tensor, mask_B1HW: Tensor) -> Tensor:
        if not self.beside_BND.shape[-1]:
            return super().condition(masked_BmC, mask_B1HW)
        mask = F.interpolate(mask_B1HW, scale_factor=1 / self.family.pipe.vae_scale_factor)
        mask_BmD = self.family.fold(mask.repeat(len(masked_BmC) // len(mask), 1, 1, 1))
        both_BmD = torch.cat([mask_BmD.to(masked_BmC), masked_BmC], -1)
        return both_BmD.index_select(1, self.plan.cells_M)

    def gathered(self, pos_embed: Any, whole_BND: Tensor) -> Tensor:
        """Of the tokens with their places those that run, and the coarse ones made like them."""
        short_BKD = gather(whole_BND, self.plan)
        if self.extra_BMD is not None:
            strip = F.pixel_shuffle(self.extra_BMD.mT[:, :, None], 2)  # one patch high
            if self.places_MD is None:
                self.places_MD = coarse_rows(pos_embed, self.plan).to(strip.device)
            coarse_BMD = pos_embed.proj(strip).flatten(2).mT + self.places_MD
            short_BKD = torch.cat([short_BKD, coarse_BMD.to(short_BKD.dtype)], 1)
        self.ran = short_BKD.shape[1]
        return short_BKD


class SD3(Pictures):
    """Inpaint, with x_t alone in the channels or mask and masked latents too; Image-to-Image."""

    short: ClassVar[Any] = SD3Short
    shares: ClassVar[bool] = True

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        """After `pos_embed`, tokens are gathered; after `proj_out`, they are put back."""
        if run.inside[1]:
            raise ValueError(
                f"positions='aligned' needs rotary positions, and those of "
                f"{type(self.pipe).__name__} are added to the tokens: use 'interpolated' or "
                "'native'"
            )
        model = self.model

        def enter(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            return run.short.gathered(model.pos_embed, original(*args, **kwargs))

        def leave(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            return run.short.put_back(original(*args, **kwargs))

        return (
            *self.attending(run),
            shadowed(model.pos_embed, "forward", enter),
            shadowed(model.proj_out, "forward", leave),
        )


def coarse_rows(pos_embed: Any, plan: TokenPlan) -> Tensor:
    """What `pos_embed` adds to a token at each coarse place, [M, D].

    The table is the checkpoint's. The picture takes its middle, and a coarse place lies on a row of
    it or halfway between.
    """
    P = pos_embed.pos_embed_max_size
    table_PPD = pos_embed.pos_embed[0].float().unflatten(0, (P, P))
    edge = [(P - n) // 2 for n in plan.grid]  # as the picture is cropped from it
    place_M2 = token_positions(plan)[len(plan.keep_K) :].to(table_PPD.device)
    place_M2 = (place_M2 + place_M2.new_tensor(edge)).clamp(max=P - 1)
    near = [place_M2.floor().long(), place_M2.ceil().long()]
    corners = [table_PPD[row[:, 0], column[:, 1]] for row in near for column in near]
    return halfway(torch.stack(corners)).to(pos_embed.pos_embed.dtype)


def halfway(corners_4MD: Tensor) -> Tensor:
    """The row in the middle of four, of sines and cosines of two axes.

    A mean shortens each pair of sine and cosine; brought back to its length it is exact.
    """
    pairs = corners_4MD.unflatten(-1, (2, 2, -1))  # axis, sine or cosine, frequency
    mean, length = pairs.mean(0), pairs.norm(dim=-2, keepdim=True).mean(0)
    return (mean * (length / mean.norm(dim=-2, keepdim=True).clamp_min(1e-12))).flatten(1)
