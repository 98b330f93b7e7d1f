"""Chroma: FLUX.1 without guidance embedding, and with a mask on the padding of its text."""

from typing import Any

from .rotary import Rotary


class Chroma(Rotary):
    """Inpaint and Image-to-Image."""

    def shorten(self, call: dict[str, Any], sigma: float) -> dict[str, Any]:
        short = super().shorten(call, sigma)
        if call.get("attention_mask") is not None:
            short["attention_mask"] = self.short_keys(call["attention_mask"])
        return short
