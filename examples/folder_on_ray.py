"""Edit a folder of photos on a Ray cluster; give it again, and it goes on where it was.

python examples/folder_on_ray.py photos/ masks/ out/
"""

from pathlib import Path

import typer

from hilotoken.batch import BatchOptions, Record, Row, read_rows
from hilotoken.cluster.batch import run_on_ray


def main(
    photos: Path,
    masks: Path,
    output: Path,
    address: str = "local",  # or "auto", or where your cluster is
    workers: int = 2,
    model: str = "embedded",
    steps: int = 8,
    size: int = 512,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    options = BatchOptions("balanced", steps=steps, size=size)
    rows = read_rows(photos, masks, output, Row(Path(), Path(), Path(), seed=0), ".png")
    record = Record(output / "batch.jsonl", options, model)
    todo = [row for row in rows if record.state(row) != "done"]
    for row, error in run_on_ray(todo, options, record, address, workers, "cpu"):
        print(row.photo, error or "done")


if __name__ == "__main__":
    typer.run(main)
