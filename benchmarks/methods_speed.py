"""What methods inside blocks save, and what their matching costs, on one call of a transformer.

`python benchmarks/methods_speed.py -o FILE.csv`: a FLUX-shaped transformer with random weights, 512
channels, one double and two single blocks, on one thread with PyTorch's fused attention. Speed
depends on shapes, not on weights. Seconds are the process's own on the CPU, which other programs on
the machine disturb little; dense and every method take turns, and medians are kept.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from diffusers import FluxTransformer2DModel

from hilotoken.bench.measure.flops import count_flops
from hilotoken.bench.results.rows import append_rows
from hilotoken.blocks.attach import placed
from hilotoken.methods import BlockMethod
from hilotoken.methods.parse import method_from

METHODS = (
    "tome ratio=0.5", "tome ratio=0.5 feed_forward=True",
    "tome ratio=0.5 feed_forward=True reuse=4", "tome ratio=0.5 weights=True",
    "bigain_tm ratio=0.5", "todo factor=2", "todo factor=2 weights=True", "bigain_td factor=2",
    "sdtm ratio=0.3 deviation=0.2 structure=1 protect=0",
    "sdtm ratio=0.3 deviation=0.2 structure=0 protect=0",
    "pooling ratio=0.5", "pooling ratio=0.5 iterations=1",
)  # fmt: skip
TEXT = 128


@dataclass(frozen=True)
class MethodRow:
    """One method at one length, per call of the transformer.

    flop_ratio and speedup are dense over method; match_share is what matching takes, as a share of
    the dense blocks' seconds; reused matches are spread over the steps that they serve.
    """

    method: str
    tokens: int
    text: int
    channels: int
    blocks: int
    repeats: int
    gflops_dense: float
    gflops: float
    flop_ratio: float
    seconds_dense: float
    seconds: float
    speedup: float
    match_seconds: float
    match_share: float


class CpuClock:
    """Seconds of this process on the CPU, by part: stands in for a `Stopwatch`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        started = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - started


def bench_methods(
    methods: Mapping[str, BlockMethod], side: int, repeats: int
) -> Iterator[MethodRow]:
    """Rows on a grid of `side` x `side` tokens."""
    model, call = _model(), _call(side)
    dense_flops = count_flops(lambda: model(**call), model)
    flops = {name: _flops(model, method, call) for name, method in methods.items()}
    dense: list[float] = []
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for _ in range(repeats):
        dense.append(_seconds(lambda: model(**call)))
        for name, method in methods.items():
            spent[name].append(_steps(model, method, call))
    for name in methods:
        whole = median(dense)
        seconds = median(total for total, _ in spent[name])
        match = median(part for _, part in spent[name])
        yield MethodRow(
            name,
            side * side,
            TEXT,
            512,
            3,
            repeats,
            dense_flops / 1e9,
            flops[name] / 1e9,
            dense_flops / flops[name],
            whole,
            seconds,
            whole / seconds,
            match,
            match / whole,
        )


def _steps(model: Any, method: BlockMethod, call: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step and of its matching: means over as many steps as a match serves."""
    steps, clock = method.period, CpuClock()
    scheduler = SimpleNamespace(timesteps=range(steps))
    watch: Any = clock
    with placed(model, method, scheduler, watch=watch):
        total = sum(_seconds(lambda s=s: model(**_at(call, s, steps))) for s in range(steps))
    return total / steps, clock.seconds / steps


def _flops(model: Any, method: BlockMethod, call: dict[str, Any]) -> float:
    steps = method.period
    with placed(model, method, SimpleNamespace(timesteps=range(steps))):
        return sum(
            count_flops(lambda s=s: model(**_at(call, s, steps)), model) for s in range(steps)
        ) / steps  # fmt: skip


def _at(call: dict[str, Any], step: int, steps: int) -> dict[str, Any]:
    return call | {"timestep": torch.tensor([1 - step / steps])}


def _seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _model() -> Any:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 28, 28),
    ).eval()


def _call(side: int) -> dict[str, Any]:
    place = torch.arange(side).float()
    ids = torch.stack(torch.meshgrid(torch.zeros(1), place, place, indexing="ij"), -1)
    return {
        "hidden_states": torch.randn(1, side * side, 64),
        "encoder_hidden_states": torch.randn(1, TEXT, 64),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([1.0]),
        "img_ids": ids.view(-1, 3),
        "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="A CSV to append to.")],
    side: Annotated[list[int], typer.Option(help="Tokens a side; repeatable.")] = [32, 64],  # noqa: B006
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1)] = 3,
    method: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
) -> None:
    """Measure methods inside blocks on a FLUX-shaped transformer, on one thread."""
    torch.set_num_threads(1)
    names: Sequence[str] = method or METHODS
    chosen: Any = {name: method_from(*name.split()) for name in names}
    with torch.no_grad():
        for one in side:
            rows = list(bench_methods(chosen, one, repeats))
            append_rows(output, rows)
            for row in rows:
                print(
                    f"{row.tokens} {row.method}: FLOPs {row.flop_ratio:.2f}x, "
                    f"time {row.speedup:.2f}x, matching {row.match_share:.1%}"
                )


if __name__ == "__main__":
    typer.run(main)
