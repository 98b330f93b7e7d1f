"""FLOPs at the true size of FLUX.1 Kontext, none of them done: `python -m benchmarks.found.flops`.

The counts of `hilo bench speed --arch flux-kontext --scale small`, where a block of the true width
on 4096 + 4096 + 512 tokens would take a CPU minutes. The transformer has shapes and no numbers (the
meta device); everything around it runs. Rows are written; `--table` prints them.
"""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils._pytree import tree_map

from hilotoken import HiLo
from hilotoken.bench.measure.arch import ARCHS, Scale, Subject, scale_from
from hilotoken.bench.measure.speed import Case, _edit
from hilotoken.bench.measure.flops import flops_by_pass
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import CLASSES
from hilotoken.hooks import shadowed
from hilotoken.methods import Dense, Method

RESULTS = Path(__file__).parents[1] / "results" / "found_flops.csv"
SIZE, STEPS, TEXT = 1024, 28, 512
ALONE = HiLo(find=True, refresh=1)
METHODS: dict[str, Method] = {
    "hilo find=True": HiLo(find=True),
    "hilo find=True refresh=2": HiLo(find=True, refresh=2),
    "hilo find=True refresh=1": HiLo(find=True, refresh=1),
}


@dataclass(frozen=True)
class FlopRow:
    """An edit. found: share of the grid that was found; dense_steps, whole_steps: before that,
    and all at which every token ran; ratio: FLOPs of the dense edit over this one's."""

    method: str
    mask_class: str
    mask_share: float
    steps: int
    found: float
    whole_steps: int
    ratio: float


@contextmanager
def without_numbers(transformer: Any) -> Iterator[None]:
    """The transformer runs on shapes alone; what it gives back is zero."""

    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(_to_meta, (args, kwargs))
        output = original(*args, **kwargs)
        return tree_map(lambda x: torch.zeros_like(x, device="cpu"), output)

    with shadowed(transformer, "forward", forward):
        yield


def _to_meta(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) else x
