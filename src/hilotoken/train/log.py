"""What a training says while it runs: a progress bar, a CSV of losses, a picture of its curves."""

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY_SECONDS = 10.0


class Log:
    """Running means of named figures, written to `<run>/<name>.csv` every ten seconds."""

    def __init__(self, run: Path, name: str) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.path, self.name = run / f"{name}.csv", name
        self.sums: dict[str, list[float]] = {}

    @contextmanager
    def progress(self, total: int, done: int) -> Iterator[Callable[..., None]]:
        """Yields `advance(count, **figures)`."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        started, begun = time.monotonic(), done
        last = started
        self._forget_after(done)
        with Progress(
            *columns, TimeRemainingColumn(), refresh_per_second=1, console=Console(stderr=True)
        ) as bar:
            task = bar.add_task(self.name, total=total, completed=min(done, total))

            def advance(count: int, **figures: float) -> None:
                nonlocal done, last
                done += count
                for key, value in figures.items():
                    self.sums.setdefault(key, []).append(value)
                now = time.monotonic()
                if now - last > EVERY_SECONDS or done >= total:
                    last = now
                    text = self._write(done, (done - begun) / max(now - started, 1e-9))
                    bar.update(task, description=text)
                bar.update(task, completed=min(done, total))  # the last step may go beyond

            yield advance

    def _forget_after(self, done: int) -> None:
        """Drop what was logged after the checkpoint that a run goes on from: it comes again."""
        if self.path.is_file():
            rows = [
                (at, rate, key, f"{value:.6g}")
                for at, rate, key, value in read_log(self.path)
                if at <= done
            ]
            with self.path.open("w", newline="") as stream:
                csv.writer(stream).writerows(rows)

    def _write(self, done: int, rate: float) -> str:
        means = {key: sum(values) / len(values) for key, values in self.sums.items()}
        self.sums.clear()
        with self.path.open("a", newline="") as stream:
            rows = [(done, f"{rate:.2f}", key, f"{value:.6g}") for key, value in means.items()]
            csv.writer(stream).writerows(rows)
        figures = " ".join(f"{key} {value:.4f}" for key, value in means.items())
        return f"{self.name} {rate:.1f}/s {figures}"


def read_log(path: Path) -> list[tuple[int, str, str, float]]:
    """The rows of a log: samples done, samples a second, the name of a figure, its value.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                (int(done), rate, name, float(value))
                for done, rate, name, value in csv.reader(stream)
            ]
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and its curve begins anew"
        ) from error


def plot(run: Path) -> Path:
    """Every curve of every log in `run`, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logs = [path for path in sorted(run.glob("*.csv")) if path.stat().st_size]
    figure, axes = plt.subplots(1, max(1, len(logs)), figsize=(6 * max(1, len(logs)), 4))
    for axis, log in zip(axes if len(logs) > 1 else [axes], logs, strict=False):
        curves: dict[str, list[tuple[int, float]]] = {}
        for done, _, key, value in read_log(log):
            curves.setdefault(key, []).append((done, value))
        for key, points in curves.items():
            axis.plot(*zip(*points, strict=True), label=key, linewidth=1)
        axis.set(title=log.stem, xlabel="samples", yscale="log")
        axis.legend()
    path = run / "curves.png"
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
