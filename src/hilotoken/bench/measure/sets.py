"""How far a set of fills lies from the set of truths: a kernel distance, unbiased and small-sample.

A Frechet distance needs the covariance of features: 1152 numbers from 64 photographs, of rank 63.
The squared maximum mean discrepancy of KID (arXiv 1801.01401) needs none, and its estimate has no
bias however few the photographs. It is KID's cubic kernel, but on the AlexNet features of LPIPS,
pooled over the mask, which need no hub: figures are comparable with each other alone, with no KID
and no FID elsewhere. A set has no truth of its own to be near to, so that a plausible fill is not
punished for being another; it is blind to a fill that is plausible elsewhere.

n fills, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..results.readings import DENSE, Figure

TRUTH = "truth"
FEWEST = 2  # photographs: one has no other to be compared with
Key = tuple[str, str, str, int]  # photo, class of masks, method, seed


@dataclass(frozen=True)
class SetRow:
    """The fills of one method under one class of masks, as a set.

    distance:   kernel distance to the truths, 0 for sets of one kind; with its 95 % interval
    over_dense: less that of dense's fills of the same photographs, with its interval
    """

    mask_class: str
    method: str
    photos: int
    fills: int
    distance: float
    distance_low: float
    distance_high: float
    over_dense: float
    over_dense_low: float
    over_dense_high: float


@dataclass
class Features:
    """The pooled features of fills and of truths, kept beside the rows that they belong to."""

    path: Path | None = None
    of: dict[Key, np.ndarray] = field(default_factory=dict)

    @classmethod
    def beside(cls, rows: Path | None) -> "Features":
        """Those that lie beside a CSV of fills, which may be none yet; without one, in memory.

        Raises:
            ValueError: what lies there is something else.
        """
        found = cls(rows and rows.with_suffix(".features.npz"))
        if found.path and found.path.exists():
            try:
                with np.load(found.path) as held:
                    keys, values = held["keys"], held["values"]
            except (ValueError, KeyError, OSError) as error:
                raise ValueError(
                    f"{found.path} holds no features of fills: remove it, or name other rows"
                ) from error
            found.of = {(p, c, m, int(s)): v for (p, c, m, s), v in zip(keys, values, strict=True)}
        return found

    def save(self) -> None:
        """Write the file anew, whole or not at all."""
        if not self.path or not self.of:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".part.npz")
        keys = np.array([[*map(str, key)] for key in self.of])
        np.savez(half, keys=keys, values=np.stack(list(self.of.values())))
        half.replace(self.path)


def set_rows(features: Mapping[Key, np.ndarray]) -> list[SetRow]:
    """A row for every class and method of at least two photographs that dense has filled too."""
    rows = []
    for mask_class, method in dict.fromkeys(key[1:3] for key in features):
        if method == TRUTH:
            continue
        mine = [key for key in features if key[1:3] == (mask_class, method)]
        mine = [key for key in mine if _dense_of(key) in features]
        photos = np.array([photo for photo, *_ in mine])
        if len(set(photos)) < FEWEST:
            continue
        truth = _stack(features, [(photo, mask_class, TRUTH, 0) for photo in photos])
        own = _kernel_terms(_stack(features, mine), truth)
        base = _kernel_terms(_stack(features, [_dense_of(key) for key in mine]), truth)
        distance, over = (_over_pairs(terms, photos) for terms in (own, own - base))
        figures = (*distance[:3], *over[:3])
        rows.append(SetRow(mask_class, method, len(set(photos)), len(mine), *figures))
    return rows


def _dense_of(key: Key) -> Key:
    photo, mask_class, _, seed = key
    return photo, mask_class, DENSE, seed


def _stack(features: Mapping[Key, np.ndarray], keys: list[Key]) -> np.ndarray:
    return np.stack([features[key] for key in keys]).astype(np.float64)


def kernel_distance(x_nD: np.ndarray, y_nD: np.ndarray, photos: np.ndarray) -> Figure:
    """The unbiased squared MMD between two sets under KID's cubic kernel, with a 95 % interval.

    Entry i of both is of photos[i]: pairs of entries of one photograph are left out, also across
    the sets, so that neither seeds nor the photograph that fill and truth share bias it.

    Raises:
        ValueError: fewer than two photographs.
    """
    if len(set(photos)) < FEWEST:
        raise ValueError(f"a set needs {FEWEST} photographs or more, got {len(set(photos))}")
    return _over_pairs(_kernel_terms(x_nD, y_nD), photos)


def _kernel_terms(x_nD: np.ndarray, y_nD: np.ndarray) -> np.ndarray:
    """k(x, x') + k(y, y') - k(x, y') - k(y, x') of every pair of entries, [n, n]."""
    cross_nn = _kernel(x_nD, y_nD)
    return _kernel(x_nD, x_nD) + _kernel(y_nD, y_nD) - cross_nn - cross_nn.T


def _kernel(x_nD: np.ndarray, y_nD: np.ndarray) -> np.ndarray:
    return (x_nD @ y_nD.T + 1) ** 3  # of vectors of unit length: KID divides by their dimension


def _over_pairs(terms_nn: np.ndarray, photos: np.ndarray, draws: int = 2000) -> Figure:
    """The mean over pairs of different photographs, and its bootstrap interval over photographs.

    A photograph that is drawn twice is no pair with itself: else every draw would lie too high.
    """
    names, place_n = np.unique(photos, return_inverse=True)
    apart_nn = place_n[:, None] != place_n[None]
    P = len(names)
    terms_PP, pairs_PP = np.zeros((P, P)), np.zeros((P, P))
    at = place_n[:, None], place_n[None]
    np.add.at(terms_PP, at, terms_nn * apart_nn)
    np.add.at(pairs_PP, at, apart_nn)
    drawn = np.random.default_rng(0).multinomial(P, np.full(P, 1 / P), draws)
    drawn = drawn[(drawn > 0).sum(1) > 1]  # of one photograph alone there is no pair
    means = ((drawn @ terms_PP) * drawn).sum(1) / ((drawn @ pairs_PP) * drawn).sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Figure(float(terms_PP.sum() / pairs_PP.sum()), float(low), float(high), P)
