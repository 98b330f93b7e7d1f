"""The report of a check: one HTML file that needs nothing beside it, pictures and plot in it."""

import base64
from typing import Any

from jinja2 import Environment, PackageLoader

from .measure import CONTROLS, DENSE, PHOTO, SAME, CheckRow, Measured
from .verdict import LOST, Spread, Summary

WIDTH, HEIGHT = 640, 300  # of the plot, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40  # around it
LINE = 17  # from one name to the next
SHOWN = 24  # cases whose pictures are in the page
CEILING = 60.0  # dB: what is nearer is drawn there
STEPS = [digit * 10.0**power for power in range(-2, 6) for digit in (1, 2, 5)]


def html(checked: Any) -> str:
    """The report's text, of a `Checked`."""
    folder = PackageLoader(__package__ or "", ".")
    pages = Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {"times": _times, "range": _range, "decibels": _decibels, "source": _source}
    return pages.get_template("report.html.jinja").render(
        checked=checked,
        kind_of=kind_of,
        plot=_plot(checked),
        cases=[_case(one) for one in _worst_first(checked)[:SHOWN]],
        lost=2**LOST,
        lpips=any(row.lpips is not None for row in checked.rows),
        memory=any(row.peak_gib is not None for row in checked.rows),
    )


def kind_of(method: str) -> str:
    """ "dense", "control" or "preset": how a method is drawn."""
    return DENSE if method == DENSE else "control" if method in CONTROLS else "preset"


def _worst_first(checked: Any) -> list[Measured]:
    """Cases by the distance to dense of what is recommended, or of the worst preset."""

    def nearness(one: Measured) -> float:
        chosen = checked.recommended
        rows = [row for row in one.rows if kind_of(row.method) == "preset"]
        return min((row.psnr for row in rows if chosen in (None, row.method)), default=0.0)

    return sorted(checked.measured.values(), key=nearness)


def _case(measured: Measured) -> dict[str, Any]:
    first = measured.rows[0]
    title = f"{first.photo}, {first.mask_class} mask ({first.mask_share:.0%})"
    shown = [(row.method, _caption(row), measured.pictures[row.method]) for row in measured.rows]
    return {"title": title, "photo": measured.pictures[PHOTO], "shown": shown}


def _caption(row: CheckRow) -> str:
    if row.method == DENSE:
        return f"{min(row.total_seconds):.1f} s"
    lost = ", texture lost" if row.texture < LOST else ""
    return f"{sorted(row.speedups)[len(row.speedups) // 2]:.2f}×, {_decibels(row.psnr)}{lost}"


def _plot(checked: Any) -> dict[str, Any]:
    """Every method's speed-up against its distance to dense: where to draw what."""
    shown = [one for one in checked.summaries if one.method != DENSE]
    if not shown:
        return {}
    levels = [min(level, CEILING) for one in shown for level in one.psnr]
    speeds = [speed for one in shown for speed in one.speedup]
    across = _Axis([1.0, *speeds, checked.budget.faster_than], LEFT, WIDTH - RIGHT)
    down = _Axis([*levels, checked.budget.nearer_than], HEIGHT - BOTTOM, TOP)
    points = [_point(one, across, down, checked.recommended) for one in shown]
    return {
        "size": (WIDTH, HEIGHT),
        "box": (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        "ticks_x": [(across(value), f"{value:g}×") for value in across.ticks()],
        "ticks_y": [(down(value), f"{value:g}") for value in down.ticks()],
        "near": down(checked.budget.nearer_than),
        "fast": across(checked.budget.faster_than),
        "points": _apart(points),
    }


class _Axis:
    """From values to places on the page, with a little room at both ends."""

    def __init__(self, values: list[float], start: float, stop: float) -> None:
        room = 0.06 * max(max(values) - min(values), 0.2)
        self.low, self.high = min(values) - room, max(values) + room
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values, seven at most."""
        step = next(step for step in STEPS if (self.high - self.low) / step <= 7)
        first = -int(-self.low // step)
        return [round(step * i, 2) for i in range(first, int(self.high / step) + 1)]


def _point(one: Summary, across: _Axis, down: _Axis, chosen: str | None) -> dict[str, Any]:
    x, y = [across(v) for v in one.speedup], [down(min(v, CEILING)) for v in one.psnr]
    right = x[0] < WIDTH - 120  # else its name would end beyond the page
    return {
        "method": one.method,
        "kind": "chosen" if one.method == chosen else kind_of(one.method),
        "x": x,
        "y": y,
        "text": [x[0] + (9 if right else -9), y[0] - 7],
        "anchor": "start" if right else "end",
    }


def _apart(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With no name on another: the lower of two goes below its neighbours'."""
    placed: list[list[float]] = []
    for point in sorted(points, key=lambda point: point["text"][1]):
        text = point["text"]
        while any(abs(text[0] - x) < 100 and abs(text[1] - y) < LINE for x, y in placed):
            text[1] += 1
        placed.append(text)
    return points


def _times(spread: Spread) -> str:
    return f"{spread.median:.2f}×"


def _range(spread: Spread) -> str:
    return f"{spread.low:.2f} to {spread.high:.2f}"


def _decibels(level: float) -> str:
    return "equal" if level >= SAME else f"{level:.1f} dB"


def _source(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
