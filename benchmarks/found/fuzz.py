"""Edits that are known, by the thousand: `python -m benchmarks.found.fuzz` appends a row for each.

A tiny `FluxKontextPipeline` of random weights is steered to an edit: a patch, a thin line, two
places, one that shows late; another colour, another place, another size, another style of
everything; nothing at all. Interrupted, it goes on from there. `--table` prints what came of them.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from PIL import Image
from tqdm import tqdm

from hilotoken import Find, HiLo, compress
from hilotoken.bench.measure.steer import KINDS, known_edit, source_of, steered
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.cells import markdown

RESULTS = Path(__file__).parents[1] / "results" / "found_fuzz_cpu.csv"
SIZE, STEPS, COUNT = 256, 12, 2000


@dataclass(frozen=True)
class FuzzRow:
    """One edit.

    changed: share of the grid that the edit changes
    region:  share of the grid that was found, and shown
    missed:  of the tokens that change, the share that is not shown
    equal:   whether the latents end where dense ends, wherever they are shown
    dense:   whether every token ran at every step
    """

    seed: int
    kind: str
    changed: float
    region: float
    missed: float
    equal: bool
    dense: bool
    reasons: str


def tiny_kontext() -> tuple[Any, dict[str, Any]]:
    """A pipeline of random weights, one block of each kind, and a prompt for it."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip
    kind: Any = AutoencoderKL  # whose own types ask for one block
    vae = kind(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4), layers_per_block=0, norm_num_groups=4, latent_channels=16,
        scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    texts: Any = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxKontextPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **texts)
    pipe.set_progress_bar_config(disable=True)
    prompt = {"prompt_embeds": torch.randn(1, 6, 16), "pooled_prompt_embeds": torch.randn(1, 16)}
    return pipe, prompt


def photo(seed: int) -> Image.Image:
    """Noise of every fineness, so that there is something to move and to change."""
    random = np.random.default_rng(seed)
    layers = [
        Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).resize((SIZE, SIZE))
        for side in (4, 16, 64)
    ]
    return Image.fromarray(np.mean([np.asarray(one) for one in layers], 0).astype(np.uint8))


def square(image: Image.Image) -> dict[str, Any]:
    """The arguments that ask for the photo at its own size."""
    size = {"height": SIZE, "width": SIZE, "max_area": SIZE**2, "_auto_resize": False}
    return {"image": image} | size


def row(
    pipe: Any, arguments: dict[str, Any], seed: int, find: Find | bool = True, **changes: Any
) -> FuzzRow:
    """One edit, found as `find` says.

    changes: fields of the `KnownEdit` that are not at random
    """
    given = arguments | square(photo(seed))
    given |= {"num_inference_steps": STEPS, "output_type": "latent"}

    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    source_1NC = source_of(pipe, given["image"], noise())
    grid, fold = (SIZE // 16, SIZE // 16), 2
    edit = replace(known_edit(source_1NC, grid, fold, seed), **changes)
    fast = compress(pipe, HiLo(find=find))
    with steered(pipe, edit.estimate, source_1NC):
        found = fast(**given, generator=noise()).images
    run = fast.last_run
    assert run is not None
    assert run.mask is not None
    shown_N = run.mask[0, 0, :: SIZE // grid[0], :: SIZE // grid[1]].flatten() > 0
    changed_N = edit.changed_N
    missed = (changed_N & ~shown_N).sum() / changed_N.sum().clamp_min(1)
    last = float(pipe.scheduler.sigmas[-2])
    off_N = (found - edit.estimate(last)).abs().amax(-1)[0]
    return FuzzRow(
        seed, edit.kind, changed_N.float().mean().item(), shown_N.float().mean().item(),
        missed.item(), bool((off_N[shown_N] < 1e-3).all()), run.refreshed is None,
        "; ".join(run.reasons),
    )  # fmt: skip


def table(path: Path = RESULTS) -> str:
    """A line a kind of edit."""
    with path.open(newline="") as stream:
        by_kind: dict[str, list[dict[str, str]]] = defaultdict(list)
        for one in csv.DictReader(stream):
            by_kind[one["kind"]].append(one)
    lines = []
    for kind in KINDS:
        rows = by_kind[kind]
        shares = [f"{fmean(float(r[name]) for r in rows):.1%}" for name in ("changed", "region")]
        missed = sum(float(r["missed"]) > 0 for r in rows)
        dense = sum(r["dense"] == "True" for r in rows)
        lines.append([kind, str(len(rows)), *shares, str(missed), str(dense)])
    head = ["edit", "runs", "changed", "shown", "runs with a miss", "runs dense"]
    return markdown(head, lines)


def missing(path: Path, count: int) -> Iterable[int]:
    done = set()
    if path.exists():
        with path.open(newline="") as stream:
            done = {int(one["seed"]) for one in csv.DictReader(stream)}
    return [seed for seed in range(count) if seed not in done]


def main(
    count: int = COUNT,
    output: Path = RESULTS,
    only_table: Annotated[bool, typer.Option("--table")] = False,
) -> None:
    if only_table:
        print(table(output))
        return
    torch.set_num_threads(1)
    pipe, prompt = tiny_kontext()
    for seed in tqdm(missing(output, count)):
        append_rows(output, [row(pipe, prompt, seed)])


if __name__ == "__main__":
    typer.run(main)
