"""Stand-ins where no torchvision or torchaudio fits the CPU build of torch: importable, useless.

ComfyUI imports both at its start, for models that are not used here (Stable Cascade, audio).
"""

import sys
import types
from typing import Any


class Anything(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []  # noqa: RUF012  of a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


def fill(name: str, parts: list[str]) -> None:
    """Put such modules into a package."""
    for part in parts:
        module = Anything(f"{name}.{part}")
        sys.modules[module.__name__] = module
        parent, _, last = module.__name__.rpartition(".")
        setattr(sys.modules[parent], last, module)
