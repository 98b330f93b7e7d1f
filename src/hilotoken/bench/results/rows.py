"""Rows of measurements: where and how each was made, kept in CSV, summed up with intervals."""

import csv
import platform
import shlex
import subprocess
import sys
from collections.abc import Hashable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch


def origin() -> dict[str, str]:
    """What a row needs to be made again: command, commit, machine, versions."""
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": shlex.join(["hilo", *sys.argv[1:]]),
        "commit": commit or "unknown",
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_rows(path: Path, kind: type[Any]) -> None:
    """Raise ValueError if rows of this dataclass could not be appended, before they are made."""
    header = ",".join([*(field.name for field in fields(kind)), *origin()])
    if path.exists() and path.read_text().partition("\n")[0].strip() != header:
        raise ValueError(f"{path} holds rows of another kind: name a new file")


def append_rows(path: Path, rows: Sequence[Any]) -> None:
    """Append dataclass rows, with their origin, to a CSV that begins with its header.

    Raises:
        ValueError: the file holds rows of another kind.
    """
    if not rows:
        return
    check_rows(path, type(rows[0]))
    full, new = [asdict(row) | origin() for row in rows], not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, list(full[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(full)


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Mean, and its 95 % bootstrap interval over the values."""
    array, rng = np.asarray(values, float), np.random.default_rng(0)
    means = rng.choice(array, (draws, len(array))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(array.mean()), float(low), float(high)


def grouped(rows: Sequence[Any], *keys: str) -> dict[tuple[Hashable, ...], list[Any]]:
    """Rows by the values of some of their fields, in order of appearance."""
    groups: dict[tuple[Hashable, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, key) for key in keys), []).append(row)
    return groups
