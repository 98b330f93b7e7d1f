"""Rows of dataclasses in CSV files: appended as they are made, read back as text, and summed up."""

import csv
from collections import defaultdict
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from hilotoken.bench.results.readings import interval
from hilotoken.bench.results.rows import origin

RESULTS = Path(__file__).parent / "results"
ORIGINS = "origins.csv"
Rows = list[dict[str, str]]
_told: set[Path] = set()  # files whose origin this run has noted


def append(file: Path, row: Any) -> None:
    """Append a dataclass to a CSV that begins with the names of its fields.

    How it was made, command, commit, machine and versions, is a line of `origins.csv` beside it,
    one for each run of a program.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _append(file, asdict(row))
    if file not in _told:
        _told.add(file)
        _append(file.parent / ORIGINS, {"file": file.name} | origin())


def _append(file: Path, fields: dict[str, Any]) -> None:
    new = not file.is_file()
    with open(file, "a", newline="") as stream:
        writer = csv.DictWriter(stream, list(fields), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(fields)


def read(file: Path) -> Rows:
    """The rows of a CSV; none where there is no file."""
    if not file.is_file():
        return []
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


@cache
def rows_of(name: str) -> Rows:
    """The committed rows of that name."""
    return read(RESULTS / f"{name}.csv")


def by(rows: Rows, *keys: str) -> dict[tuple[str, ...], Rows]:
    """Rows that have the same values in those columns, by these values."""
    found: dict[tuple[str, ...], Rows] = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return found


def mean(rows: Rows, column: str) -> float:
    """The mean of a column."""
    return fmean(float(row[column]) for row in rows)


def ends(values: list[float]) -> tuple[float, float, float]:
    """The mean of values, and the ends of its 95 % bootstrap interval (2,000 draws)."""
    found = interval(values)
    assert found is not None
    return found.mean, found.low, found.high


def spread(found: tuple[float, float, float], form: str) -> str:
    """A mean with its interval as `mean (low to high)`; `form` of each number, as in `format`."""
    middle, low, high = (format(value, form) for value in found)
    return f"{middle} ({low} to {high})"


def spread_of(rows: Rows, column: str, form: str) -> str:
    """The same of a column; nothing where it was not measured."""
    values = [float(row[column]) for row in rows if row[column]]
    return spread(ends(values), form) if values else ""
