"""Rows of dataclasses in CSV files: appended as they are made, read back as text."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def append(file: Path, row: Any) -> None:
    """Append a dataclass to a CSV that begins with the names of its fields."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new, fields = not file.is_file(), asdict(row)
    with open(file, "a", newline="") as stream:
        writer = csv.DictWriter(stream, list(fields), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(fields)


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no file."""
    if not file.is_file():
        return []
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))
