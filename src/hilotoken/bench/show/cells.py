"""What Markdown tables are made of: rows of cells, and figures with their intervals."""

from collections.abc import Mapping, Sequence

from ..results.readings import FEWEST, TOO_FEW, Figure

Labels = Mapping[str, str]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [list(header), ["---"] * len(header), *map(list, lines)]
    return "".join(f"|{'|'.join(map(_cell, row))}|\n" for row in rows)


def _cell(text: str) -> str:
    if text == "---":
        return text
    text = text.replace("|", "\\|")
    return f" {text} " if text else " "


def spread(found: Figure | None, digits: int) -> str:
    """`mean (low to high)`; of too few photographs the mean, and that they are."""
    if found is None:
        return ""
    mean, low, high = (_number(value, digits) for value in found[:3])
    return f"{mean} ({TOO_FEW})" if found.photos < FEWEST else f"{mean} ({low} to {high})"


def signed(found: Figure | None, digits: int) -> str:
    """The same of a difference, every value with its sign."""
    if found is None:
        return ""
    mean, low, high = (f"{value:+.{digits}f}" for value in found[:3])
    return f"{mean} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if not float(text) else text  # no minus before a zero
