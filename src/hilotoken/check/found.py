"""What a check found: figures, what to use, and the report."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..methods import PRESETS
from .contract import Promise
from .environment import Environment
from .measure import CheckRow, Measured
from .report import html
from .verdict import Budget, Summary, confidence, recommend, rivals, sentence, summaries

REPORT, FIGURES = "report.html", "check.json"


@dataclass(frozen=True, eq=False)
class Checked:
    """What a check found. Printed it is the sentences that a user needs.

    settings: how the edits were made
    promises: of the contract, each held, broken or not tried
    measured: rows and pictures, by case
    refused:  why methods were left out, by name
    origin:   command, commit, machine, versions
    """

    name: str
    settings: dict[str, Any]
    budget: Budget
    environment: Environment
    promises: list[Promise]
    measured: dict[str, Measured]
    refused: dict[str, str]
    origin: dict[str, str]

    @property
    def rows(self) -> list[CheckRow]:
        return [row for one in self.measured.values() for row in one.rows]

    @cached_property
    def summaries(self) -> list[Summary]:
        """A summary a method, over all edits."""
        return summaries(self.rows, self.budget)

    @property
    def by_class(self) -> dict[str, list[Summary]]:
        """The same of each class of masks."""
        classes = dict.fromkeys(row.mask_class for row in self.rows)
        of = {name: [row for row in self.rows if row.mask_class == name] for name in classes}
        return {name: summaries(rows, self.budget) for name, rows in of.items()}

    @property
    def recommended(self) -> str | None:
        """The name of the preset to use; None where none is within the budget, or safe."""
        chosen = recommend(self.summaries, self.budget)
        return chosen.method if chosen and not self.broken else None

    @property
    def broken(self) -> list[Promise]:
        """Promises that did not hold: then nothing here is to be relied on."""
        inside = [row for row in self.rows if not row.outside_equal]
        found = [one for one in self.promises if one.held is False]
        if inside:
            told = f"changed in {len(inside)} of {len(self.rows)} measured edits"
            found.append(Promise("pixels outside the mask stay as they are", False, told))
        return found

    @property
    def sentence(self) -> str:
        """What to do, in a line."""
        if self.broken:
            names = "; ".join(one.name for one in self.broken)
            return f"do not use hilotoken on this pipeline: it does not hold here that {names}"
        return sentence(self.summaries, self.budget)

    @property
    def remarks(self) -> list[str]:
        """How sure the recommendation is, and what else does as well."""
        chosen = recommend(self.summaries, self.budget)
        found = [] if self.broken or not chosen else [confidence(chosen, self.budget)]
        for one in rivals(self.summaries, chosen, self.budget):
            found.append(
                f'the control "{one.method}" does as well here: {one.speedup.median:.1f} times as '
                f"fast, within the budget on {one.held} of {one.edits} edits"
            )
        return found

    @property
    def line(self) -> str:
        """The line of Python to paste; empty where nothing is recommended."""
        chosen = self.recommended
        if chosen is None:
            return ""
        if chosen in PRESETS:
            return f'fast = hilotoken.compress(pipe, "{chosen}")'
        method = self.settings["methods"][chosen]
        return f"fast = hilotoken.compress(pipe, {method})  # names of hilotoken.methods"

    @property
    def option(self) -> str:
        """The same for the command line."""
        chosen = self.recommended
        return f"--preset {chosen}" if chosen in PRESETS else ""

    def as_dict(self) -> dict[str, Any]:
        """All of it but the pictures, in what JSON knows."""
        return {
            "sentence": self.sentence,
            "recommended": self.recommended,
            "line": self.line,
            "remarks": self.remarks,
            "name": self.name,
            "settings": self.settings,
            "budget": asdict(self.budget),
            "environment": asdict(self.environment),
            "contract": [asdict(one) for one in self.promises],
            "methods": [_plain(one) for one in self.summaries],
            "classes": {k: [_plain(one) for one in of] for k, of in self.by_class.items()},
            "refused": self.refused,
            "rows": [asdict(row) for row in self.rows],
            "origin": self.origin,
        }

    def write(self, folder: str | Path) -> list[Path]:
        """Write `report.html`, which needs nothing beside it, and `check.json`; their paths."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        contents = {REPORT: html(self), FIGURES: json.dumps(self.as_dict(), indent=1) + "\n"}
        for name, text in contents.items():
            (target / name).write_text(text, encoding="utf-8")
        return [target / name for name in contents]

    def __str__(self) -> str:
        return "\n".join([self.sentence, *self.remarks, *([self.line] if self.line else [])])


def _plain(summary: Summary) -> dict[str, Any]:
    spreads = {k: v._asdict() for k, v in vars(summary).items() if hasattr(v, "_asdict")}
    return vars(summary) | spreads
