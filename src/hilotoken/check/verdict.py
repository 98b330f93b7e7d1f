"""What the rows of a check come to: figures of each method, and which preset to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import NamedTuple

from ..methods import PRESETS
from .measure import CONTROLS, DENSE, SAME, CheckRow

LOST = -0.5  # log2 of gradient energy to dense's: 71 % of it
MOST = 0.9  # of the edits must be near enough
SURE = 0.95


class Spread(NamedTuple):
    """A median, and the least and greatest of all."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


@dataclass(frozen=True)
class Budget:
    """What an edit may lose and must gain.

    nearer_than: dB to dense, in the mask
    faster_than: times as fast as dense, the whole call
    """

    nearer_than: float = 38.0
    faster_than: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.nearer_than < SAME:
            raise ValueError(f"nearer_than must be in dB, 0 to {SAME:g}, got {self.nearer_than}")
        if not 1 <= self.faster_than < float("inf"):
            raise ValueError(f"faster_than must be 1 or more times, got {self.faster_than}")


@dataclass(frozen=True)
class Summary:
    """One method, over all its edits or those of a class of masks.

    edits:   how many; held: of them those that are near enough; photos, photos_held: the same of
             photographs, all of whose edits must be
    texture_lost: edits with under 71 % of dense's gradient energy in the mask
    seam:    the jump of colour along the mask's border less dense's, the median, in levels of 255
    """

    method: str
    edits: int
    held: int
    photos: int
    photos_held: int
    speedup: Spread
    dit_speedup: Spread
    dit_seconds: float
    vae_seconds: float
    total_seconds: float
    tokens: float
    psnr: Spread
    ssim: float
    lpips: float | None
    texture_lost: int
    seam: float
    peak_gib: float | None
    kept_mib: float

    @property
    def near(self) -> bool:
        """Whether so many of its edits are near enough that the preset is."""
        return self.held >= MOST * self.edits


def summarise(method: str, rows: Sequence[CheckRow], budget: Budget) -> Summary:
    """Of rows that are all of this method."""
    near = [row.psnr >= budget.nearer_than for row in rows]
    far = {row.photo for row, held in zip(rows, near, strict=True) if not held}
    photos = {row.photo for row in rows}
    peaks = [row.peak_gib for row in rows if row.peak_gib is not None]
    perceptual = [row.lpips for row in rows if row.lpips is not None]
    return Summary(
        method=method,
        edits=len(rows),
        held=sum(near),
        photos=len(photos),
        photos_held=len(photos - far),
        speedup=spread([x for row in rows for x in row.speedups]),
        dit_speedup=spread([x for row in rows for x in row.dit_speedups]),
        dit_seconds=median(x for row in rows for x in row.dit_seconds),
        vae_seconds=median(x for row in rows for x in row.vae_seconds),
        total_seconds=median(x for row in rows for x in row.total_seconds),
        tokens=median(row.tokens_run / row.tokens_full for row in rows),
        psnr=spread([row.psnr for row in rows]),
        ssim=median(row.ssim for row in rows),
        lpips=median(perceptual) if perceptual else None,
        texture_lost=sum(row.texture < LOST for row in rows),
        seam=median(row.seam - row.seam_dense for row in rows),
        peak_gib=max(peaks) if peaks else None,
        kept_mib=max(row.kept_mib for row in rows),
    )


def summaries(rows: Sequence[CheckRow], budget: Budget) -> list[Summary]:
    """A summary a method, in order of appearance."""
    names = dict.fromkeys(row.method for row in rows)
    return [summarise(n, [row for row in rows if row.method == n], budget) for n in names]


def recommend(found: Sequence[Summary], budget: Budget) -> Summary | None:
    """The fastest preset within the budget; None where none is."""
    within = [
        one
        for one in found
        if one.method not in (DENSE, *CONTROLS)
        and one.near
        and one.speedup.median > budget.faster_than
    ]
    return max(within, key=lambda one: one.speedup.median, default=None)


def rivals(found: Sequence[Summary], chosen: Summary | None, budget: Budget) -> list[Summary]:
    """Controls that do as well as the preset that is recommended: no slower, and near enough."""
    speed = chosen.speedup.median if chosen else budget.faster_than
    return [
        one
        for one in found
        if one.method in CONTROLS and one.near and one.speedup.median >= 0.97 * speed
    ]


def surely(held: int, of: int) -> float:
    """The share of photographs like these that hold at the least, with 95 % confidence.

    The lower end of Clopper and Pearson's interval (1934), one-sided.
    """
    low, high = 0.0, held / of
    for _ in range(40):
        share = (low + high) / 2
        chance = sum(comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(held, of + 1))
        low, high = (share, high) if chance < 1 - SURE else (low, share)
    return low


def sentence(found: Sequence[Summary], budget: Budget) -> str:
    """What to do, in a line."""
    chosen = recommend(found, budget)
    lost = [
        f'"{one.method}" loses texture on {one.texture_lost} of {one.edits} edits'
        for one in found
        if one.texture_lost and one.method not in (DENSE, *CONTROLS)
    ]
    first = _uses(chosen, budget) if chosen else _none(found, budget)
    return "; ".join([first, *lost]) + ": see the report."


def _uses(chosen: Summary, budget: Budget) -> str:
    near = f"stays within {int(chosen.psnr.low)} dB of dense"
    if chosen.psnr.low >= SAME:
        near = "stays equal to dense"
    elif chosen.held < chosen.edits:
        near = (
            f"stays within {budget.nearer_than:g} dB of dense on {chosen.held} of {chosen.edits} "
            "edits"
        )
    return (
        f'"{chosen.method}" makes your edits {chosen.speedup.median:.1f} times as fast and {near}'
    )


def _none(found: Sequence[Summary], budget: Budget) -> str:
    wanted = f"within {budget.nearer_than:g} dB of dense"
    if budget.faster_than > 1:
        wanted += f" and {budget.faster_than:g} times as fast"
    presets = [one for one in found if one.method in PRESETS]
    if not presets:
        return f"no preset ran, so none is {wanted}"
    nearest = max(presets, key=lambda one: (one.held, one.psnr.median))
    return (
        f'no preset is {wanted}: the nearest, "{nearest.method}", is so on {nearest.held} of '
        f"{nearest.edits} edits, and {nearest.speedup.median:.1f} times as fast"
    )


def confidence(chosen: Summary, budget: Budget) -> str:
    """How much so few photographs can say."""
    share = surely(chosen.photos_held, chosen.photos)
    return (
        f'"{chosen.method}" is within {budget.nearer_than:g} dB on {chosen.held} of '
        f"{chosen.edits} edits, and on all edits of {chosen.photos_held} of {chosen.photos} "
        f"photographs. From so few, 95 % sure is only that it is on {100 * share:.0f} % of "
        "photographs like these"
    )
