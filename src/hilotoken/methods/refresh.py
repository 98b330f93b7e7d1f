"""When context is computed, of a method that keeps its keys and values between."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..checks import SIDE, blocks, choice, flag, number, said, settle, unless_none, whole

STORES = ("bfloat16", "float8")


@dataclass(frozen=True)
class Refresh:
    """The steps at which context runs, and what is kept of it: a KV cache of the photo.

    Between refreshes the edit tokens run alone and attend to the keys and values that were kept:
    see `hilotoken.reuse`.

    at:     how many steps, placed by `refresh_steps`; the steps themselves, which begin with 0; or
            "auto": whenever the context's x_t has drifted
    text:   whether text runs only with the context, its keys and values kept too
    drift:  for "auto": how far x_t of the context may move, relative to its norm; 0.3 unless given
    bucket: the number of edit tokens that run between is rounded up to a multiple of this, so that
            a service sees few lengths: the tokens around them run too, and change nothing
    store:  keys and values are kept as they are (None), in "bfloat16" or in "float8"
    blocks: those whose keys and values are kept, "all" or like "0-18", numbered as they run; in the
            others edit tokens see no context between refreshes
    capture: the model's pass at steps between is recorded once, as a CUDA graph, and repeated: the
            host issues a step as one piece. Pays from three such steps on, where the host is what
            bounds them; see `hilotoken.replay`

    Raises:
        ValueError: an option out of range or without effect, at construction.
    """

    at: int | Sequence[int] | str
    text: bool = False
    drift: float | None = None
    store: str | None = None
    blocks: str | int | Sequence[int] = "all"
    bucket: int = 1
    capture: bool = False

    def __post_init__(self) -> None:
        settle(self, at=_schedule, text=flag, drift=unless_none(number(0)), bucket=whole(1))
        settle(self, store=unless_none(choice(*STORES)), blocks=blocks, capture=flag)
        if self.drift is None and self.at == "auto":
            object.__setattr__(self, "drift", 0.3)
        if self.drift is not None and self.at != "auto":
            raise ValueError(
                f"drift={self.drift:g} is for refreshes at 'auto', got {self.at!r}: leave it out"
            )
        if self.text and self.blocks != "all":
            raise ValueError(
                f"text=True keeps text in every block, got blocks={self.blocks!r}: leave out one "
                "of the two"
            )


def refresh_steps(at: Any, sigmas: Sequence[float]) -> set[int]:
    """The steps of a run at which context is computed, 0 the first.

    A count is placed so that the drift since the last refresh, summed over all steps, is least.
    Drift is by how much sigma squared has fallen, the variance of the noise in the context's x_t.
    At FLUX's shift (mu 1.15) that gives (0, 3, 6) of 8 steps, unshifted (0, 2, 5), and (0, 1, 3)
    at the embedded model's, whose noise is nearly gone after the first step.

    Args:
        at: see `Refresh`, but for "auto"
        sigmas: the noise level of every step of the run
    """
    if isinstance(at, int):
        return set(_placed(min(at, len(sigmas)), tuple(sigmas)))
    return {step for step in at if step < len(sigmas)}


@lru_cache
def _placed(count: int, sigmas: tuple[float, ...]) -> tuple[int, ...]:
    """So many steps of least drift. Row j is a refresh at step j, column k the steps up to k."""
    variance_k = np.square(sigmas)
    drift_jk = np.abs(variance_k[:, None] - variance_k)
    summed_jk = np.triu(drift_jk).cumsum(1)
    summed_jk[np.tril_indices(len(sigmas), -1)] = np.inf
    least_k, latest = summed_jk[0], []  # over placements of one refresh, then of one more each time
    for _ in range(count - 1):
        with_jk = np.append(np.inf, least_k[:-1])[:, None] + summed_jk
        latest.append(with_jk.argmin(0))
        least_k = with_jk.min(0)
    chosen, last = [0], len(sigmas) - 1
    for step_k in reversed(latest):
        chosen.append(int(step_k[last]))
        last = chosen[-1] - 1
    return tuple(chosen)


def refreshes_of(refresh: Refresh | None, steps: int) -> int:
    """How many of so many steps compute context: with "auto" at most so many."""
    if refresh is None or isinstance(refresh.at, str):
        return steps
    if isinstance(refresh.at, int):
        return min(refresh.at, steps)
    return sum(step < steps for step in refresh.at)


def check_shown(chosen: set[int], sigmas: Sequence[float]) -> None:
    """Refuse a schedule by which a model that sees its photo in x_t alone would never see it.

    Args:
        chosen: the steps at which context is computed
        sigmas: the noise level of every step of the run

    Raises:
        ValueError: context is kept, and at each of those steps x_t is noise but for a twentieth.
    """
    if len(chosen) < len(sigmas) and min(sigmas[step] for step in chosen) > 0.95:
        raise ValueError(
            f"refresh at steps {sorted(chosen)} keeps keys of noise: this pipeline shows the model "
            "its photo in x_t alone, which is hardly more by then; refresh more often, or at a "
            "later step too, or lower strength"
        )


def refreshed(name: str, value: Any) -> Refresh | None:
    """None, a `Refresh`, or what one is made of in short, the steps: see `checks`."""
    if value is None or isinstance(value, Refresh):
        return value
    return Refresh(_schedule(name, value))


def _schedule(name: str, value: Any) -> int | tuple[int, ...] | str:
    if isinstance(value, str) and value == "auto":
        return "auto"
    try:
        if not isinstance(value, list | tuple | range):
            return whole(1)(name, value)
        if 0 < len(value) <= SIDE and value[0] == 0:
            return tuple(whole(0)(name, step) for step in value)
    except ValueError:
        pass
    raise ValueError(
        f"{name} must be a count of 1 or more, steps that begin with 0, or 'auto', "
        f"got {said(value)}"
    )
