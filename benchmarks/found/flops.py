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
from diffusers import FluxKontextPipeline
from torch import Tensor
from torch.utils._pytree import tree_map

from hilotoken import HiLo
from hilotoken.bench.measure.arch import ARCHS, Scale, Subject, scale_from
from hilotoken.bench.measure.flops import flops_by_pass
from hilotoken.bench.measure.speed import Case, edit
from hilotoken.bench.results.rows import append_rows
from hilotoken.bench.show.cells import markdown
from hilotoken.data.cases import CLASSES
from hilotoken.hooks import shadowed
from hilotoken.methods import Method

RESULTS = Path(__file__).parents[1] / "results" / "found_flops.csv"
SIZE, STEPS, TEXT = 1024, 28, 512
# The last dense step is a refresh, and every refresh is a look at all tokens.
METHODS: dict[str, Method] = {
    "hilo find=True": HiLo(find=True),
    "hilo find=True refresh=2": HiLo(find=True, refresh=2),
    "hilo find=True refresh=1": HiLo(find=True, refresh=1),
}


@dataclass(frozen=True)
class FlopRow:
    """An edit.

    found:       share of the grid that was found
    whole_steps: those at which every token ran
    ratio:       FLOPs of the dense edit over this one's
    """

    method: str
    mask_class: str
    mask_share: float
    steps: int
    found: float
    whole_steps: int
    ratio: float


class OnCpu(FluxKontextPipeline):
    """Else it would go by the first of its parts, in no order."""

    @property
    def _execution_device(self) -> torch.device:
        return torch.device("cpu")


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


def kontext() -> Subject:
    """FLUX.1 Kontext at its true width, one double and two single blocks, without numbers."""
    arch, scale = ARCHS["flux-kontext"], scale_from("small")
    with torch.device("meta"):
        transformer = arch.transformer(scale)
    narrow = Scale("", scale.depth, 1 / 16)
    pipe = OnCpu(**arch.pipe(transformer.eval(), arch.vae(narrow).eval()).components)
    pipe.set_progress_bar_config(disable=True)
    prompt = arch.prompt(transformer.config, TEXT)
    return Subject(pipe, TEXT, prompt | {"output_type": "latent"}, "flux-kontext", "small")


def rows(subject: Subject, name: str, mask_class: str) -> FlopRow:
    """Every pass of an edit is counted; a dense pass is the first, before anything is found."""
    case, method, runs = Case(mask_class, CLASSES[mask_class], SIZE), METHODS[name], []

    def run() -> None:
        with without_numbers(subject.pipe.transformer):
            runs.append(edit(subject, case, method, STEPS).run)

    passes = flops_by_pass(run, subject.pipe.transformer)
    done = runs[0]
    assert not done.reasons
    assert done.mask is not None
    assert len(passes) == STEPS
    return FlopRow(
        name, mask_class, case.share, STEPS, done.mask.mean().item(), len(done.refreshed or ()),
        STEPS * passes[0] / sum(passes),
    )  # fmt: skip


def table(path: Path = RESULTS) -> str:
    """A line a method, a column a size of the region."""
    with path.open(newline="") as stream:
        found = {(one["method"], one["mask_class"]): one for one in csv.DictReader(stream)}
    head = ["", *(f"{share:.0%} of the picture" for share in CLASSES.values()), "whole steps"]
    lines = [
        [name, *(f"{float(found[name, one]['ratio']):.2f}" for one in CLASSES),
         found[name, "small"]["whole_steps"]]
        for name in METHODS
    ]  # fmt: skip
    return markdown(head, lines)


def main(
    output: Path = RESULTS, only_table: Annotated[bool, typer.Option("--table")] = False
) -> None:
    if only_table:
        print(table(output))
        return
    torch.set_num_threads(1)
    subject = kontext()
    for name in METHODS:
        for mask_class in CLASSES:
            append_rows(output, [rows(subject, name, mask_class)])


if __name__ == "__main__":
    typer.run(main)
