"""`hilo compare`: one photo edited by every method, side by side, each against dense.

All start from the same noise and run the same steps on the same region. What is compared is the
model's own edit in the mask, before any colour is led to the photo's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Column, Table

from .edit import Edit, Part
from .picture import outlined

AMPLIFIED = 8  # how many times the difference from dense is drawn
AROUND = 0.3  # of the mask's longer side, shown around it
PANEL, TEXT, GAP, COLUMNS = 256, 15, 12, 5
PARTS = ("queries", "keys", "feed_forward")
PAPER, INK, SOFT = (255, 255, 255), (32, 32, 32), (110, 110, 110)


@dataclass(frozen=True)
class CompareRow:
    """One edit. Ratios are over the dense one; psnr_dense is in dB, in the mask alone, and None
    where both are equal there.

    queries, keys and feed_forward are the mean shares of the tokens run that a method inside the
    blocks leaves to each; 1 for other methods.
    """

    photo: str
    method: str
    steps: int
    seed: int
    tokens_full: int
    tokens_run: int
    queries: float
    keys: float
    feed_forward: float
    dit_seconds: float
    total_seconds: float
    dit_speedup: float
    speedup: float
    psnr_dense: float | None
    mean_difference: float


@dataclass(frozen=True, eq=False)
class Compared:
    """A row, and the edit it was read from."""

    row: CompareRow
    edit: Edit


def compare(
    run: Callable[[Any, int | None, str], Edit],
    methods: Mapping[str, Any],
    *,
    photo: str,
    steps: int | None,
    seed: int,
    warm_up: Callable[[Any], object] | None = None,
    refused: dict[str, str] | None = None,
) -> Iterator[Compared]:
    """Edit by dense, then by each method, each warmed up by a step of its own.

    A method that is unsuited to the model or the grid is left out.

    Args:
        run: edits by a method in so many steps, labelled by the last argument
        warm_up: edits by a method in few; unless given, in a single one
        methods: by name, "dense" not among them
        photo: its name, for the rows
        seed: that `run` uses, for the rows
        refused: takes the reason of each method that is left out, by name
    """
    from .methods import Dense

    dense: Edit | None = None
    for name, method in {"dense": Dense(), **methods}.items():
        try:
            warm_up(method) if warm_up else run(method, 1, "warm-up")
        except (ValueError, TypeError) as error:
            if dense is None or refused is None:
                raise
            refused[name] = str(error)
            continue
        edit = run(method, steps, name)
        dense = dense or edit
        yield Compared(_row(edit, dense, photo, name, seed), edit)


def _row(edit: Edit, dense: Edit, photo: str, name: str, seed: int) -> CompareRow:
    run = edit.run
    gap = np.concatenate(
        [
            _difference(mine, theirs)[mine.mask]
            for mine, theirs in zip(edit.parts, dense.parts, strict=True)
        ]
    )
    error = float(np.square(gap).mean())
    queries, keys, feed = (run.inside.get(part, 1.0) for part in PARTS)
    return CompareRow(
        photo,
        name,
        run.steps,
        seed,
        edit.sum("tokens_full"),
        edit.sum("tokens_run"),
        queries,
        keys,
        feed,
        edit.sum("dit_seconds"),
        edit.sum("total_seconds"),
        dense.sum("dit_seconds") / edit.sum("dit_seconds"),
        dense.sum("total_seconds") / edit.sum("total_seconds"),
        float(10 * np.log10(255**2 / error)) if error else None,
        float(np.abs(gap).mean()),
    )


def _difference(edit: Edit | Part, dense: Edit | Part) -> np.ndarray:
    return np.asarray(edit.after, np.float64) - np.asarray(dense.after, np.float64)


def compare_table(rows: list[CompareRow]) -> Table:
    """A row a method."""
    names = ("method", "tokens", "q / k / mlp", "DiT s", "DiT", "whole", "to dense")
    table = Table(*(Column(name, no_wrap=True) for name in names))
    for row in rows:
        dense = row.method == "dense"
        table.add_row(
            row.method,
            str(row.tokens_run),
            " ".join(f"{share:4.0%}" for share in (row.queries, row.keys, row.feed_forward)),
            f"{row.dit_seconds:.2f}",
            "" if dense else f"{row.dit_speedup:.2f}x",
            "" if dense else f"{row.speedup:.2f}x",
            "" if dense else _decibels(row),
        )
    return table


def _decibels(row: CompareRow, unit: str = "") -> str:
    return "identical" if row.psnr_dense is None else f"{row.psnr_dense:.1f}{unit}"


def compare_sheet(compared: list[Compared]) -> Image.Image:
    """Photo and mask; then, around the mask, each edit above its difference from dense."""
    dense = compared[0].edit
    whole = _scaled(outlined(dense.before, dense.mask))
    box = around(dense.mask)
    note = ["below each edit: its difference", f"from dense in the mask, {AMPLIFIED} times"]
    panels = [_panel(["photo and mask", *note], [whole])]
    for one in compared:
        pictures = [_scaled(one.edit.after.convert("RGB").crop(box))]
        if one is not compared[0]:
            pictures.append(_scaled(_heat(one.edit, dense).crop(box)))
        panels.append(_panel(_lines(one.row), pictures))
    return _grid(panels)


def around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """A square around the mask, inside the picture: left, top, right, bottom."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    side = min(height, width, round(longer * (1 + 2 * AROUND)))
    top = min(max(0, int(rows[0] + rows[-1] - side) // 2), height - side)
    left = min(max(0, int(columns[0] + columns[-1] - side) // 2), width - side)
    return left, top, left + side, top + side


def _scaled(picture: Image.Image) -> Image.Image:
    height = max(1, round(PANEL * picture.height / picture.width))
    return picture.resize((PANEL, height), Image.Resampling.LANCZOS)


def _lines(row: CompareRow) -> list[str]:
    dense, run = row.method == "dense", f"{row.tokens_run} of {row.tokens_full} tokens"
    parts = {"q": row.queries, "k": row.keys, "mlp": row.feed_forward}
    inside = ", ".join(f"{name} {share:.0%}" for name, share in parts.items() if share < 1)
    speed = f"{row.steps} steps, DiT {row.dit_seconds:.2f} s"
    if not dense:
        speed += f" ({row.dit_speedup:.2f}x), {_decibels(row, ' dB')}"
    return [row.method, f"{run}; {inside}" if inside else run, speed]


def _heat(edit: Edit, dense: Edit) -> Image.Image:
    """The difference in the mask, black to yellow over a dim grey photo."""
    grey = np.asarray(edit.before.convert("L"), np.float32) * 0.35 + 140
    heat = np.abs(_difference(edit, dense)).mean(-1) * AMPLIFIED / 255
    red, green = np.clip(2 * heat, 0, 1), np.clip(2 * heat - 1, 0, 1)
    colours = np.stack([red, green, np.zeros_like(red)], -1) * 255
    shown = np.where(edit.mask[..., None], colours, grey[..., None])
    return Image.fromarray(shown.astype(np.uint8))


def _panel(lines: list[str], pictures: list[Image.Image]) -> Image.Image:
    """Pictures one below the other, all under their caption."""
    width, line = pictures[0].width, TEXT + 4
    top = len(lines) * line + 4
    height = top + sum(picture.height + 4 for picture in pictures)
    panel = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(panel)
    for i, text in enumerate(lines):
        _write(draw, (0, i * line), text, width, INK if i == 0 else SOFT)
    for picture in pictures:
        panel.paste(picture, (0, top))
        top += picture.height + 4
    return panel


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, ink: tuple[int, ...]
) -> None:
    """The text in the largest letters that fit."""
    size = TEXT
    while size > 7 and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    draw.text(place, text, ink, ImageFont.load_default(size))


def _grid(panels: list[Image.Image]) -> Image.Image:
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    heights = [max(panel.height for panel in row) for row in rows]
    width = GAP + max(sum(panel.width + GAP for panel in row) for row in rows)
    sheet = Image.new("RGB", (width, GAP + sum(height + GAP for height in heights)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for panel in row:
            sheet.paste(panel, (left, top))
            left += panel.width + GAP
        top += height + GAP
    return sheet
