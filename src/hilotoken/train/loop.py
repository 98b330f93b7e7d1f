"""The loop that both trainings run: gradients, a step, the average, a checkpoint now and then."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from .checkpoint import Average, load_if_any, save_atomically
from .log import Log
from .parallel import average_gradients, processes
from .throughput import Throughput

Model = TypeVar("Model", bound=nn.Module)
# From the samples done: how many more, and figures for the log. Leaves the gradients on the model.
# What it draws must follow from that number alone, so that a resumed run draws the same.
Gradients = Callable[[int], tuple[int, dict[str, float]]]


def train_loop(
    model: Model,
    optimizers: Sequence[torch.optim.Optimizer],
    gradients: Gradients,
    run: Path,
    name: str,
    *,
    samples: int,
    rate: float,
    cooldown: float,
    decay: float,
    checkpoint_seconds: float,
) -> Model:
    """Train, or resume, to `samples`; returns the model with its averaged weights.

    Started by `accelerate launch`, all processes together do. `<run>/pace.json` says how fast.

    Args:
        run, name: the checkpoint is `<run>/<name>.pt`, the log `<run>/<name>.csv`
        rate: of learning; constant, then down to nothing over the last `cooldown` of the samples.
            A parameter group with a `share` learns at that share of it
        decay: of the moving average

    Raises ValueError for a checkpoint of another model, or a damaged one.
    """
    average, path, done = Average(model, decay), run / f"{name}.pt", 0
    device = next(model.parameters()).device
    crew = processes(device)
    if state := load_if_any(path):
        _load(model, state["model"], path)
        average.load_state_dict(state["average"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved_state)
        done = state["done"]
    crew.wait_for_everyone()  # to have read it before anyone writes the next

    def checkpoint() -> None:
        if not crew.is_main_process:
            return
        state = {"model": model.state_dict(), "average": average.state_dict(), "done": done}
        save_atomically(state | {"optimizers": [o.state_dict() for o in optimizers]}, path)
        throughput.keep(run / "pace.json", name)

    throughput = Throughput(device, crew.num_processes)
    saved = time.monotonic()
    log = Log(run, name).progress(samples, done) if crew.is_main_process else _silence()
    with log as advance:
        while done < samples:
            _set_rate(optimizers, rate * _schedule(done / samples, cooldown))
            model.zero_grad()
            first = done + crew.process_index  # which are fewer than any step's pictures
            count, figures = throughput.count(gradients, first)
            count = average_gradients(model, count, crew)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            average.update(model)
            done += count
            throughput.pictures += count
            advance(count, **figures)
            if time.monotonic() - saved > checkpoint_seconds:
                checkpoint()
                saved = time.monotonic()
    if throughput.pictures or not path.is_file():
        checkpoint()
    crew.wait_for_everyone()
    model.load_state_dict(average.weights)
    return model.requires_grad_(False).eval()


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} has other parts than what is to be trained: finish that run as it was begun, "
            "or name another folder"
        ) from error


@contextmanager
def _silence() -> Iterator[Callable[..., None]]:
    """What a log yields, for processes that do not keep one."""
    yield lambda count, **figures: None


def _schedule(share: float, cooldown: float) -> float:
    """A short warm-up, constant, then down to nothing."""
    return min(1.0, share / 0.01 + 0.01, (1.0 - share) / cooldown)


def _set_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
