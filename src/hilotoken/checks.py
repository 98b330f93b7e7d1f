"""What options check themselves by, so that each refuses what it cannot use, by its name.

A check takes an option's name and any value whatever (None, a list, a tensor, NaN, a number of a
thousand digits). It returns the value as Python's own, or raises ValueError with the name, the
value and what is allowed. NumPy's numbers are numbers; True and False are none.
"""

import math
import operator
import re
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

Check = Callable[[str, Any], Any]

COUNT = 2**31 - 1  # the most of anything that is counted
SIDE = 2**16  # tokens a side: more than any grid has
SEED = 2**63 - 1


def settle(options: object, **checks: Check) -> None:
    """Check fields of a frozen dataclass, each by its check, and keep what that returns.

    Raises ValueError for the first field that fails.
    """
    for name, check in checks.items():
        object.__setattr__(options, name, check(name, getattr(options, name)))


def whole(low: int, most: int = COUNT) -> Check:
    """A whole number from `low` to `most`."""

    def check(name: str, value: Any) -> int:
        found = _whole(value)
        if found is not None and low <= found <= most:
            return found
        limit = f"{low} or more" if found is None or found < low else f"at most {most}"
        raise ValueError(f"{name} must be a whole number of {limit}, got {said(value)}")

    return check


def number(low: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number from `low` to `most`."""
    kind = "a finite number" if low == -math.inf else f"a number of {low:g} or more"
    kind = kind if most == math.inf else f"a number in [{low:g}, {most:g}]"

    def check(name: str, value: Any) -> float:
        found = _float(value)
        if low <= found <= most and math.isfinite(found):
            return found
        raise ValueError(f"{name} must be {kind}, got {said(value)}")

    return check


def share(most: float = 1.0) -> Check:
    """A share, from 0 to the most there can be."""

    def check(name: str, value: Any) -> float:
        found = _float(value)
        if 0 <= found <= most:
            return found
        raise ValueError(f"{name} is a share and must lie in [0, {most:g}], got {said(value)}")

    return check


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {said(value)}")


def choice(*choices: str) -> Check:
    """One of these words."""

    def check(name: str, value: Any) -> str:
        if isinstance(value, str) and value in choices:
            return str(value)
        raise ValueError(f"unknown {name} {said(value)}; choose from {list(choices)}")

    return check


def unless_none(check: Check) -> Check:
    """None, or what passes the check."""
    return lambda name, value: None if value is None else check(name, value)


def blocks(name: str, value: Any) -> str | int | tuple[int, ...]:
    """Numbers of blocks: "all", one number, several, or text such as "1-5,7-11"."""
    block_numbers(name, value)
    if isinstance(value, str):
        return str(value)
    return tuple(map(int, value)) if isinstance(value, list | tuple) else int(value)


def block_numbers(name: str, given: Any, count: int | None = None) -> frozenset[int]:
    """The numbers that such a value stands for; `count` is how many blocks there are, if known.

    Raises ValueError, which calls them `name`, for any other value and for blocks beyond the last.
    """
    if isinstance(given, str) and given == "all":
        return frozenset(range(count or 0))
    found: set[int] = set()
    for part in _parts(given):
        numbers = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        if not numbers:
            raise ValueError(f'{name} must be "all" or like "1-5,7-11", got {said(given)}')
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if last < first or (count is not None and last >= count):
            known = "be 0 or more" if count is None else f"lie in [0, {count - 1}]"
            raise ValueError(f"{name} must {known} and rise, got {said(given)}")
        found.update(range(first, min(last, first + SIDE) + 1))
    return frozenset(found)


def said(value: Any) -> str:
    """The value as an error shows it: one line, and short."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a number of thousands of digits, or a value that cannot show itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _whole(value: Any) -> int | None:
    """The whole number as Python's; None for what is none."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return operator.index(value) if is_whole else None


def _float(value: Any) -> float:
    """The number in double precision; NaN, which passes no comparison, for what is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def _parts(given: Any) -> list[str]:
    """Each number or range of blocks as text; for what is none of them, a text that is none."""
    if isinstance(given, str):
        return given.split(",")
    several = given if isinstance(given, list | tuple) and given else [given]
    numbers = [_whole(one) for one in several]
    return [str(n) if n is not None and 0 <= n < 10**9 else "none" for n in numbers]
