"""Z-Image: a list of pictures [C, 1, H, W], rotary places from a table; -v comes out.

The model pads image and text to multiples of 32 with tokens of its own, which take part in the
attention. Tokens are gathered after that, so the padding is that of the whole picture, untouched.

B batch, N tokens of the grid, M coarse tokens, S tokens of the short sequence, L tokens with
padding, D channels, F rotary frequencies.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import aside, rerouted
from ..hooks import Call, shadowed
from ..plan import token_positions
from .pictures import Pictures, PicturesShort

PATCH = "2-1"  # the key of the patch size that the pipelines use


class ZImageShort(PicturesShort):
    def shorten(self, call: Call, sigma: float) -> Call:
        """The residuals of a ControlNet are shortened as the tokens are, by `gathered`."""
        short = super().shorten(call, sigma)
        if residuals := call.get("controlnet_block_samples"):
            N = self.plan.tokens_full
            short = short | {
                "controlnet_block_samples": {
                    layer: torch.cat([self.rows(x_BLD[:, :N]), x_BLD[:, N:]], 1)
                    for layer, x_BLD in residuals.items()
                }
            }
        return short

    def restore(self, velocity_BSC: Any, call: Call, sigma: float) -> Any:
        """A list of pictures of -v."""
        pictures = torch.cat(velocity_BSC, 1).movedim(0, 1)
        return list((-super().restore(-pictures, call, sigma))[:, :, None])

    def gathered(self, model: Any, x_BLD: Tensor, places_BLF: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and places of the short sequence: native, coarse, the model's padding."""
        coarse_BMD, coarse_BMF = x_BLD[:, :0], places_BLF[:, :0]
        if self.extra_BMD is not None:
            rows = self.extra_BMD.unflatten(-1, (-1, 4)).mT.flatten(2)  # channels innermost
            coarse_BMD = model.all_x_embedder[PATCH](rows).to(x_BLD.dtype)
            turn_MF = self._coarse_MF
            turn_BMF = turn_MF.expand(len(x_BLD), -1, -1)
            time_BMF = places_BLF[:, :1, : -turn_MF.shape[-1]].expand(-1, len(turn_MF), -1)
            coarse_BMF = torch.cat([time_BMF, turn_BMF], -1)  # the text's length, then the place
        N, keep_K = self.plan.tokens_full, self.plan.keep_K
        self.ran = len(keep_K) + coarse_BMD.shape[1]
        return (
            torch.cat([x_BLD.index_select(1, keep_K), coarse_BMD, x_BLD[:, N:]], 1),
            torch.cat([places_BLF.index_select(1, keep_K), coarse_BMF, places_BLF[:, N:]], 1),
        )

    def align(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
    ) -> Tensor:
        """Attention in which coarse queries see every key on their own stride."""
        output = original(query, key, value, **kw)
        if self.extra_BMD is None:
            return output
        turn_SF, rows_M = self._turn_SF, self.coarse_rows
        turn_LF = F.pad(turn_SF, (0, 0, 0, key.shape[1] - turn_SF.shape[0]), value=1.0)
        coarse_BMHD = turned(query.index_select(1, rows_M), turn_SF.index_select(0, rows_M))
        again_BMHD = original(coarse_BMHD, turned(key, turn_LF), value, **kw)
        return output.index_copy(1, rows_M, again_BMHD)

    @cached_property
    def _coarse_MF(self) -> Tensor:
        places_M2, model = self.coarse_places, self.family.model
        return rotary(model.axes_dims[1:], model.rope_theta, places_M2)

    @cached_property
    def _turn_SF(self) -> Tensor:
        """What turns each token from its place to that over the stride."""
        model = self.family.model
        place_S2 = token_positions(self.plan)
        moved_S2 = place_S2 / self.plan.stride - place_S2
        turn_SF = rotary(model.axes_dims[1:], model.rope_theta, moved_S2)
        return F.pad(turn_SF, (sum(model.axes_dims) // 2 - turn_SF.shape[1], 0), value=1.0)


class ZImage(Pictures):
    """Inpaint and Image-to-Image."""

    short: ClassVar[Any] = ZImageShort
    shares: ClassVar[bool] = True
    listed: ClassVar[tuple[str, ...]] = ("x", "cap_feats")

    def batch(self, call: Call) -> int:
        return len(call["x"])

    def pictures(self, call: Call) -> Tensor:
        return torch.cat(call["x"], 1).movedim(0, 1)

    def attentions(self) -> list[Any]:
        return [layer.attention for layer in (*self.model.noise_refiner, *self.model.layers)]

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        """Tokens are gathered once they have their places, and put back after the last layer."""
        model, attentions = self.model, self.attentions()
        last_L = 0

        def prepare(original: Any, feats: Any, ids: Any, pads: Any, token: Any, *rest: Any) -> Any:
            nonlocal last_L
            x_BLD, places_BLF, *others = original(feats, ids, pads, token, *rest)
            if token is model.x_pad_token:  # else it is the text
                x_BLD, places_BLF = run.short.gathered(model, x_BLD, places_BLF)
                last_L = x_BLD.shape[1]
            return x_BLD, places_BLF, *others

        def join(original: Any, x: Tensor, places: Tensor, lengths: list[int], *rest: Any) -> Any:
            return original(x, places, [last_L] * len(lengths), *rest)

        def leave(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            return run.short.put_back(original(*args, **kwargs))

        return (
            *self.attending(run, attentions, aligns=False),
            *self._aligned(run, attentions),
            shadowed(model, "_prepare_sequence", prepare),
            shadowed(model, "_build_unified_sequence", join),
            shadowed(model.all_final_layer[PATCH], "forward", leave),
        )

    def _aligned(self, run: Any, attentions: list[nn.Module]) -> list[AbstractContextManager[None]]:
        if not run.inside[1]:
            return []
        short = run.short
        _ = short._turn_SF, short.coarse_rows  # made before compiled code asks for them

        def align(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
        ) -> Tensor:
            return run.short.align(module, query, key, value, original, **kw)

        return [rerouted(self.pipe.transformer, align, attentions)]


class ZImageControlNet(ZImage):
    """ControlNet Inpaint: the masked photo is shown to the ControlNet alone, which runs whole.

    The ControlNet runs the transformer's own refining blocks too, and nothing of ours is for it.
    """

    photo_last: ClassVar[bool] = True

    def apart(self) -> Iterable[AbstractContextManager[None]]:
        def run(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with aside(self.pipe.transformer):
                return original(*args, **kwargs)

        return (shadowed(self.pipe.controlnet, "forward", run),)

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        return (*super().stand_ins(run), *self.apart())


def rotary(sides: Sequence[int], theta: float, place_M2: Tensor) -> Tensor:
    """The rotary factors of rows and columns, [M, F]; at whole ones those of the model's table.

    sides: channels that turn with the row, and with the column
    """
    parts, device = [], place_M2.device
    exact_M2 = (place_M2.cpu() if device.type == "mps" else place_M2).double()  # MPS has none
    for dim, place_M in zip(sides, exact_M2.T, strict=True):
        frequency = 1.0 / theta ** (torch.arange(0, dim, 2, device=exact_M2.device).double() / dim)
        angle = torch.outer(place_M, frequency).float()
        parts.append(torch.polar(torch.ones_like(angle), angle))
    return torch.cat(parts, -1).to(device)


def turned(x_BSHD: Tensor, turn_SF: Tensor) -> Tensor:
    """Queries or keys, turned once more."""
    x_BSHF = torch.view_as_complex(x_BSHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(x_BSHF * turn_SF[:, None]).flatten(3).type_as(x_BSHD)
