"""Chroma: FLUX.1 without guidance embedding, and with a mask on the padding of its text."""

from typing import Any, ClassVar

from ..hooks import Call
from .rotary import Rotary, RotaryShort


class ChromaShort(RotaryShort):
    def shorten(self, call: Call, sigma: float) -> Call:
        short = super().shorten(call, sigma)
        if call.get("attention_mask") is not None:
            short["attention_mask"] = self.short_keys(call["attention_mask"])
        return short


class Chroma(Rotary):
    """Inpaint and Image-to-Image."""

    short: ClassVar[Any] = ChromaShort
