"""A batch on a Ray cluster: Ray Data hands rows to actors that hold the model.

Photos, masks and results are files that every machine sees under the same path. An edit is the same
wherever it is made, and a result is replaced only by a finished one: when an actor dies, Ray gives
its row to another.
"""

import os
from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from ..batch import BatchOptions, Record, Row, edit_row
from ..serve.loading import load_quietly
from . import connected


class Editor:
    """An actor: a model, and a row at a time."""

    def __init__(
        self, model: str, device: str, threads: int, rows: list[Row], options: BatchOptions
    ) -> None:
        self.pipe = load_quietly(model, device, threads)
        self.pipe.set_progress_bar_config(disable=True)
        self.rows, self.options = rows, options

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        found = {"index": item["id"], "error": ""}
        figures = {"tokens_run": 0.0, "tokens_full": 0, "seconds": 0.0}
        try:
            edit = edit_row(self.pipe, self.rows[item["id"]], self.options)
        except (ValueError, TypeError, OSError) as error:
            return found | figures | {"error": " ".join(str(error).split())}
        figures = {"tokens_run": edit.sum("mean_tokens_run")}
        figures["tokens_full"] = edit.sum("tokens_full")
        return found | figures | {"seconds": edit.sum("total_seconds")}


def run_on_ray(
    rows: list[Row],
    options: BatchOptions,
    record: Record,
    address: str,
    workers: int,
    device: str,
) -> Iterator[tuple[Row, str | None]]:
    """Edit the rows on a cluster; each with its error, if any, in the order in which they end.

    Args:
        address: "local" for a cluster of this process's own, or what `ray.init` takes
        workers: actors
    """
    if not rows:
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with connected(address, workers):
        for row in rows:
            record.begin(row)
        ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
        # A block a row: what an actor's death costs is one edit, and progress is told row by row.
        data = ray.data.range(len(rows), override_num_blocks=len(rows)).map(
            Editor,  # pyright: ignore[reportArgumentType]
            fn_constructor_args=(record.model, device, threads, rows, options),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_gpus=1 if device.startswith("cuda") else 0,
        )
        for found in data.iter_rows():
            row = rows[found["index"]]
            if found["error"]:
                record.fail(row, found["error"])
            else:
                record.note(row, found["tokens_run"], found["tokens_full"], found["seconds"])
            yield row, found["error"] or None
