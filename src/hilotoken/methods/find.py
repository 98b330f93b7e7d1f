"""Find the region that an instruction changes, from the run itself: no mask is drawn.

At noise level sigma a flow model's velocity v says where it is going: x0 = x_t - sigma v. A token
whose x0 is the photo's own is not edited. RegionE (arXiv 2510.25590) and SpotEdit (2512.22323) do
this by a fixed threshold on a cosine and on a distance; here the score sees both, the threshold
comes from the picture, and what cannot be told for certain stays dense. How the constants were
calibrated: docs/how-to/edit-by-instruction.md.

B batch, N tokens of the grid h w, row-major, C channels of a token, which may be those of f x f
latents.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import SIDE, flag, number, said, settle, share, unless_none, whole
from ..grid import dilate

FLOOR = 0.02  # of the photo's own spread: what rounding and an autoencoder's noise may come to
FLAT = 0.1  # of the spread squared: a token with less contrast has no direction
# More is another colour, or another style, of the whole picture: at the end, and in pure noise.
DRIFT = 0.15, 0.5  # of a channel's spread, the mean of them all
STYLE = 0.25, 0.6  # of the spread, what the tokens that change least change by
SEEN = 0.15  # of the spread: a change that is seen
DENSEST = 0.35  # share of the tokens that the background's level is taken from
TOGETHER = 3  # doubtful tokens in a window of 3x3: more than chance
DOUBT = 0.03  # share of the grid that may lie between changed and not, away from all that changed
SURE = 1.5  # times that a shifted match must beat the one in place
LATEST = 0.5  # share of the steps after which it is no longer looked for


@dataclass(frozen=True)
class Find:
    """How the region is looked for during a run.

    dense:   steps that run every token before it is found; max(3, 22 %) of them unless given
    fewest:  runs of fewer steps stay dense
    looks:   of the dense steps so many, the last ones, are looked at, and their regions united
    strong:  times the background's score at which a token has changed for certain
    weak:    times the background's score at which one has that touches such a token
    close:   tokens by which gaps are closed
    grow:    tokens by which the region is grown, as the mask is by `HiLo.dilate`
    most:    share of the grid: a larger region is not worth the risk, and stays dense
    recheck: look again whenever context is refreshed: tokens may join then, none leaves
    last:    so many steps at the end run every token again, and are looked at as a refresh is

    Raises:
        ValueError: an option out of range or without effect, at construction.
    """

    dense: int | None = None
    fewest: int = 12
    looks: int = 2
    strong: float = 3.0
    weak: float = 1.8
    close: int = 1
    grow: int = 2
    most: float = 0.6
    recheck: bool = True
    last: int = 0

    def __post_init__(self) -> None:
        settle(
            self,
            dense=unless_none(whole(1)),
            fewest=whole(1),
            looks=whole(1),
            strong=number(1),
            weak=number(1),
            close=whole(0, SIDE),
            grow=whole(0, SIDE),
            most=share(),
            recheck=flag,
            last=whole(0),
        )
        if self.weak > self.strong:
            raise ValueError(
                f"weak={self.weak:g} is above strong={self.strong:g} and would find nothing more: "
                "give less"
            )
        if self.dense is not None and self.looks > self.dense:
            raise ValueError(
                f"looks={self.looks} of dense={self.dense} steps: give no more looks than steps"
            )

    def dense_steps(self, steps: int) -> int:
        """How many of the steps run every token before the region is known."""
        return self.dense or max(3, self.looks, round(0.22 * steps))


def as_find(name: str, value: Any) -> Find | None:
    """None, a `Find`, True, or the number of its dense steps: see `checks`."""
    if value is None or isinstance(value, Find):
        return value
    if value is True:
        return Find()
    if value is False:
        return None
    try:
        dense = whole(1)(name, value)
    except ValueError:
        raise ValueError(
            f"{name} must be True, a number of dense steps or a Find, got {said(value)}"
        ) from None
    return Find(dense)


# One look: an estimate of the clean picture against the photo.


@dataclass(frozen=True, eq=False)
class Look:
    """What one look says: the region, bool [h, w], or why it cannot be trusted."""

    region_hw: Tensor
    reason: str = ""


def look(
    x0_BNC: Tensor,
    source_BNC: Tensor,
    grid: tuple[int, int],
    fold: int,
    sigma: float,
    find: Find,
) -> Look:
    """The region in which an estimate differs from the photo; of a batch, the union.

    Args:
        x0_BNC: the estimate of the clean latents, packed into tokens
        source_BNC: the photo's latents
        fold: latents a side of a token
        sigma: the noise level that it was made at
    """
    region_hw = torch.zeros(grid, dtype=torch.bool)
    for x0_NC, source_NC in zip(x0_BNC.float(), source_BNC.float(), strict=True):
        change_NC, drift = without_drift(x0_NC - source_NC, source_NC)
        if not change_NC.isfinite().all():
            return Look(region_hw, "the estimate is not finite")
        if drift > between(DRIFT, sigma):
            return Look(region_hw, f"the colours of the whole picture change, by {drift:.2f}")
        if moved(x0_NC, source_NC, grid, fold):
            return Look(region_hw, "the whole picture is shifted or zoomed")
        score_hw = scores(change_NC, source_NC).view(grid).cpu()
        own_hw, reason = changed(score_hw, between(STYLE, sigma), find)
        if reason:
            return Look(region_hw, reason)
        region_hw |= own_hw
    region_hw = closed(region_hw, find.close)
    if (covered := region_hw.float().mean().item()) > find.most:
        return Look(region_hw, f"the region covers {covered:.0%}, more than {find.most:.0%}")
    return Look(region_hw)


def between(limits: tuple[float, float], sigma: float) -> float:
    """A limit for estimates at this noise level: of the end, and of pure noise."""
    return limits[0] + (limits[1] - limits[0]) * min(1.0, sigma)


def without_drift(change_NC: Tensor, source_NC: Tensor) -> tuple[Tensor, float]:
    """The change without its median over the tokens, a channel each; and how large that is.

    Relative to the channel's own spread in the photo, as a root mean square over the channels. A
    model or its autoencoder shifts all colours a little; most tokens are not edited, so the median
    is that shift.
    """
    drift_C = change_NC.median(0).values
    relative_C = drift_C / source_NC.std(0, correction=0).clamp_min(
        1e-6 + FLOOR * spread(source_NC)
    )
    return change_NC - drift_C, relative_C.square().mean().sqrt().item()


def spread(source_NC: Tensor) -> float:
    """The root mean square of the photo's latents around each channel's median."""
    return (source_NC - source_NC.median(0).values).square().mean().sqrt().clamp_min(1e-6).item()


def scores(change_NC: Tensor, source_NC: Tensor) -> Tensor:
    """How much each token has changed, float32 [N]: its size and its direction, as two legs.

    Size is the change's root mean square over the photo's spread; direction is 1 - cos of the token
    before and after, around the channels' medians. A flat token has no direction, and one that
    turns without growing has little size: each leg sees what the other does not.
    """
    before_NC = source_NC - source_NC.median(0).values
    after_NC = before_NC + change_NC
    scale = spread(source_NC)
    size_N = change_NC.square().mean(1).sqrt() / scale
    flat = FLAT * scale**2 * change_NC.shape[1]
    norm_N = before_NC.norm(dim=1) * after_NC.norm(dim=1)
    cosine_N = ((before_NC * after_NC).sum(1) + flat) / (norm_N + flat)
    return torch.hypot(size_N, 1 - cosine_N)


def background(log_N: Tensor) -> tuple[float, float]:
    """Level and deviation of the log scores of tokens that have not changed.

    The level is a mode: the median of the shortest interval that holds `DENSEST` of the tokens (the
    shorth, Andrews et al. 1972). Where a region is no larger than 60 %, unchanged tokens have it in
    the lower half. The deviation is taken from below it alone: changes, which lie above, often
    begin where the background ends, and would widen it until it holds them.
    """
    rising_N = log_N.flatten().sort().values
    held = math.ceil(DENSEST * len(rising_N))
    starts = (len(rising_N) - held) // 2 + 1  # of intervals whose middle is in the lower half
    width_S = rising_N[held - 1 :][:starts] - rising_N[:starts]
    start = int(width_S.argmin())
    level = rising_N[start : start + held].median()
    deviation = 1.4826 * (level - rising_N[rising_N <= level]).median()
    return level.item(), deviation.item()


def changed(score_hw: Tensor, style: float, find: Find) -> tuple[Tensor, str]:
    """The tokens that have changed, bool [h, w], and why they cannot be told from the rest.

    A token is certain at `strong` times the background and 4.5 of its deviations; those at `weak`
    times and 3 are taken where they touch one that is (hysteresis, Canny 1986), or where
    `TOGETHER` that are seen stand together: a thin edge survives, and a lone doubtful token does
    not count. Many that are seen and lone are a doubt, and so are many that are seen where none is
    certain.

    Args:
        style: the background's score from which on the whole picture has changed; a change as large
            must not pass for background either
    """
    log_hw = (score_hw + FLOOR).log()
    level, deviation = background(log_hw)
    strong = level + max(math.log(find.strong), 4.5 * deviation)
    weak = level + max(math.log(find.weak), 3 * deviation)
    least, unseen = math.exp(level) - FLOOR, math.exp(weak) - FLOOR
    if unseen > style:
        reason = (
            f"even what changes least changes by {least:.2f}: another style"
            if least > style
            else f"the picture is so uneven that a change of {unseen:.2f} would not be seen"
        )
        return torch.zeros_like(score_hw, dtype=torch.bool), reason
    weak_hw, seen_hw = log_hw > weak, score_hw > SEEN
    region_hw = connected((log_hw > strong) | together(weak_hw & seen_hw), weak_hw)
    # Where no token is certain, whatever is seen is a doubt: "nothing has changed" must be true.
    unsure_hw = weak_hw & ~region_hw if region_hw.any() else torch.ones_like(weak_hw)
    doubt = (unsure_hw & seen_hw).float().mean().item()
    reason = f"{doubt:.0%} of the picture lies between changed and not" if doubt > DOUBT else ""
    return region_hw, reason


def together(doubtful_hw: Tensor) -> Tensor:
    """Those of the tokens that have enough of their kind among their eight neighbours: bool."""
    count_hw = F.conv2d(doubtful_hw[None, None].float(), torch.ones(1, 1, 3, 3), padding=1)[0, 0]
    return doubtful_hw & (count_hw >= TOGETHER)


def connected(strong_hw: Tensor, weak_hw: Tensor) -> Tensor:
    """Those of the weak tokens that a path of weak ones joins to a strong one: bool [h, w]."""
    region_hw = strong_hw
    while True:
        grown_hw = dilate(region_hw[None], 1)[0] & weak_hw | strong_hw
        if torch.equal(grown_hw, region_hw):
            return region_hw
        region_hw = grown_hw


def closed(region_hw: Tensor, radius: int) -> Tensor:
    """The region with gaps up to twice the radius closed (dilated, then eroded): bool [h, w]."""
    return ~dilate(~dilate(region_hw[None], radius), radius)[0]


def grown(region_hw: Tensor, find: Find) -> Tensor:
    """The region with the rings around it that run and are shown too: bool [h, w]."""
    return dilate(region_hw[None], find.grow)[0]


def moved(x0_NC: Tensor, source_NC: Tensor, grid: tuple[int, int], fold: int) -> bool:
    """Whether the whole picture is shifted or zoomed, by phase correlation of its quarters.

    A zoom moves each quarter another way, an edit of one place moves at most two. Quarters without
    structure say nothing.
    """
    images = [unfolded(x_NC, grid, fold) for x_NC in (x0_NC, source_NC)]
    height, width = images[0].shape[-2:]
    if min(height, width) < 16:
        return False
    rows = slice(0, height // 2), slice(height - height // 2, height)
    columns = slice(0, width // 2), slice(width - width // 2, width)
    return sum(_off(*(x[:, r, c] for x in images)) for r in rows for c in columns) >= 3


def unfolded(x_NC: Tensor, grid: tuple[int, int], fold: int) -> Tensor:
    """Tokens as latents [c, f h, f w]."""
    return F.pixel_shuffle(x_NC.T.reshape(-1, *grid)[None], fold)[0]


def _off(one_Chw: Tensor, other_Chw: Tensor) -> bool:
    """Whether two pictures match better shifted than in place."""
    window_hw = torch.outer(
        *(torch.hann_window(n, device=one_Chw.device) for n in one_Chw.shape[1:])
    )
    spectra = [
        torch.fft.rfft2((x - x.mean((1, 2), keepdim=True)) * window_hw)
        for x in (one_Chw, other_Chw)
    ]
    cross = (spectra[0] * spectra[1].conj()).sum(0)
    match_hw = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-12), s=one_Chw.shape[1:])
    return bool(match_hw.max() > 0.1 and match_hw.max() > SURE * match_hw[0, 0].clamp_min(0))
