"""HiLo-Token for ComfyUI: a masked edit runs on the tokens that matter.

This folder goes into ComfyUI's `custom_nodes`: as a link into a clone, where the engine (the
package `hilotoken`) lies beside it, or as `make comfy-pack` packs it, with the engine inside. It
installs nothing. What it calls of ComfyUI is called; none of ComfyUI's code is here.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent  # behind a link: the folder in the clone
for _engine in (_HERE / "engine", _HERE.parent / "src"):
    if (_engine / "hilotoken").is_dir():
        sys.path.insert(0, str(_engine))  # before another version that may be installed
        break

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: E402

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
