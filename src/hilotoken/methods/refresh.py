"""When context is computed, of a method that keeps its keys and values between."""

from typing import Any

from ..checks import SIDE, said, whole


def schedule(name: str, value: Any) -> int | tuple[int, ...] | str:
    """Check that it says when to refresh, a count, steps or "auto": see `checks`."""
    if isinstance(value, str) and value == "auto":
        return "auto"
    try:
        if not isinstance(value, list | tuple | range):
            return whole(1)(name, value)
        if 0 < len(value) <= SIDE and value[0] == 0:
            return tuple(whole(0)(name, step) for step in value)
    except ValueError:
        pass
    raise ValueError(
        f"{name} must be None, a count of 1 or more, steps that begin with 0, or 'auto', "
        f"got {said(value)}"
    )
