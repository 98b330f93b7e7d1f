"""What a check has found so far, on disk: an interrupted one goes on where it was.

`check.jsonl` begins with the settings and has a line for the contract and one for each case, in
`pictures` are the pictures. A line that was broken off counts for nothing.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.cases import Case
from .contract import Promise
from .measure import CheckRow, Measured

JOURNAL, PICTURES = "check.jsonl", "pictures"


class Journal:
    """Promises and measured cases, kept in a folder, or without one in memory alone.

    promises: of the contract; empty until it was held against the pipeline
    measured: by the key of its case
    refused:  why methods were left out, by name
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.promises: list[Promise] = []
        self.measured: dict[str, Measured] = {}
        self.refused: dict[str, str] = {}
        if folder is None:
            return
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        lines = _lines(folder / JOURNAL)
        if lines and lines[0] != {"settings": settings}:
            raise ValueError(
                f"{folder} holds a check of another pipeline or other settings "
                f"({_differing(lines[0].get('settings', {}), settings)}): name another folder, or "
                "remove it"
            )
        if not lines:
            self._write({"settings": settings})
        for line in lines[1:]:
            self._read(line)

    def _read(self, line: dict[str, Any]) -> None:
        if "contract" in line:
            self.promises = [Promise(**one) for one in line["contract"]]
        if "case" in line:
            rows = [CheckRow(**row) for row in line["rows"]]
            names = line["pictures"]
            pictures = {name: self._file(line["case"], name).read_bytes() for name in names}
            self.measured[line["case"]] = Measured(rows, pictures)
            self.refused |= line["refused"]

    def keep_promises(self, promises: list[Promise]) -> None:
        self.promises = promises
        self._write({"contract": [asdict(one) for one in promises]})

    def keep(self, case: Case, measured: Measured, refused: dict[str, str]) -> None:
        """Pictures first: a case is there once its line is."""
        key = key_of(case)
        self.measured[key], self.refused = measured, self.refused | refused
        if self.folder is not None:
            for name, content in measured.pictures.items():
                self._file(key, name).write_bytes(content)
        rows = [asdict(row) for row in measured.rows]
        self._write(
            {"case": key, "rows": rows, "pictures": list(measured.pictures), "refused": refused}
        )

    def _file(self, key: str, name: str) -> Path:
        assert self.folder is not None
        return self.folder / PICTURES / (re.sub(r"[^\w.]+", "-", f"{key} {name}") + ".webp")

    def _write(self, line: dict[str, Any]) -> None:
        if self.folder is None:
            return
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def key_of(case: Case) -> str:
    """A photograph under one mask."""
    return f"{case.name} {case.mask_class}"


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines; one that was broken off is cut away, so that the next begins anew."""
    if not file.is_file():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        file.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name} was {before.get(name)!r}" for name in names)
