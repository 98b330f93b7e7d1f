"""A method and its options, as words on a command line."""

import ast
import dataclasses
import re
from typing import Any

from ..method import Method
from . import METHODS, PRESETS, build
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


def read_method(words: str) -> Method | str:
    """What `compress` takes of a method and its options between spaces, or of a preset's name.

    A preset stays a name: what method it is depends on the pipeline. Raises as `method_from`.
    """
    return words if words in PRESETS else method_from(*words.split() or [""])


def method_names(text: str) -> list[str]:
    """Methods with their options, between commas; those inside brackets are left alone."""
    parts = re.split(r",(?![^()\[\]]*[)\]])", text)
    return [" ".join(part.split()) for part in parts if part.strip()]


def as_words(method: Method) -> str:
    """The method with the options that differ from its defaults, as `method_from` takes them."""
    names = {kind: name for name, kind in METHODS.items()}
    return " ".join([names[type(method)], *_words(method)])


def _one(name: str, options: tuple[str, ...]) -> Method:
    given = dict(_option(text) for text in options)
    return build(name, **_nested(name, METHODS[name], given)) if name in METHODS else build(name)


def _nested(name: str, kind: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of a method; those that are options themselves, NAME.OPTION, made into one."""
    parts = {field.name: field.metadata.get("options") for field in dataclasses.fields(kind)}
    known = list(parts)
    for outer, inner in parts.items():
        known += [f"{outer}.{field.name}" for field in dataclasses.fields(inner)] if inner else []
    for key in given:
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}; choose from {known}")
    made = {key: value for key, value in given.items() if "." not in key}
    for outer, inner in parts.items():
        dotted = {k.partition(".")[2]: v for k, v in given.items() if k.startswith(f"{outer}.")}
        if dotted and inner:
            made[outer] = _made(outer, inner, given, dotted)
    return made


def _made(name: str, kind: type[Any], given: dict[str, Any], dotted: dict[str, Any]) -> Any:
    """What NAME=VALUE and NAME.OPTION=VALUE make; the former is the first of its options, or True
    where that need not be given."""
    first = dataclasses.fields(kind)[0].name
    if given.get(name) is True:
        given = {key: value for key, value in given.items() if key != name}
        dotted = {first: None} | dotted
    if name not in given and first not in dotted:
        raise ValueError(f"{name}.{next(iter(dotted))} goes with {name}: give that too")
    try:
        return kind(**({first: given[name]} if name in given else {}) | dotted)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _words(options: Any) -> list[str]:
    """NAME=VALUE of the fields without which the value would be another."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for name in list(given):
        rest = {key: value for key, value in given.items() if key != name}
        if _equal(options, rest):
            given = rest
    words = []
    for name, value in given.items():
        if dataclasses.is_dataclass(value):
            inner = dict(word.split("=", 1) for word in _words(value))
            own = inner.pop(dataclasses.fields(value)[0].name, "True")
            words += [f"{name}={own}", *(f"{name}.{key}={value}" for key, value in inner.items())]
        else:
            words.append(f"{name}={value}".replace(" ", ""))
    return words


def _equal(options: Any, given: dict[str, Any]) -> bool:
    try:
        return type(options)(**given) == options
    except (TypeError, ValueError):  # one that cannot be left out
        return False


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as Python's or else as a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"an option is NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value
