"""Z-Image: a list of pictures [C, 1, H, W], rotary places from a table; -v comes out.

The model pads image and text to multiples of 32 with tokens of its own, which take part in the
attention. Tokens are gathered after that, so the padding is that of the whole picture, untouched.

B batch, N tokens of the grid, M coarse tokens, S tokens of the short sequence, L tokens with
padding, D channels, F rotary frequencies.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..plan import token_positions
from .pictures import Pictures, entered, in_this_thread

PATCH = "2-1"  # the key of the patch size that the pipelines use


class ZImage(Pictures):
    """Inpaint and Image-to-Image."""

    @classmethod
    def pictures(cls, call: dict[str, Any]) -> Tensor:
        return torch.cat(call["x"], 1).movedim(0, 1)

    def attentions(self, model: Any) -> list[Any]:
        return [layer.attention for layer in (*model.noise_refiner, *model.layers)]

    def restore(self, velocity_BSC: Any, call: dict[str, Any], sigma: float) -> Any:
        """A list of pictures of -v."""
        pictures = torch.cat(velocity_BSC, 1).movedim(0, 1)
        return list((-super().restore(-pictures, call, sigma))[:, :, None])

    def inner_hooks(self, transformer: nn.Module) -> list[Any]:
        """Tokens are gathered once they have their places, and put back after the last layer."""
        model: Any = getattr(transformer, "_orig_mod", transformer)
        last_L = 0

        def prepare(original: Any, feats: Any, ids: Any, pads: Any, token: Any, *rest: Any) -> Any:
            nonlocal last_L
            x_BLD, places_BLF, *others = original(feats, ids, pads, token, *rest)
            if token is model.x_pad_token:  # else it is the text
                x_BLD, places_BLF = self._gathered(model, x_BLD, places_BLF)
                last_L = x_BLD.shape[1]
            return x_BLD, places_BLF, *others

        def join(original: Any, x: Tensor, places: Tensor, lengths: list[int], *rest: Any) -> Any:
            return original(x, places, [last_L] * len(lengths), *rest)

        def leave(module: Any, args: Any, output_BLC: Tensor) -> Tensor:
            return self.put_back(output_BLC)

        attentions = self.attentions(model)
        return [
            *self.weights(transformer, attentions),
            *self._aligned(transformer, attentions),
            Shadow(model, "_prepare_sequence", prepare),
            Shadow(model, "_build_unified_sequence", join),
            model.all_final_layer[PATCH].register_forward_hook(in_this_thread(leave)),
        ]

    def _gathered(self, model: Any, x_BLD: Tensor, places_BLF: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and places of the short sequence: native, coarse, the model's padding."""
        coarse_BMD, coarse_BMF = x_BLD[:, :0], places_BLF[:, :0]
        if self.extra_BMD is not None:
            rows = self.extra_BMD.unflatten(-1, (-1, 4)).mT.flatten(2)  # channels innermost
            coarse_BMD = model.all_x_embedder[PATCH](rows).to(x_BLD.dtype)
            place_M2 = token_positions(self.plan)[len(self.plan.keep_K) :]
            turn_MF = rotary(model.rope_embedder, place_M2).to(places_BLF.device)
            turn_BMF = turn_MF.expand(len(x_BLD), -1, -1)
            time_BMF = places_BLF[:, :1, : -turn_MF.shape[-1]].expand(-1, len(turn_MF), -1)
            coarse_BMF = torch.cat([time_BMF, turn_BMF], -1)  # the text's length, then the place
        N, keep_K = self.plan.tokens_full, self.plan.keep_K
        return (
            torch.cat([x_BLD.index_select(1, keep_K), coarse_BMD, x_BLD[:, N:]], 1),
            torch.cat([places_BLF.index_select(1, keep_K), coarse_BMF, places_BLF[:, N:]], 1),
        )

    def _aligned(self, transformer: nn.Module, attentions: list[nn.Module]) -> list[Any]:
        """Handles by which coarse queries attend with all places divided by the stride."""
        if self.plan.positions != "aligned" or not self.coarse:
            return []
        model: Any = getattr(transformer, "_orig_mod", transformer)
        place_S2 = token_positions(self.plan)
        turn_SF = rotary(model.rope_embedder, place_S2 / self.plan.stride - place_S2)
        turn_SF = F.pad(turn_SF, (sum(model.axes_dims) // 2 - turn_SF.shape[1], 0), value=1.0)
        turn_SF = turn_SF.to(place_S2.device)
        rows_M = self.coarse_S.nonzero().flatten()  # numbers would be constants to a compiler

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, original: Any, **kw: Any
        ) -> Tensor:
            output = original(query, key, value, **kw)
            if self.extra_BMD is None:
                return output
            turn_LF = F.pad(turn_SF, (0, 0, 0, key.shape[1] - turn_SF.shape[0]), value=1.0)
            coarse_BMHD = turned(query.index_select(1, rows_M), turn_SF.index_select(0, rows_M))
            again_BMHD = original(coarse_BMHD, turned(key, turn_LF), value, **kw)
            return output.index_copy(1, rows_M, again_BMHD)

        return [entered(transformer, attend, attentions)]


def rotary(embedder: Any, place_M2: Tensor) -> Tensor:
    """The rotary factors of rows and columns, [M, F]; at whole ones those of the model's table."""
    parts = []
    for dim, place_M in zip(embedder.axes_dims[1:], place_M2.cpu().double().T, strict=True):
        frequency = 1.0 / embedder.theta ** (torch.arange(0, dim, 2).double() / dim)
        angle = torch.outer(place_M, frequency).float()
        parts.append(torch.polar(torch.ones_like(angle), angle))
    return torch.cat(parts, -1)


def turned(x_BSHD: Tensor, turn_SF: Tensor) -> Tensor:
    """Queries or keys, turned once more."""
    x_BSHF = torch.view_as_complex(x_BSHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(x_BSHF * turn_SF[:, None]).flatten(3).type_as(x_BSHD)


class Shadow:
    """Stands in for a method of an instance in calls from this thread, until removed."""

    lock = threading.Lock()

    def __init__(self, thing: Any, name: str, stand_in: Callable[..., Any]) -> None:
        self.thing, self.name, self.owner = thing, name, threading.get_ident()
        with self.lock:
            by_thread = vars(thing).get(name)
            if not isinstance(by_thread, _ByThread):
                by_thread = _ByThread(getattr(thing, name))
                setattr(thing, name, by_thread)
            by_thread[self.owner] = partial(stand_in, by_thread.original)

    def remove(self) -> None:
        with self.lock:
            by_thread = vars(self.thing)[self.name]
            del by_thread[self.owner]
            if not by_thread:
                delattr(self.thing, self.name)


class _ByThread(dict[int, Callable[..., Any]]):
    """A method; some threads have a stand-in for it."""

    def __init__(self, original: Callable[..., Any]) -> None:
        super().__init__()
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.get(threading.get_ident(), self.original)(*args, **kwargs)
