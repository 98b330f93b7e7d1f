"""Fibo 2: pictures in, the photo among those that it is shown; the prompt's tokens come first.

The model marks which tokens are noisy by their number, so what is handed over are strips of those
that run: marks, order and output are its own, and only places are put in the place of the model's.

B batch, S tokens of the short sequence, M coarse tokens, C channels a token, F rotary frequencies.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hooks import Call, shadowed
from .pictures import Strips, StripShort
from .zimage import rotary


class Fibo2Short(StripShort):
    family: "Fibo2"  # pyright: ignore[reportIncompatibleVariableOverride]
    words_1LF: Tensor | None = None  # places of the prompt's tokens in the call under way
    planes: Tensor | None = None  # of the model's table of places, a row for each picture: [n, F]

    def strips(self, parts: list[Tensor]) -> Call:
        target, *shown = map(self.family.strip, parts)
        shown = [strip for strip in shown if strip.shape[-1]]
        return {"hidden_states": target, "context_latents": shown or None}

    def places(self, original: Callable[[Tensor], Tensor], ids_L3: Tensor) -> Tensor:
        """Of the first that are asked for those of image tokens that run; the prompt's as ever."""
        if self.ran:
            self.words_1LF = original(ids_L3)[None]
            return self.words_1LF[0]
        if self.planes is None:
            ids_n3 = ids_L3.new_zeros(len(self.spans), 3)
            ids_n3[:, 0] = ids_L3[0, 0] + torch.arange(len(ids_n3), device=ids_n3.device)
            self.planes = original(ids_n3)
        _ = self._aligned_SF if self.aligned else None  # made before compiled code asks for it
        self.ran = len(self._places_SF)
        return self._places_SF

    def aligned_places(self, text: int) -> Tensor:
        places_1SF = self._aligned_SF[None]
        if not text:
            return places_1SF
        assert self.words_1LF is not None
        return torch.cat([self.words_1LF, places_1SF], 1)

    @cached_property
    def _places_SF(self) -> Tensor:
        return self._made(1)

    @cached_property
    def _aligned_SF(self) -> Tensor:
        return self._made(self.plan.stride)

    def _made(self, stride: int) -> Tensor:
        """Rotary factors of the tokens that run, rows and columns over the stride, [S, F]."""
        assert self.planes is not None
        parts, config = [], self.family.model.config
        frame, *sides = config.axes_dims
        for number, plane_F in enumerate(self.planes):
            turn_SF = rotary(sides, config.rope_theta, self.places_of(number) / stride)
            if not self.spans[number].length:
                turn_SF = turn_SF[:0]
            plane_SF = plane_F[: frame // 2].expand(len(turn_SF), -1)
            parts.append(torch.cat([plane_SF, turn_SF], 1))
        return torch.cat(parts)


class Fibo2(Strips):
    """The source is the photo as the model is shown it: greyed where the pipeline was given `mask`.

    Prompts of one batch must come to as many tokens: else the model puts them last, padded.
    """

    short: ClassVar[Any] = Fibo2Short
    image_first: ClassVar[bool] = False

    def grids(self, call: Call) -> list[tuple[int, int]]:
        sizes = [x.shape[-2:] for x in self._pictures(call)]
        return [(height // 2, width // 2) for height, width in sizes]

    def tokens(self, call: Call) -> Tensor:
        return torch.cat([self.fold(x) for x in self._pictures(call)], 1)

    def encode(self, photo_B3HW: Tensor, generator: torch.Generator) -> Tensor:
        pipe = self.pipe
        return pipe.prepare_image_latents([photo_B3HW], 1, photo_B3HW.device, photo_B3HW.dtype)[0]

    def attentions(self) -> list[Any]:
        return [layer.attention for layer in (*self.model.noise_refiner, *self.model.layers)]

    def stand_ins(self, run: Any) -> Iterable[AbstractContextManager[None]]:
        def places(original: Callable[..., Any], ids_L3: Tensor) -> Tensor:
            return run.short.places(original, ids_L3)

        def words(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if args[3] is not None:
                raise ValueError(
                    "prompts of such different lengths do not go together in one batch, where "
                    f"{type(self.pipe).__name__} pads them: edit by one at a time"
                )
            return original(*args, **kwargs)

        return (
            *super().stand_ins(run),
            shadowed(self.model, "rope_embedder", places),
            shadowed(self.model.perceiver, "forward", words),
        )

    def _pictures(self, call: Call) -> list[Tensor]:
        return [call["hidden_states"], *(call.get("context_latents") or [])]
