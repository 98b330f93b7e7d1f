"""Make the context-bound model robust by LoRA: `python -m benchmarks.context.robust --folder RUN`.

The model has never seen a sequence with gaps. An adapter is trained on drawn pictures with the
model as its own teacher; then held-out pictures are filled with it and without it, from the same
noise, by every token and by presets, each against the fill of every token without it.

Set before it was trained: under `paper` and `fast` the distance to dense, the root mean square in
the mask, is to be halved in the mean over pictures (+6 dB), and dense with the adapter stays within
0.2 % of what it was. Where the plan has dropped what tells the hidden part no adapter can know it,
so pictures whose plan kept it are told apart.

Interrupt it and call it again: it goes on where it was.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Generator

from hilotoken import HiLo, Refresh, compress
from hilotoken.methods import Dense
from hilotoken.train.lora import LoraOptions, train_lora

from .evaluate import WHOLE, Case, arguments, held_out, psnr
from .model import ContextModel, load, tokens_of
from .pictures import GRID, KINDS, SIDE, draw, enlarge
from .rows import RESULTS, append, read

LEARNED = [kind for kind in KINDS if kind != "repeat"]  # by the first model
METHODS: dict[str, Any] = {  # presets, without a bucket: 64 is a quarter of this grid
    "dense": Dense(),
    "paper": HiLo(bucket=1),
    "balanced": WHOLE,
    "fast": HiLo(coarse=0, bucket=1, refresh=Refresh(2, text=True)),
    "edit only": HiLo(detail=0.0, coarse=0, bucket=1),
    "random": HiLo(score="random", detail=0.16, coarse=0, bucket=1),
    "sampled": HiLo(context="sampled", detail=0.0, bucket=1),
    "sampled, twice": HiLo(context="sampled", detail=0.0, bucket=1, refresh=Refresh(2, text=True)),
}
TOGETHER = 8  # pictures a call of the training, of one kind, under one mask
STEPS = 8


@dataclass(frozen=True)
class Row:
    """One held-out picture by one method, with the adapter or without.

    told:       whether the plan keeps the tokens that tell the hidden part
    psnr:       dB in the mask, to the truth; of a range of 2
    psnr_dense: to dense without the adapter, from the same noise
    moved:      of all tokens, the mean squared difference to that over its mean square
    """

    samples: int
    adapter: int
    kind: str
    number: int
    method: str
    told: int
    psnr: float
    psnr_dense: float
    moved: float


def drawn(model: ContextModel) -> Any:
    """What the pipeline is given in training: drawn pictures that no evaluation holds out."""

    def arguments_of(number: int) -> dict[str, Any]:
        generator = Generator().manual_seed(2 * 10**12 + number)
        kind = LEARNED[int(torch.randint(len(LEARNED), (1,), generator=generator))]
        pictures = draw(kind, TOGETHER, generator, one_mask=True)
        kinds_B = torch.full((TOGETHER,), list(KINDS).index(kind))
        return {
            "image": pictures.image_B3HW / 2 + 0.5,
            "mask_image": enlarge(pictures.mask_Bhw[:1])[:, None].float(),
            "height": SIDE,
            "width": SIDE,
            "generator": Generator().manual_seed(number),
        } | model.prompt(kinds_B)

    return arguments_of


@torch.no_grad()
def measure(model: ContextModel, pipe: Any, samples: int, pictures: int, file: Path) -> None:
    """Append the rows that are not there yet."""
    done = {(r["kind"], int(r["number"]), r["method"]) for r in read(file)}
    for case in [case for kind in LEARNED for case in held_out(kind, pictures)]:
        left = [name for name in METHODS if (case.kind, case.number, name) not in done]
        for row in rows_of(model, pipe, case, samples, left) if left else ():
            append(file, row)


def rows_of(
    model: ContextModel, pipe: Any, case: Case, samples: int, wanted: list[str]
) -> list[Row]:
    """One picture by the methods wanted, without the adapter and with it."""
    x0_BNC, hidden = tokens_of(case.picture.image_B3HW), list(case.hidden)
    rows, dense_BNC = [], x0_BNC
    for adapter in (0, 1):
        (model.transformer.enable_adapters if adapter else model.transformer.disable_adapters)()
        for name in dict.fromkeys(["dense", *wanted]):
            fast = compress(pipe, METHODS[name])
            out_BNC = fast(**arguments([case], model), num_inference_steps=STEPS).images
            assert fast.last_run is not None
            if name == "dense" and not adapter:
                dense_BNC = out_BNC
            runs_N = torch.zeros(GRID * GRID, dtype=torch.bool)
            runs_N[fast.last_run.plan.keep_K] = True
            told = bool(case.picture.told(runs_N.view(1, GRID, GRID)))
            moved = (out_BNC - dense_BNC).square().mean() / dense_BNC.square().mean()
            true, near = (
                round(float(psnr(out_BNC[:, hidden], to_BNC[:, hidden])), 3)
                for to_BNC in (x0_BNC, dense_BNC)
            )
            row = (samples, adapter, case.kind, case.number, name, int(told), true, near)
            rows.append(Row(*row, round(float(moved), 7)))
    return [row for row in rows if row.method in wanted]


FIGURES: list[tuple[Callable[[dict[str, str]], float], str]] = [  # of a row, and how it is written
    (lambda row: float(row["psnr_dense"]), ".1f"),
    (lambda row: 4 * 10 ** (-float(row["psnr_dense"]) / 10), ".4f"),
    (lambda row: float(row["psnr"]), ".1f"),
]


def table(file: Path) -> str:
    """Without the adapter and with it, each method's means, in Markdown."""
    lines = [
        "| method | pictures | to dense, dB | to dense, squared | to the truth, dB |",
        "|---|---|---|---|---|",
    ]
    rows = read(file)
    for name in METHODS:
        for label, wanted in (("", "01"), (", told", "1"), (", not told", "0")):
            some = [r for r in rows if r["method"] == name and r["told"] in wanted]
            if not some or (label and len(some) == len([r for r in rows if r["method"] == name])):
                continue
            without, adapted = ([r for r in some if r["adapter"] == a] for a in "01")
            cells = [
                f"{mean(map(of, without)):{form}} to {mean(map(of, adapted)):{form}}"
                for of, form in FIGURES
            ]
            if name == "dense":
                cells[0], cells[1] = (cell.rpartition(" ")[2] for cell in cells[:2])
            lines.append(f"| {name}{label} | {len(without)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/robust"), help="checkpoint, log, LoRA"
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--identity", type=float, default=1.0)
    parser.add_argument("--pictures", type=int, default=6, help="held out, a kind")
    parser.add_argument("--out", type=Path, default=RESULTS / "robust.csv")
    parser.add_argument("--table", action="store_true", help="of the rows there are, and no more")
    given = parser.parse_args()
    if given.table:
        print(table(given.out))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = load("dense")
    pipe = model.pipeline()
    options = LoraOptions(
        samples=given.samples, batch=2, rank=given.rank, rate=given.rate, identity=given.identity
    )
    try:
        train_lora(pipe, drawn(model), given.folder, options, begun="drawn pictures")
        measure(model, pipe, given.samples, given.pictures, given.out)
    except KeyboardInterrupt:
        print(f"broken off; the same command goes on from {given.folder}")


if __name__ == "__main__":
    main()
