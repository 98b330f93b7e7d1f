"""What rows of `hilo bench` say, read back from CSV: figures by photograph, with intervals.

A photograph is what an interval is taken over: several seeds of one are averaged first, so that
they do not pass for several photographs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .rows import ORIGIN

try:
    import pandas as pd
except ImportError as error:
    raise ImportError("rows are read by pandas: pip install 'hilotoken[bench]'") from error

Named = TypeVar("Named", bound=Any)  # a Path, or what else has a `name`
Frame = Any  # a DataFrame of pandas: no type knows its columns
Series = Any

CLASSICAL = ("telea", "navier-stokes")
OPENCV = "OpenCV, the better of two"
DENSE = "dense"
COSTS = ("tokens", "flops", "seconds")
FEWEST = 8  # photographs: drawn from fewer, a bootstrap interval is far too narrow
TOO_FEW = "too few to tell"
SAME = 160  # dB: older rows say 168 of equal pictures, newer ones infinity
TEXTS = ("photo", "model", "net", "method", "setting", "mask_class", "group", "variant", "options")
TEXTS += ("label", "predicted", "arch", "scale", "shape", "dtype")
# The columns that tell one kind of row from another, the most particular first.
KINDS = {
    "ablate": ("group", "variant", "velocity"),
    "classify": ("photo", "label", "predicted", "correct"),
    "speed": ("mask_class", "method", "dit_speedup", "dit_seconds"),
    "sets": ("mask_class", "method", "distance_low", "over_dense_low"),
    "fill": ("photo", "mask_class", "method", "lpips", "psnr", "psnr_dense"),
}


class Figure(NamedTuple):
    """A mean over so many photographs, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    photos: int

    def scaled(self, factor: float, less: float = 0.0) -> "Figure":
        """The same of every value less `less`, times `factor`."""
        mean, low, high = (factor * (value - less) for value in self[:3])
        return Figure(mean, low, high, self.photos)


@dataclass(frozen=True)
class Readings:
    """The rows of one CSV, and which kind they are. What is empty in the CSV is NaN, or no text."""

    path: Path
    kind: str
    rows: Frame

    @property
    def origin(self) -> dict[str, list[str]]:
        """Where and how the rows were made, each value once, in order of appearance."""
        return {name: list(self.rows[name].unique()) for name in ORIGIN if name in self.rows}


def read_rows(path: Path) -> Readings:
    """Rows as they were appended.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no CSV, or damaged; holds no rows, or rows of no kind known here.
    """
    # A commit of digits alone is no number, nor is a photograph that is named by one.
    texts: Any = dict.fromkeys((*ORIGIN, *TEXTS), str)
    try:
        rows = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    except ValueError as error:  # pandas' own errors are such, and do not name the file
        raise ValueError(f"{path} is no CSV of `hilo bench`: {error}") from error
    rows = rows.fillna({name: "" for name in texts if name in rows})
    if rows.empty:
        raise ValueError(f"{path} holds no rows: give a CSV that `hilo bench` has written")
    return readings_of(path, rows)


def readings_of(path: Path, rows: Frame) -> Readings:
    """Rows as readings, by their columns.

    Raises:
        ValueError: rows of no kind known here, or a text or a gap where a number belongs.
    """
    for kind, wanted in KINDS.items():
        if set(wanted) <= set(rows):
            _check_numbers(path, rows, {*wanted} - {"velocity"})
            return Readings(path, kind, rows)
    raise ValueError(
        f"{path} holds rows of no known kind: looked for the columns of {list(KINDS)}, "
        f"found {sorted(rows)}"
    )


def _check_numbers(path: Path, rows: Frame, needed: set[str]) -> None:
    for name in set(rows) - {*ORIGIN, *TEXTS}:
        if not pd.api.types.is_numeric_dtype(rows[name]) and not rows[name].isna().all():
            raise ValueError(f"{path} is damaged: its column {name!r} holds what is no number")
    for name in needed:
        if (empty := rows[name].isna() | (rows[name] == "")).any():
            raise ValueError(f"{path} is damaged: row {empty.argmax() + 2} has no {name!r}")


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
    if skip and "photo" not in rows:
        raise ValueError(f"{readings.path} is not of photographs: there are none to skip")
    methods = list(rows["method"].unique()) if "method" in rows else []
    for name in only:
        if name not in methods:
            raise ValueError(f"no row of {readings.path} is of {name!r}; choose from {methods}")
    if only:
        rows = rows[rows["method"].isin([*only, DENSE, *CLASSICAL])]
    if skip:
        photos = sorted(rows["photo"].unique(), key=_place)
        rows = rows[rows["photo"].isin(photos[skip:])]
        if rows.empty:
            raise ValueError(f"{readings.path} holds {len(photos)} photographs: skip fewer")
    return replace(readings, rows=rows)


def by_hash(files: Sequence[Named]) -> list[Named]:
    """In an order that names decide, but not by the alphabet: any first N are a sample."""
    return sorted(files, key=lambda file: _place(file.name))


def _place(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def grouped(rows: Frame, *names: str) -> dict[Any, Frame]:
    """Rows by the values of some of their columns, in order of appearance; of one by itself."""
    return dict(iter(rows.groupby(names[0] if len(names) == 1 else list(names), sort=False)))


def groups_of(rows: Frame) -> dict[str, dict[str, Frame]]:
    """Rows by class of mask, then by method, both in order of appearance."""
    return {name: grouped(some, "method") for name, some in grouped(rows, "mask_class").items()}


def with_best_classical(methods: Mapping[str, Frame]) -> dict[str, Frame]:
    """OpenCV's two as one, the one of lower LPIPS, in the place of the first of them."""
    classical = [methods[name] for name in CLASSICAL if name in methods]
    found = {OPENCV: min(classical, key=lambda group: group["lpips"].mean())} if classical else {}
    return found | {name: group for name, group in methods.items() if name not in CLASSICAL}


def by_photo(group: Frame, name: str) -> Series:
    """The mean of a column for each photograph, over its seeds; those without it are left out.

    Of the distance to dense in dB, fills that equal dense are left out: it is not finite.
    """
    if name not in group:
        return pd.Series(dtype=float)
    values = group[["photo", name]].dropna().astype({name: float})
    if name.endswith("psnr_dense"):
        values = values[values[name] < SAME]
    return values.groupby("photo", sort=False)[name].mean()


def figure(group: Frame, name: str) -> Figure | None:
    """The mean over photographs with its interval; None where no row has the column."""
    return interval(by_photo(group, name))


def difference(group: Frame, base: Frame, name: str) -> Figure | None:
    """The mean of the differences from `base`, photograph by photograph, with its interval."""
    mine = by_photo(group, name)
    return interval((mine - by_photo(base, name).reindex(mine.index)).dropna())


def cost(group: Frame, base: Frame, kind: str) -> Figure | None:
    """What a method costs as a share of dense: a mean over photographs with its interval.

    Args:
        kind: "tokens" that the transformer was given; its "flops", counted; its "seconds"

    Raises:
        ValueError: another kind.
    """
    if kind not in COSTS:
        raise ValueError(f"unknown cost {kind!r}; choose from {list(COSTS)}")
    columns = {"tokens": (_tokens(group), "tokens_full"), "flops": ("flop_share",) * 2}
    own, whole = columns.get(kind, ("dit_seconds",) * 2)
    run, full = by_photo(group, own), by_photo(group if kind == "tokens" else base, whole)
    return interval((run / full[full > 0].reindex(run.index)).dropna())


def _tokens(group: Frame) -> str:
    """The mean over the steps where rows have it: methods that reuse context run fewer at some."""
    return "mean_tokens_run" if "mean_tokens_run" in group else "tokens_run"


def tokens(group: Frame) -> float:
    """Mean tokens run."""
    return float(by_photo(group, _tokens(group)).mean())


def interval(values: Sequence[float] | Series, draws: int = 2000) -> Figure | None:
    """Mean, and its 95 % bootstrap interval over the values; None without any."""
    array, rng = np.asarray(values, float), np.random.default_rng(0)
    if not len(array):
        return None
    means = rng.choice(array, (draws, len(array))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Figure(float(array.mean()), float(low), float(high), len(array))


def verdict(change: Figure | None, lower_is_better: bool = True) -> str:
    """In words, whether the interval of a difference leaves 0 out, and on which side."""
    if change is None:
        return ""
    if change.photos < FEWEST:
        return TOO_FEW
    if change.low <= 0 <= change.high:
        return "none shown"
    return "better" if (change.high < 0) == lower_is_better else "worse"
