"""The command `hilo batch`."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..batch import BatchOptions, Record, Row

WORKING_SIZE = 512  # of the embedded model, for a plan without one


def batch(
    photos: Annotated[
        Path,
        typer.Argument(
            help="A folder of photos; or a CSV with the columns photo, mask, output, prompt, "
            "label, seed, steps, of which photo is needed."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the results.")],
    masks: Annotated[
        Path | None,
        typer.Option(help="A folder with NAME_mask.png or NAME.png for each; or one mask for all."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="`embedded`, a folder in diffusers format, or a hub id.")
    ] = "embedded",
    prompt: Annotated[str, typer.Option(help="What to fill in, where the CSV says nothing.")] = "",
    label: Annotated[str, typer.Option(help="A kind of thing to fill with.")] = "",
    method: Annotated[
        str, typer.Option(help='A preset, or a method and its options: "fast", "hilo detail=0.2".')
    ] = "balanced",
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of all rows that have none.", min=0)] = 0,
    size: Annotated[
        int | None, typer.Option(help="Longer side of the working picture, in pixels.", min=128)
    ] = None,
    feather: Annotated[
        int, typer.Option(help="Pixels over which the edit blends in, inside the mask.", min=0)
    ] = 0,
    match: Annotated[
        bool, typer.Option(help="Lead the edit's colours to the photo's along the mask's border.")
    ] = True,
    together: Annotated[
        int | None,
        typer.Option(
            help="Rows that follow each other and ask for the same, made in one call of the "
            "pipeline at most; 1 on a CPU, else 4.",
            min=1,
        ),
    ] = None,
    suffix: Annotated[str, typer.Option("--format", help="png, tiff, webp, bmp or jpg.")] = "png",
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, check and estimate; edit nothing.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster: `local` for this machine, or its address, such as auto.",
        ),
    ] = None,
    ray_workers: Annotated[
        int, typer.Option(help="Ray actors, each with a model of its own.", min=1)
    ] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Edit a folder of photos under their masks; interrupt it, and the same command goes on.

    OUTPUT/batch.jsonl says what was done, in which time, and what failed. Rows that fail are
    listed at the end and tried again by the next run; the exit code is then 1.
    """
    from ..batch import RECORD, BatchOptions, Record, Row, read_rows
    from ..edit import together_on

    most = together or together_on(device)
    options = BatchOptions(method, steps, size, feather, match, most)
    common = Row(Path(), Path(), Path(), prompt, label, seed)
    rows = read_rows(photos, masks, output, common, f".{suffix.lower().lstrip('.')}")
    if not dry_run:
        output.mkdir(parents=True, exist_ok=True)
    record = Record(output / RECORD, options, model)
    states = [record.state(row) for row in rows]
    todo = [row for row, state in zip(rows, states, strict=True) if state == "to do"]
    foreign = [row for row, state in zip(rows, states, strict=True) if state == "foreign"]
    failures = {  # by result, since a photo may have several
        str(row.output): "it is there already, and not from this batch: move it" for row in foreign
    }
    found: dict[str, Any] = {"rows": len(rows), "done before": states.count("done")}
    if dry_run:
        _report(found | _estimate(todo, options, record, failures), failures, as_json)
        return
    run = _on_ray(ray, ray_workers, model, device) if ray else _here(model, device)
    done = _run_all(run, todo, options, record, failures)
    _report(found | {"done now": done, "failed": len(failures)}, failures, as_json)
    if failures:
        raise typer.Exit(1)


Runner = Callable[[list["Row"], "BatchOptions", "Record"], Iterable[tuple["Row", str | None]]]


def _here(model: str, device: str) -> Runner:
    """On this machine, with the model in this process."""

    def run(
        rows: list["Row"], options: "BatchOptions", record: "Record"
    ) -> Iterator[tuple["Row", str | None]]:
        from ..batch import edit_group, in_groups
        from ..model import load_model
        from .shared import quiet_bars

        with quiet_bars():
            pipe = load_model(model, device=device)
        pipe.set_progress_bar_config(disable=True)
        for group in in_groups(rows, options):
            for row in group:
                record.begin(row)
            for result in edit_group(pipe, group, options):
                record.end(result)
                yield result.row, result.error

    return run


def _on_ray(address: str, workers: int, model: str, device: str) -> Runner:
    """On a Ray cluster."""
    from .serve import require

    require("ray", "ray")
    from ..cluster.batch import run_on_ray

    def run(
        rows: list["Row"], options: "BatchOptions", record: "Record"
    ) -> Iterable[tuple["Row", str | None]]:
        return run_on_ray(rows, options, record, address, workers, device)

    return run


def _run_all(
    run: Runner,
    rows: list["Row"],
    options: "BatchOptions",
    record: "Record",
    failures: dict[str, str],
) -> int:
    """Edit all rows under a progress bar; how many are done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not rows:
        return 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    done = 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("editing", total=len(rows))
        for row, error in run(rows, options, record):
            bar.advance(task)
            if error:
                failures[str(row.output)] = error
                bar.console.print(f"{row.output}: {error}", style="red", highlight=False)
            else:
                done += 1
    return done


def _estimate(
    rows: list["Row"], options: "BatchOptions", record: "Record", failures: dict[str, str]
) -> dict[str, Any]:
    """Counts and costs of what is to do."""
    from ..batch import cost_of

    costs = []
    for row in rows:
        cost = cost_of(row, options, WORKING_SIZE)
        if cost.error:
            failures[str(row.output)] = cost.error
        else:
            costs.append(cost)
    run = round(sum(cost.tokens_run * cost.steps for cost in costs))
    full = sum(cost.tokens_full * cost.steps for cost in costs)
    found: dict[str, Any] = {
        "to do": len(costs), "cannot be done": len(failures),
        "tokens times steps": run, "of a dense run's": full,
    }  # fmt: skip
    if full:
        found["share"] = round(run / full, 3)
    if record.mean_seconds is not None:
        found["seconds, by those done"] = round(record.mean_seconds * len(costs), 1)
    return found


def _report(found: dict[str, Any], failures: dict[str, str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found | {"failures": failures}))
        return
    print(", ".join(f"{name}: {value}" for name, value in found.items()))
    for result, error in failures.items():
        print(f"hilo: {result}: {error}", file=sys.stderr)
