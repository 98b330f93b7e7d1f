"""The figure of README.md: what selections make of four pictures, and what all of them solve.

`python -m benchmarks.context.figure` fills the pictures anew and reads the rest from the rows.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from hilotoken import compress

from .evaluate import STEPS, Bench, Case, arguments, held_out, selections
from .model import MAIN
from .pictures import KINDS
from .rows import by, rows_of
from .selections import experimental

OUT = Path(__file__).parent / "selections.png"
SHOWN = (
    "edit only",
    "paper",
    "random",
    "sampled 3",
    "foveated",
    "detail, twice",
    "whole, once",
    "dense",
)
NAMED = (*SHOWN, "needed", "coarse 4", "pyramid", "sampled 2", "detail and sampled 3, twice")
FIRST, EACH = 398, 2  # the last of those held out: shown as they come, not chosen


def main() -> None:
    bench = Bench(MAIN)
    cases = [case for kind in KINDS for case in held_out(kind, FIRST + EACH)[FIRST:]]
    figure = plt.figure(figsize=(15, 1.05 * len(cases)), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    left, right = halves
    columns = ("what it is given", *SHOWN, "truth")
    for axes_row, case in zip(
        left.subplots(len(cases), len(columns), squeeze=False), cases, strict=True
    ):
        for axes, (title, image) in zip(axes_row, _filled(bench, case).items(), strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if case is cases[0]:
                axes.set_title(title.replace(", ", ",\n").replace(" (", "\n("), fontsize=7)
        axes_row[0].set_ylabel(case.kind, fontsize=8)
    _scatter(right.subplots())
    figure.savefig(OUT, dpi=110)


@torch.no_grad()
def _filled(bench: Bench, case: Case) -> dict[str, np.ndarray]:
    truth = _picture(case.photo_13HW)
    given = _picture(case.photo_13HW * (1 - case.mask_11HW) + 0.5 * case.mask_11HW)
    pictures = {"what it is given": given}
    made = selections(case)
    with experimental():
        for name in SHOWN:
            given = arguments([case], bench.model) | {"output_type": "np"}
            fast = compress(bench.pipe, made[name][0])
            output = fast(**given, num_inference_steps=STEPS)
            pictures[name] = output.images[0]
    return pictures | {"truth": truth}


def _picture(image_13HW: torch.Tensor) -> np.ndarray:
    return image_13HW[0].movedim(0, -1).clamp(0, 1).numpy()


def _scatter(axes: Any) -> None:
    for (name,), rows in by(rows_of(MAIN), "selection").items():
        cost = 100 * fmean(float(row["flops"]) for row in rows)
        solved = 100 * fmean(float(row["solved"]) for row in rows)
        reused = "once" in name or "twice" in name
        axes.scatter(cost, solved, s=18, color="tab:red" if reused else "tab:blue")
        if name in NAMED:
            axes.annotate(name, (cost, solved), (4, 3), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xticks([15, 20, 30, 40, 60, 100], ["15", "20", "30", "40", "60", "100"])
    axes.set_xlabel("FLOPs, % of dense's (log)")
    axes.set_ylabel("pictures solved, %")
    axes.set_title("red: context computed once or twice, and reused", fontsize=8)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
