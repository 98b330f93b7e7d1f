"""hilotoken: make an edit cost what it changes.

HiLo-Token (arXiv 2606.13898) for diffusers: a masked edit runs the diffusion transformer on the
tokens that matter, and the user's pixels outside the mask stay as they are.

    fast = hilotoken.compress(pipe)
    image = fast(prompt, image=photo, mask_image=mask).images[0]

Names are imported when they are asked for (PEP 562): what plans tokens needs no diffusers.
"""

import sys as _sys
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import edit_photos
    from .check import check
    from .compress import Compressed, compress
    from .edit import edit_photo, edit_variations
    from .methods import METHODS, PRESETS, Dense, Find, HiLo, Refresh, plan_tokens
    from .model import load_model
    from .plan import TokenPlan
    from .progress import Stage
    from .record import Run
    from .session import Session

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "PRESETS",
    "Compressed",
    "Dense",
    "Find",
    "HiLo",
    "Refresh",
    "Run",
    "Session",
    "Stage",
    "TokenPlan",
    "__version__",
    "check",
    "compress",
    "edit_photo",
    "edit_photos",
    "edit_variations",
    "load_model",
    "plan_tokens",
]

_ROOMS = {
    "batch": ("edit_photos",),
    "check": ("check",),
    "compress": ("Compressed", "compress"),
    "edit": ("edit_photo", "edit_variations"),
    "methods": ("METHODS", "PRESETS", "Dense", "Find", "HiLo", "Refresh", "plan_tokens"),
    "model": ("load_model",),
    "plan": ("TokenPlan",),
    "progress": ("Stage",),
    "record": ("Run",),
    "session": ("Session",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f".{_ROOM_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(_ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Importing the room `compress` shall not hide the function of that name."""
        if not (name in _ROOM_OF and isinstance(value, _ModuleType)):
            super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
