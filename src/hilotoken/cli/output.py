"""What `hilo edit` leaves behind: files, figures and a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.table import Table

from ..photo import Photo, check_output, save_photo

if TYPE_CHECKING:
    from ..edit import Edit
    from ..plan import TokenPlan


def figures(result: Edit, dense: Edit | None) -> dict[str, Any]:
    """The figures of a run, and its speed-ups over a dense one."""
    run = result.run
    names = ("dit_seconds", "vae_seconds", "rest_seconds", "plan_seconds", "total_seconds")
    found = plan_figures(run.plan) | {name: getattr(run, name) for name in names}
    found["steps"] = run.steps
    if run.inside:
        found["inside"] = run.inside
    if dense:
        found |= {
            "dense_dit_seconds": dense.run.dit_seconds,
            "dense_total_seconds": dense.run.total_seconds,
            "dit_speedup": dense.run.dit_seconds / run.dit_seconds,
            "speedup": dense.run.total_seconds / run.total_seconds,
        }
    return found


def plan_figures(plan: TokenPlan) -> dict[str, Any]:
    """The figures of a plan."""
    return {
        "tokens_full": plan.tokens_full,
        "tokens_run": plan.tokens_run,
        "keep_ratio": plan.keep_ratio,
        "tokens": plan.counts,
    }


def check_outputs(photo: Photo, output: Path, beside: list[Path]) -> None:
    """Raise PhotoError, before anything is run, if what `write` writes could not be written."""
    for path in (output, *beside[:1]):
        check_output(photo, path)
    for path in beside[1:]:
        check_picture(path)


def check_picture(path: Path) -> None:
    """Raise PhotoError if a picture made here could not be written there."""
    check_output(_as_photo(Image.new("RGB", (1, 1))), path)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture made here."""
    save_photo(_as_photo(picture), path)


def write(
    result: Edit, dense: Edit | None, output: Path, beside: list[Path], method: str
) -> list[Path]:
    """Write the edited photo and, with a dense run to compare, what goes beside it."""
    save_photo(result.photo, output)
    if dense is None:
        return [output]
    from ..picture import outlined, sheet, token_map

    r = result.region
    box = (r.left, r.top, r.right, r.bottom)
    tokens = token_map(result.before, result.run.plan)
    seconds, speedup = result.run.dit_seconds, dense.run.dit_seconds / result.run.dit_seconds
    pictures = [
        ("photo and mask", outlined(result.before, result.mask)),
        (f"tokens: {result.run.keep_ratio:.0%} run", tokens),
        (f"dense: DiT {dense.run.dit_seconds:.2f} s", dense.photo.rgb().crop(box)),
        (f"{method}: DiT {seconds:.2f} s ({speedup:.1f}x)", result.photo.rgb().crop(box)),
    ]
    save_photo(dense.photo, beside[0])
    write_picture(tokens, beside[1])
    write_picture(sheet(pictures), beside[2])
    return [output, *beside]


def table(result: Edit, dense: Edit | None, method: str) -> Table:
    """Tokens and seconds, a row a run."""
    found = Table("", "tokens", "DiT s", "VAE s", "rest s", "total s", "DiT", "whole")
    rows = [("dense", dense.run)] if dense else []
    for name, run in [*rows, (method, result.run)]:
        ratios = ["", ""]
        if dense:
            ratios = [
                f"{dense.run.dit_seconds / run.dit_seconds:.2f}x",
                f"{dense.run.total_seconds / run.total_seconds:.2f}x",
            ]
        seconds = (run.dit_seconds, run.vae_seconds, run.rest_seconds, run.total_seconds)
        found.add_row(name, str(run.tokens_run), *(f"{s:.2f}" for s in seconds), *ratios)
    return found


def _as_photo(picture: Image.Image) -> Photo:
    return Photo(np.asarray(picture.convert("RGB")), "RGB", "PNG")
