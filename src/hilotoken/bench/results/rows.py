"""Rows of measurements, appended to CSV with where and how each was made."""

import csv
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ORIGIN = ("command", "commit", "machine", "torch", "diffusers", "date")


def origin() -> dict[str, str]:
    """What a row needs to be made again: command, commit, machine, versions."""
    import torch  # not to be waited for by who only reads rows

    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _program() -> list[str]:
    """What was started: `hilo`, or a module by `python -m`."""
    started = getattr(sys.modules["__main__"], "__spec__", None)
    if started is None or started.name.startswith("hilotoken."):
        return ["hilo"]
    return ["python", "-m", started.name.removesuffix(".__main__")]


def _commit() -> str:
    """The commit at hand; `-dirty` where code differs from it, which rows and pages are not."""
    head = _git("rev-parse", "--short", "HEAD").stdout.strip()
    if not head:
        return "unknown"
    code = [f":/*.{end}" for end in ("py", "toml", "txt", "safetensors")]
    return head + "-dirty" * _git("diff", "--quiet", "HEAD", "--", *code).returncode


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False)


def _processor() -> str:
    import torch

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
