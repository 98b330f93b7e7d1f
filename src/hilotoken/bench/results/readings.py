"""What rows of `hilo bench` say, read back from CSV: figures by photograph, with intervals.

A photograph is what an interval is taken over: several seeds of one are averaged first, so that
they do not pass for several photographs.
"""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, TypeVar

from .rows import grouped, interval

Named = TypeVar("Named", bound=Any)  # a Path, or what else has a `name`
Figure = tuple[float, float, float]  # mean, and the ends of its 95 % interval

CLASSICAL = ("telea", "navier-stokes")
OPENCV = "OpenCV, the better of two"
DENSE = "dense"
COSTS = ("tokens", "flops", "seconds")
SAME = 160  # dB: the PSNR of equal pictures is written as 168, which would drown every mean
ORIGIN = ("command", "commit", "machine", "torch", "diffusers", "date")
TEXTS = (
    "photo",
    "model",
    "net",
    "method",
    "setting",
    "mask_class",
    "group",
    "variant",
    "label",
    "predicted",
)
# The columns that tell one kind of row from another, the most particular first.
KINDS = {
    "ablate": ("group", "variant", "velocity"),
    "classify": ("photo", "label", "predicted", "correct"),
    "speed": ("mask_class", "method", "dit_speedup", "dit_seconds"),
    "sets": ("mask_class", "method", "distance_low", "over_dense_low"),
    "fill": ("photo", "mask_class", "method", "lpips", "psnr", "psnr_dense"),
}


@dataclass(frozen=True)
class Readings:
    """The rows of one CSV, and which kind they are. A field that is empty in the CSV is None."""

    path: Path
    kind: str
    rows: list[Any]

    @property
    def origin(self) -> dict[str, list[str]]:
        """Where and how the rows were made, each value once, in order of appearance."""
        return {
            name: list(dict.fromkeys(str(getattr(row, name)) for row in self.rows))
            for name in ORIGIN
            if hasattr(self.rows[0], name)
        }


def read_rows(path: Path) -> Readings:
    """Rows as they were appended, numbers as numbers.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no rows, or rows of no kind known here.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = [SimpleNamespace(**{k: _value(k, v) for k, v in row.items()}) for row in reader]
        columns = set(reader.fieldnames or ())
    if not rows:
        raise ValueError(f"{path} holds no rows: give a CSV that `hilo bench` has written")
    for kind, wanted in KINDS.items():
        if columns.issuperset(wanted):
            return Readings(path, kind, rows)
    raise ValueError(
        f"{path} holds rows of no known kind: looked for the columns of {list(KINDS)}, "
        f"found {sorted(columns)}"
    )


def _value(name: str, text: str) -> Any:
    # A commit of digits alone is no number, nor is a photograph that is named by one.
    if name in (*ORIGIN, *TEXTS):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def narrowed(readings: Readings, only: Sequence[str] = (), skip: int = 0) -> Readings:
    """The rows of some methods (dense and OpenCV stay), without the first photographs.

    Args:
        only: methods by their texts; none for all
        skip: how many photographs are left out, the first by hash of name, which are those that
            `hilo bench fill --limit` takes

    Raises:
        ValueError: a method that no row has, rows that are of no photographs, or none left.
    """
    rows = readings.rows
    if skip and not hasattr(rows[0], "photo"):
        raise ValueError(f"{readings.path} is not of photographs: there are none to skip")
    methods = list(dict.fromkeys(getattr(row, "method", "") for row in rows))
    for name in only:
        if name not in methods:
            raise ValueError(f"no row of {readings.path} is of {name!r}; choose from {methods}")
    if only:
        rows = [row for row in rows if row.method in (*only, DENSE, *CLASSICAL)]
    if skip:
        photos = sorted({row.photo for row in rows}, key=_place)
        left = set(photos[skip:])
        rows = [row for row in rows if row.photo in left]
        if not rows:
            raise ValueError(f"{readings.path} holds {len(photos)} photographs: skip fewer")
    return replace(readings, rows=rows)


def by_hash(files: Sequence[Named]) -> list[Named]:
    """In an order that names decide, but not by the alphabet: any first N are a sample."""
    return sorted(files, key=lambda file: _place(file.name))


def _place(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def groups_of(rows: Sequence[Any]) -> dict[str, dict[str, list[Any]]]:
    """Rows by class of mask, then by method, both in order of appearance."""
    found: dict[str, dict[str, list[Any]]] = {}
    for (mask_class, method), group in grouped(rows, "mask_class", "method").items():
        found.setdefault(str(mask_class), {})[str(method)] = group
    return found


def with_best_classical(methods: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """OpenCV's two as one, the one of lower LPIPS, in the place of the first of them."""
    classical = [methods[name] for name in CLASSICAL if name in methods]
    found: dict[str, list[Any]] = {}
    if classical:
        found[OPENCV] = min(classical, key=lambda group: fmean(row.lpips for row in group))
    return found | {name: group for name, group in methods.items() if name not in CLASSICAL}


def by_photo(group: Sequence[Any], name: str) -> dict[str, float]:
    """The mean of a field for each photograph, over its seeds; those without it are left out.

    Of the distance to dense in dB, fills that equal dense are left out: it is not finite.
    """
    found = {}
    for (photo,), rows in grouped(group, "photo").items():
        values = [v for row in rows if (v := getattr(row, name, None)) is not None]
        if name.endswith("psnr_dense"):
            values = [value for value in values if value < SAME]
        if values:
            found[str(photo)] = fmean(values)
    return found


def figure(group: Sequence[Any], name: str) -> Figure | None:
    """The mean over photographs with its interval; None where no row has the field."""
    values = list(by_photo(group, name).values())
    return interval(values) if values else None


def difference(group: Sequence[Any], base: Sequence[Any], name: str) -> Figure | None:
    """The mean of the differences from `base`, photograph by photograph, with its interval."""
    mine, theirs = by_photo(group, name), by_photo(base, name)
    values = [mine[photo] - theirs[photo] for photo in mine if photo in theirs]
    return interval(values) if values else None


def cost(group: Sequence[Any], base: Sequence[Any], kind: str) -> Figure | None:
    """What a method costs as a share of dense: a mean over photographs with its interval.

    Args:
        kind: "tokens" that the transformer was given; its "flops", counted; its "seconds"

    Raises:
        ValueError: another kind.
    """
    if kind == "tokens":
        run, full = by_photo(group, _tokens(group[0])), by_photo(group, "tokens_full")
    elif kind == "flops":
        run, full = by_photo(group, "flop_share"), by_photo(base, "flop_share")
    elif kind == "seconds":
        run, full = by_photo(group, "dit_seconds"), by_photo(base, "dit_seconds")
    else:
        raise ValueError(f"unknown cost {kind!r}; choose from {list(COSTS)}")
    values = [run[photo] / full[photo] for photo in run if full.get(photo)]
    return interval(values) if values else None


def _tokens(row: Any) -> str:
    """The mean over the steps where rows have it: methods that reuse context run fewer at some."""
    return "mean_tokens_run" if hasattr(row, "mean_tokens_run") else "tokens_run"


def tokens(group: Sequence[Any]) -> float:
    """Mean tokens run."""
    return fmean(by_photo(group, _tokens(group[0])).values())


def verdict(change: Figure | None, lower_is_better: bool = True) -> str:
    """In a word, whether the interval of a difference leaves 0 out, and on which side."""
    if change is None:
        return ""
    _, low, high = change
    if low <= 0 <= high:
        return "none shown"
    return "better" if (high < 0) == lower_is_better else "worse"
