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

from ..batch import BatchOptions, Record, Result, Row, edit_group, in_groups
from ..serve.loading import load_quietly
from . import connected


class Editor:
    """An actor: a model, and a group of rows at a time that are made together."""

    def __init__(
        self,
        model: str,
        device: str,
        threads: int,
        groups: list[list[Row]],
        options: BatchOptions,
    ) -> None:
        self.pipe = load_quietly(model, device, threads)
        self.pipe.set_progress_bar_config(disable=True)
        self.groups, self.options = groups, options

    def __call__(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """How each row of the group ended, in their order."""
        results = edit_group(self.pipe, self.groups[item["id"]], self.options)
        return [{"group": item["id"], "place": i} | _told(one) for i, one in enumerate(results)]


def _told(result: Result) -> dict[str, Any]:
    edit = result.edit
    if edit is None:
        return {"error": result.error, "tokens_run": 0.0, "tokens_full": 0, "seconds": 0.0}
    figures = (edit.sum(name) for name in ("mean_tokens_run", "tokens_full", "total_seconds"))
    return {"error": ""} | dict(zip(("tokens_run", "tokens_full", "seconds"), figures, strict=True))


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
        # A block a group: an actor's death costs that alone, and progress is told group by group.
        groups = list(in_groups(rows, options))
        data = ray.data.range(len(groups), override_num_blocks=len(groups)).flat_map(
            Editor,  # pyright: ignore[reportArgumentType]
            fn_constructor_args=(record.model, device, threads, groups, options),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(groups))),
            num_gpus=1 if device.startswith("cuda") else 0,
        )
        for found in data.iter_rows():
            row = groups[found["group"]][found["place"]]
            if found["error"]:
                record.fail(row, found["error"])
            else:
                record.note(row, found["tokens_run"], found["tokens_full"], found["seconds"])
            yield row, found["error"] or None
