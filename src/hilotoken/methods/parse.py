"""A method and its options, as words on a command line."""

import ast
import dataclasses
import re
from typing import Any

from ..method import Method
from . import METHODS, build
from .within import Within


def method_from(name: str, *options: str) -> Method:
    """The method of that name with its options, each NAME=VALUE; after "+" one that acts inside it.

    Raises ValueError for an unknown name or option, or a value out of range or of the wrong kind.
    """
    if "+" in options:
        split = options.index("+")
        if not options[split + 1 :]:
            raise ValueError("after + comes the method that acts inside, such as todo")
        return Within(method_from(name, *options[:split]), method_from(*options[split + 1 :]))
    return _one(name, options)


def method_names(text: str) -> list[str]:
    """Methods with their options, between commas; those inside brackets are left alone."""
    parts = re.split(r",(?![^()\[\]]*[)\]])", text)
    return [" ".join(part.split()) for part in parts if part.strip()]


def _one(name: str, options: tuple[str, ...]) -> Method:
    given = dict(_option(text) for text in options)
    if name in METHODS:
        known = [field.name for field in dataclasses.fields(METHODS[name])]
        for key in given:
            if key not in known:
                raise ValueError(f"{name} has no option {key!r}; choose from {known}")
    try:
        return build(name, **given)
    except (TypeError, AttributeError) as error:  # a word where a number is meant, and the like
        raise ValueError(
            f"{' '.join(options)}: a value of the wrong kind for {name} ({error})"
        ) from error


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as Python's or else as a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"an option is NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value
