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
    plans = [plan_figures(part.run.plan) for part in result.parts]
    found: dict[str, Any] = plans[0] if len(plans) == 1 else _summed(plans) | {"parts": plans}
    names = ("dit_seconds", "vae_seconds", "rest_seconds", "plan_seconds", "total_seconds")
    found |= {name: result.sum(name) for name in names}
    found["steps"] = result.run.steps
    if result.run.searched:
        found |= {"found": float(result.mask.mean()), "reasons": list(result.run.reasons)}
    if result.run.inside:
        found["inside"] = result.run.inside
    if dense:
        found |= {f"dense_{name}": dense.sum(name) for name in ("dit_seconds", "total_seconds")}
        found |= {
            "dit_speedup": found["dense_dit_seconds"] / found["dit_seconds"],
            "speedup": found["dense_total_seconds"] / found["total_seconds"],
        }
    return found


def _summed(plans: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several plans as if they were one."""
    full, run = (sum(plan[name] for plan in plans) for name in ("tokens_full", "tokens_run"))
    tokens = {name: sum(plan["tokens"][name] for plan in plans) for name in plans[0]["tokens"]}
    return {"tokens_full": full, "tokens_run": run, "keep_ratio": run / full, "tokens": tokens}


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
    run = result.run
    seldom = None if run.refreshed is None else (len(run.refreshed), run.steps)
    tokens = token_map(result.before, run.plan, seldom=seldom)
    seconds, whole = (edit.sum("dit_seconds") for edit in (result, dense))
    pictures = [
        ("photo and mask", outlined(result.before, result.mask)),
        (f"tokens: {run.mean_tokens_run / run.tokens_full:.0%} a step", tokens),
        (f"dense: DiT {whole:.2f} s", dense.photo.rgb().crop(box)),
        (f"{method}: DiT {seconds:.2f} s ({whole / seconds:.1f}x)", result.photo.rgb().crop(box)),
    ]
    save_photo(dense.photo, beside[0])
    write_picture(tokens, beside[1])
    write_picture(sheet(pictures), beside[2])
    for path in beside[3:]:
        write_picture(Image.fromarray(result.mask).resize(result.photo.size), path)
    return [output, *beside]


def table(
    result: Edit, dense: Edit | None, method: str, start_seconds: float, write_seconds: float
) -> Table:
    """Tokens and seconds, a row a run; below, what was saved, and against what.

    start_seconds: from the process's beginning until the model was loaded
    """
    names = ["", "tokens", "DiT s", "VAE s", "rest s", "total s"]
    found = Table(*names, *(("DiT", "whole") if dense else ()), caption_justify="left")
    for name, edit in [("dense", dense), (method, result)]:
        if edit is None:
            continue
        parts = ("dit_seconds", "vae_seconds", "rest_seconds", "total_seconds")
        cells = [
            str(round(edit.sum("mean_tokens_run"))),
            *(f"{edit.sum(part):.2f}" for part in parts),
        ]
        if dense:
            timed = ("dit_seconds", "total_seconds")
            cells += [f"{dense.sum(part) / edit.sum(part):.2f}x" for part in timed]
        found.add_row(name, *cells)
    around = f"starting took {start_seconds:.1f} s, writing {write_seconds:.1f} s"
    found.caption = f"{_saved(result, dense)}; {around}"
    return found


def _saved(result: Edit, dense: Edit | None) -> str:
    run, full = round(result.sum("mean_tokens_run")), result.sum("tokens_full")
    text = f"{run} of {full} tokens ran a step ({run / full:.0%})"
    if len(result.parts) > 1:
        text += f" in {len(result.parts)} regions"
    if result.run.searched:
        text += f"; {result.mask.mean():.0%} of the photo was found to change"
        text += "".join(f"; {reason}" for reason in result.run.reasons)
    if dense is None:
        return f"{text}; --compare times all of them beside it"
    before, after = dense.sum("total_seconds"), result.sum("total_seconds")
    word = "saved" if after <= before else "lost"
    return f"{text}, which {word} {abs(before - after):.1f} of the {before:.1f} s of the dense edit"


def _as_photo(picture: Image.Image) -> Photo:
    return Photo(np.asarray(picture.convert("RGB")), "RGB", "PNG")
