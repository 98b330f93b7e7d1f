"""What `hilo check` found, as a table: speed and fidelity of the same edits, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from .cells import markdown

HEADER = ("mask", "", "tokens a step", "DiT", "whole edit", "dB to dense, median and worst")


def checked(found: Mapping[str, Any], only: Sequence[str] = ()) -> str:
    """The methods of every class of masks; of `check.json` the classes.

    Args:
        found: `Checked.as_dict()`
        only: names of methods; all unless given

    Raises:
        ValueError: a JSON file of another kind, or a name that is not in it.
    """
    if "classes" not in found:
        raise ValueError("this is no check.json, which `hilo check` writes")
    known = [row["method"] for row in found["methods"]]
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"no method {unknown[0]!r} in it; choose from {known}")
    share = {row["mask_class"]: [] for row in found["rows"]}
    for row in found["rows"]:
        share[row["mask_class"]].append(row["mask_share"])
    lines = [
        [f"{name}, {sum(share[name]) / len(share[name]):.0%}", *_cells(row)]
        for name, rows in found["classes"].items()
        for row in rows
        if row["method"] in (only or known) and row["method"] != "dense"
    ]
    return markdown(HEADER, lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    speeds = [
        f"{row[name]['median']:.2f}x ({row[name]['low']:.2f} to {row[name]['high']:.2f})"
        for name in ("dit_speedup", "speedup")
    ]
    level = f"{row['psnr']['median']:.1f}, {row['psnr']['low']:.1f}"
    return [row["method"], f"{row['tokens']:.0%}", *speeds, level]
