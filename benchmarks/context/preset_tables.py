"""What presets and settings cost at the size of FLUX.1, beside what they were found to keep.

FLOPs are counted from shapes, over the photographs in `examples/`: 1024 px, 512 text tokens, eight
steps of FLUX.1's schedule.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
from torch import Tensor

from hilotoken import PRESETS, HiLo, Refresh, plan_tokens
from hilotoken.bench.results.readings import SAME
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import CLASSES, hidden, square
from hilotoken.grid import as_batch
from hilotoken.methods.presets import IN_NOISE_ALONE

from .flops import FLUX_FILL
from .model import SHIFT
from .photo_tables import SETTINGS, over_paper
from .photos import METHODS
from .rows import Rows, by, mean, rows_of, spread

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = (256, 512)
KEPT_IN_NOISE = {  # by the presets where the photo is in x_t alone
    "fast": "one token of nine, computed three times, text with them",
    "balanced": "detail, and one token of four, computed three times",
    "faithful": "the whole context, computed three times",
    "paper": "the paper's tokens, at every step",
}
CONTROL = ("edit only", "no context at all: the control, no preset", "")
FEWER = "FLOPs, times fewer: small / medium / large mask"


def flux() -> str:
    """FLOPs at the size of FLUX.1, in eight steps: times fewer than dense, by mask."""
    lines = [[name, *(f"{x:.2f}" for x in _fewer(m))] for name, m in METHODS.items()]
    shares = (f"{name}, {share:.1%}".replace("%", " %") for name, share in CLASSES.items())
    return markdown(["method", *shares], lines)


def presets() -> str:
    """The presets: what each keeps, its cost at FLUX's size, and how near it is to dense."""
    sizes = [[r for r in rows_of(f"embedded_{n}") if float(r["psnr_dense"]) < SAME] for n in SIZES]
    lines = []
    settings = {f"`{name}`": setting for name, setting in SETTINGS.items()}
    for name, (method, keeps, unless) in (settings | {"*edit only*": CONTROL}).items():
        near = ["<br>".join(_nearer(rows, method, mask) for mask in CLASSES) for rows in sizes]
        lines.append([name, keeps, _cost(METHODS[method]), *near, unless])
    near = [f"dB to dense over `paper`'s, {n} px" for n in SIZES]
    return markdown(["preset", "what it keeps", FEWER, *near, "when not"], lines)


def _nearer(rows: Rows, method: str, mask_class: str) -> str:
    return "0" if method == "paper" else spread(over_paper(rows, method, mask_class), "+.1f")


def noised_presets() -> str:
    """The presets where the photo is in x_t alone: cost at FLUX's size, and what they solve."""
    rows = by([r for r in rows_of("noised") if r["kind"] == "field"], "selection")
    lines = []
    for name, keeps in KEPT_IN_NOISE.items():
        mine = rows[(name if name == "paper" else f"preset {name}",)]
        figures = f"{100 * mean(mine, 'solved'):.0f}", f"{mean(mine, 'psnr_dense'):.1f}"
        lines.append([f"`{name}`", keeps, _cost(IN_NOISE_ALONE[name]), *figures])
    dense = f"*field* solved, of 100 (dense {100 * mean(rows[('dense',)], 'solved'):.0f})"
    return markdown(["preset", "what it keeps", FEWER, dense, "dB to dense"], lines)


def unrested() -> str:
    """What `fast` costs where text cannot rest."""
    lines = []
    for where, named in (("beside x_t", PRESETS), ("in x_t alone", IN_NOISE_ALONE)):
        fast, refresh = named["fast"], named["fast"].refresh
        assert isinstance(refresh, Refresh)
        resting = [replace(fast, refresh=replace(refresh, text=text)) for text in (True, False)]
        lines.append([where, *map(_cost, resting)])
    return markdown(["the photo is", "text rests", "text runs at every step"], lines)


def _cost(method: HiLo) -> str:
    return " / ".join(f"{fewer:.1f}" for fewer in _fewer(method))


@cache
def _fewer(method: HiLo) -> list[float]:
    """Times fewer FLOPs than dense's at FLUX's size, under each class of masks."""
    base = np.linspace(1, 1 / 8, 8)
    sigmas = (np.exp(SHIFT) / (np.exp(SHIFT) + 1 / base - 1)).tolist()
    fewer = []
    for mask_class in CLASSES:
        plans = [plan_tokens(*case, grid=(64, 64), method=method) for case in _cases(mask_class)]
        fewer.append(1 / fmean(FLUX_FILL.share(plan, method, sigmas) for plan in plans))
    return fewer


@cache
def _cases(mask_class: str) -> list[tuple[Tensor, Tensor]]:
    """The example photographs at FLUX's size, each with its mask of a class."""
    cases = []
    for file in sorted(EXAMPLES.glob("*.jpg")):
        photo, (mask, *_) = square(file, 1024), hidden(file.name, mask_class, 1024)
        both = (photo / np.float32(255), 3), (mask.astype(np.float32), 1)
        cases.append(tuple(as_batch(image, channels) for image, channels in both))
    return cases
