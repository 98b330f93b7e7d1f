"""How often a selection keeps what tells the hidden part: `python -m benchmarks.context.coverage`.

No model takes part. A drawn picture's hidden part is told by one token, at least, of each of a few
groups (`Pictures.tell_BGhw`), and what else is shown is independent of it. So where a selection
drops a group, no model could do better than guess, however it was trained: the share of pictures
that are told bounds the share that can be solved. Coarse tokens count for nothing here, though a
model may see through them a little.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

from .evaluate import STEPS, held_out, selections
from .flops import CONTEXT
from .model import SHIFT
from .pictures import GRID, GROUNDS, KINDS
from .rows import RESULTS, append, read


@dataclass(frozen=True)
class Told:
    """Pictures of a kind and ground under one selection.

    tokens, flops: their means; of a call with context, and of all steps as a share of dense's
    told:          of how many of the pictures the tokens that run can tell the hidden part
    """

    kind: str
    ground: str
    selection: str
    pictures: int
    tokens: float
    flops: float
    told: int


def sigmas(steps: int = STEPS, shift: float = SHIFT) -> list[float]:
    """Noise levels of FLUX.1's schedule."""
    t = torch.linspace(1, 1 / steps, steps).double()
    grown = torch.tensor(shift).double().exp()
    return (grown / (grown + 1 / t - 1)).tolist()


def told(kind: str, count: int) -> Iterator[Told]:
    """Every selection on `count` held-out pictures of a kind, by ground."""
    found: dict[tuple[str, str], list[tuple[int, float, int]]] = defaultdict(list)
    for case in tqdm(held_out(kind, count), desc=kind, unit="picture"):
        ground = GROUNDS[int(case.picture.ground_B)]
        for name, (method, steps) in selections(case).items():
            plan = case.plan(method)
            runs = torch.zeros(GRID**2, dtype=torch.bool)
            runs[plan.keep_K] = True
            flops = CONTEXT.share(plan, method, sigmas(steps)) * steps / STEPS
            tells = bool(case.picture.told(runs.view(1, GRID, GRID)))
            found[ground, name].append((plan.tokens_run, flops, int(tells)))
    for (ground, name), figures in found.items():
        tokens, flops, tells = zip(*figures, strict=True)
        yield Told(
            kind, ground, name, len(figures), round(fmean(tokens), 2), round(fmean(flops), 5),
            sum(tells),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=400, help="held out, a kind")
    parser.add_argument("--out", type=Path, default=RESULTS / "told.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = {row["kind"] for row in read(given.out)}
    for kind in KINDS:
        for row in told(kind, given.pictures) if kind not in done else ():
            append(given.out, row)


if __name__ == "__main__":
    main()
