"""The command `hilo methods`."""

import inspect
import json
from typing import Any

from .shared import AsJson, presets


def methods(as_json: AsJson = False) -> None:
    """List what can shorten a run: methods with their options, and presets."""
    from ..methods import METHODS
    from ..record import described

    found = {name: _described(kind) for name, kind in METHODS.items()}
    named = {name: described(method) for name, method in presets().items()}
    if as_json:
        print(json.dumps({"methods": found, "presets": named}, default=str))
        return

    from rich.console import Console

    console = Console(highlight=False)
    for name, of in found.items():
        console.print(f"[bold]{name}[/]  {of['about']}", soft_wrap=True)
        for option, value in of["options"].items():
            console.print(f"    {option}={value!r}", markup=False, soft_wrap=True)
    for name, of in named.items():
        options = " ".join(f"{option}={value!r}" for option, value in of["options"].items())
        console.print(f"[bold]{name}[/]  preset", soft_wrap=True)
        console.print(f"    {of['name']} {options}", markup=False, soft_wrap=True)


def _described(kind: Any) -> dict[str, Any]:
    """The first sentence of a method's documentation, and its options as they are by default."""
    about = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    known = inspect.signature(kind).parameters.items()
    return {"about": about, "options": {name: option.default for name, option in known}}
