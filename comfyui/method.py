"""The method as widgets: a preset, and options that change it."""

from dataclasses import replace
from typing import Any

from hilotoken.methods.hilo import HiLo
from hilotoken.methods.presets import PRESETS as ALL
from hilotoken.methods.presets import preset
from hilotoken.methods.refresh import Refresh

# Text runs at every step here.
PRESETS = {name: preset(name, text_rests=False) for name in ALL}

AS_PRESET = "preset"
DEFAULT = "paper"

PRESET_WIDGET = {
    "preset": (
        list(PRESETS),
        {
            "default": DEFAULT,
            "tooltip": "Which tokens run, and when. Fewer are faster, and further from what the "
            "model would make of all of them.",
        },
    )
}


def _number(kind: str, top: float, tooltip: str, **more: Any) -> tuple[str, dict[str, Any]]:
    low = -1 if kind == "INT" else -1.0
    text = f"{tooltip} -1: as the preset says."
    return kind, {"default": low, "min": low, "max": top, "tooltip": text, **more}


def _choice(choices: list[str], tooltip: str) -> tuple[list[str], dict[str, Any]]:
    given = {"default": AS_PRESET, "tooltip": tooltip}
    return [AS_PRESET, *choices], given


OPTION_WIDGETS = {
    "dilate": _number("INT", 16, "Tokens (16 pixels) by which the mask is grown."),
    "detail": _number(
        "FLOAT",
        1.0,
        "Share of the picture kept outside the mask for its detail, the finest first.",
        step=0.01,
    ),
    "context": _choice(
        ["frequency", "sampled"],
        "What else runs outside the mask: coarse tokens of the picture made smaller (frequency), "
        "or one token at random of each cell (sampled).",
    ),
    "coarse": _number(
        "INT", 16, "Side of a coarse cell in tokens: 4 is one coarse token for 16. 0: none."
    ),
    "cell": _number("INT", 16, "Side of a sampled cell in tokens."),
    "weights": _choice(
        ["on", "off"],
        "Whether a token that stands for many counts for as many in the attention.",
    ),
    "refresh": _number(
        "INT",
        100,
        "At how many steps the picture around the mask is computed; its keys and values are kept "
        "between. 0: at every step.",
    ),
    "store": _choice(["as they are", "bfloat16", "float8"], "How kept keys and values are stored."),
    "references": _choice(
        ["compressed", "whole"],
        "What happens to a reference that is the photo itself (Kontext, Qwen-Image-Edit, FLUX.2).",
    ),
}

_MEANING: dict[str, dict[Any, Any]] = {
    "weights": {"on": True, "off": False},
    "refresh": {0: None},
    "store": {"as they are": None},
}


def changes(**widgets: Any) -> dict[str, Any]:
    """The options that a widget each changes: all that do not say "as the preset"."""
    return {
        name: _MEANING.get(name, {}).get(value, value)
        for name, value in widgets.items()
        if value != AS_PRESET and value not in (-1, -1.0)
    }


def method_from(preset: str, changed: dict[str, Any] | None = None) -> HiLo:
    """The preset, with what is changed of it.

    Raises:
        ValueError: an unknown preset, or options that HiLo refuses.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose from {list(PRESETS)}")
    changed, whole = dict(changed or {}), PRESETS[preset]
    if changed.get("context", whole.context) != whole.context:
        # What these are unless given depends on the context.
        unset = dict.fromkeys(("coarse", "coarse_cells", "positions", "cell", "weights"))
        changed = unset | changed
    elif "coarse" in changed:  # and these on whether there are coarse tokens
        changed |= dict.fromkeys(("coarse_cells", "positions"))
    changed["refresh"] = _refresh(whole.refresh, changed)
    return replace(whole, **changed)


def _refresh(preset: Any, changed: dict[str, Any]) -> Refresh | None:
    """When context is computed and how it is kept: two widgets, one option. Takes them out."""
    at, kept = changed.pop("refresh", preset), {}
    if "store" in changed:
        kept["store"] = changed.pop("store")
    if at is None:
        if kept.get("store"):
            raise ValueError("store is of keys and values kept between refreshes: set refresh")
        return None
    return replace(at, **kept) if isinstance(at, Refresh) else Refresh(at, **kept)
