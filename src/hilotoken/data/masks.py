"""Random masks that look like what a person paints when asking for an edit.

Every entry of SHAPES fixes its random choices once and returns a `Draw`; only then is the size
fitted, so that the covered share follows its own distribution and not the shape's.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Size = tuple[int, int]  # height, width
Draw = Callable[[float], np.ndarray]  # side in pixels -> [H, W] uint8 0/1, about side² ones

UNION = 0.2  # share of masks that join two shapes
TOLERANCE = 0.1  # relative miss of the target share that is good enough
_FRACTION_BITS = 4  # cv2 takes fixed-point corners; whole pixels would make small shapes jump
_ANGLE = (np.arange(96) + 0.5) * np.pi / 48  # the half step keeps clear of the axes
_CIRCLE = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], -1)  # [96, 2]


def _anchor(rng: np.random.Generator) -> np.ndarray:
    """Where a shape sits in its free room, [2] x, y in 0..1; the clipping makes borders common."""
    return rng.uniform(-0.1, 1.1, 2).clip(0, 1)


def _place(points: np.ndarray, size: Size, anchor: np.ndarray, margin: float = 0) -> np.ndarray:
    """Fixed-point corners [P, 2] of points [P, 2], moved to keep their bounding box in view."""
    low, high = points.min(0) - margin, points.max(0) + margin
    shift = anchor * (np.array(size[::-1]) - (high - low)) - low - 0.5
    return np.rint((points + shift) * 2**_FRACTION_BITS).astype(np.int32)


def _strokes(rng: np.random.Generator, size: Size, silhouettes: Sequence[np.ndarray]) -> Draw:
    count, steps = rng.integers(1, 5), 24
    # A wandering curvature bends like a hand does; white noise in the heading would jitter.
    curvature = rng.normal(0, 0.05, (count, steps)).cumsum(1) + rng.normal(0, 0.06, (count, 1))
    heading = rng.uniform(0, 2 * np.pi, (count, 1)) + curvature.cumsum(1)
    paths = np.stack([np.cos(heading), np.sin(heading)], -1).cumsum(1)  # [count, steps, 2]
    paths *= rng.uniform(0.5, 1, (count, 1, 1)) * rng.uniform(1.5, 3) / steps
    paths += rng.normal(0, 0.5, (count, 1, 2)) - paths.mean(1, keepdims=True)
    brush, anchor = rng.uniform(0.2, 0.6), _anchor(rng)

    def draw(side: float) -> np.ndarray:
        width = max(1, round(brush * side))
        corners = _place(paths.reshape(-1, 2) * side, size, anchor, width / 2)
        mask = np.zeros(size, np.uint8)
        lines = list(corners.reshape(count, steps, 2))
        return cv2.polylines(mask, lines, False, 1, width, cv2.LINE_8, _FRACTION_BITS)

    return draw


def _outline(points: np.ndarray, size: Size, anchor: np.ndarray) -> Draw:
    """Fills the closed contour `points` [P, 2], which encloses an area of about 1."""

    def draw(side: float) -> np.ndarray:
        corners = _place(points * side, size, anchor)
        return cv2.fillPoly(np.zeros(size, np.uint8), [corners], 1, cv2.LINE_8, _FRACTION_BITS)

    return draw


def _blob(rng: np.random.Generator, size: Size, silhouettes: Sequence[np.ndarray]) -> Draw:
    order = np.arange(2, 8)[:, None]
    phase = rng.uniform(0, 2 * np.pi, order.shape)
    waves = rng.normal(0, 0.35, order.shape) / order**1.3 * np.cos(order * _ANGLE + phase)
    radius = (1 + waves.sum(0)).clip(0.3)[:, None] / np.sqrt(np.pi)
    stretch = rng.normal(0, 0.25)
    return _outline(radius * _CIRCLE * np.exp([stretch, -stretch]), size, _anchor(rng))


def _box(rng: np.random.Generator, size: Size, silhouettes: Sequence[np.ndarray]) -> Draw:
    stretch = rng.normal(0, 0.3)
    half = np.exp([stretch, -stretch]) / 2
    radius = half.min() * rng.uniform(0.2, 0.8) if rng.random() < 0.4 else 0.0
    # A circle whose four quarters are pulled apart is a box with round corners.
    return _outline(np.sign(_CIRCLE) * (half - radius) + radius * _CIRCLE, size, _anchor(rng))


def _object(rng: np.random.Generator, size: Size, silhouettes: Sequence[np.ndarray]) -> Draw:
    shape = silhouettes[int(rng.integers(len(silhouettes)))]
    if shape.ndim != 2 or shape.dtype != np.uint8 or not shape.any():
        raise ValueError(
            f"a silhouette is [H, W] uint8, not empty; got {shape.dtype} {shape.shape}"
        )
    shape = np.ascontiguousarray(shape[:, :: rng.choice([-1, 1])])
    stretch, slop, anchor = rng.normal(0, 0.1), rng.uniform(0, 0.1), _anchor(rng)
    aspect = np.exp([stretch, -stretch])

    def draw(side: float) -> np.ndarray:
        zoom = aspect * side / np.sqrt(np.count_nonzero(shape))
        shift = anchor * (np.array(size[::-1]) - zoom * shape.shape[::-1]) + (zoom - 1) / 2
        matrix = np.column_stack([np.diag(zoom), shift])
        mask = cv2.warpAffine(shape, matrix, size[::-1])
        # A low threshold on the blur grows and rounds the outline, as a quick selection does; the
        # union keeps what is thinner than the blur.
        reach = 2 * round(slop * side / 2) + 1
        return ((cv2.blur(mask, (reach, reach)) > 50) | (mask > 127)).view(np.uint8)

    return draw


SHAPES: dict[str, Callable[[np.random.Generator, Size, Sequence[np.ndarray]], Draw]] = {
    "strokes": _strokes,
    "blob": _blob,
    "box": _box,
    "object": _object,
}


def _fit(draws: Sequence[Draw], target: int, low: int, high: int) -> np.ndarray | None:
    """The union of `draws` with nearly `target` pixels; None if none of its sizes has low..high."""
    side, best, miss = float(np.sqrt(target)), None, np.inf
    for _ in range(8):
        mask = np.bitwise_or.reduce([draw(side) for draw in draws])
        count = cv2.countNonZero(mask)
        if low <= count <= high and abs(count - target) < miss:
            best, miss = mask, abs(count - target)
        if miss <= TOLERANCE * target:
            break
        side *= float(np.clip(np.sqrt(target / max(count, 1)), 0.5, 2))
    return best


def _exact(rng: np.random.Generator, size: Size, target: int) -> np.ndarray:
    """A box of exactly `target` pixels; its last row may stay short."""
    height, width = size
    columns = min(width, max(-(-target // height), round(np.sqrt(target * width / height))))
    rows = -(-target // columns)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    mask = np.zeros(size, np.uint8)
    box = (np.arange(rows * columns) < target).reshape(rows, columns)
    mask[top : top + rows, left : left + columns] = box
    return mask


def random_mask(
    rng: np.random.Generator,
    size: Size,
    silhouettes: Sequence[np.ndarray] = (),
    area: tuple[float, float] = (0.02, 0.5),
) -> np.ndarray:
    """A painted-looking mask, [height, width] bool (True = edit), covering a share within `area`.

    The share is log-uniform, so small masks are common. Silhouettes are [h, w] uint8, 0 or 255,
    cropped to their bounding box; without any, the shape "object" does not occur.
    """
    if min(size) < 8:
        raise ValueError(f"size must be at least 8x8, got {size}")
    if not 0 < area[0] <= area[1] < 1:
        raise ValueError(f"area must satisfy 0 < low <= high < 1, got {area}")
    pixels = size[0] * size[1]
    low = min(max(1, int(np.ceil(area[0] * pixels))), pixels - 1)
    high = max(low, int(area[1] * pixels))
    target = round(np.clip(pixels * np.exp(rng.uniform(*np.log(area))), low, high))
    names = [name for name in SHAPES if name != "object" or len(silhouettes)]
    for _ in range(3):
        count = 1 + int(rng.random() < UNION)
        draws = [SHAPES[name](rng, size, silhouettes) for name in rng.choice(names, count)]
        mask = _fit(draws, target, low, high)
        if mask is not None:
            return mask.view(bool)
    return _exact(rng, size, target).view(bool)
