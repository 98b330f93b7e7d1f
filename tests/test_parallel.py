"""Several processes at one training: the same weights as one process that has all their batches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch import nn
from toys import small_transformer, some_distance, training_photos

from hilotoken import load_model
from hilotoken.train import autoencoder, throughput, transformer
from hilotoken.train import run as recipe
from hilotoken.train.autoencoder import AutoencoderOptions
from hilotoken.train.checkpoint import load_if_any
from hilotoken.train.latent_cache import ViewOptions
from hilotoken.train.loop import train_loop
from hilotoken.train.parallel import own_device
from hilotoken.train.refine import RefineOptions
from hilotoken.train.run import TrainOptions
from hilotoken.train.transformer import TransformerOptions

OPTIONS = {"samples": 40, "rate": 0.1, "cooldown": 0.5, "decay": 0.9, "checkpoint_seconds": 0.0}


def new_model() -> nn.ModuleList:
    """The last is channels last, as the autoencoder is."""
    torch.manual_seed(0)
    model = nn.ModuleList((nn.Linear(3, 2), nn.Linear(3, 1), nn.Conv2d(3, 2, 3)))
    return model.to(memory_format=torch.channels_last)


def gradients(model: nn.ModuleList, done: int) -> tuple[int, dict[str, float]]:
    """Three or four pictures; some batches leave a part of the model without a gradient."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(done))
    shapes = [(4, 3), (4, 3), (4, 3, 1, 1)]
    used = [
        layer(x.view(shape).expand(-1, -1, 3, 3) if len(shape) > 2 else x).square().mean()
        for i, (layer, shape) in enumerate(zip(model, shapes, strict=True))
        if i == 0 or done % 2
    ]
    sum(used, torch.zeros(())).backward()
    return 3 + done % 2, {"loss": used[0].item()}


def trained(run: Path, drawn: list[int] | None = None) -> nn.ModuleList:
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters())

    def draw(done: int) -> tuple[int, dict[str, float]]:
        if drawn is not None:
            drawn.append(done)
        return gradients(model, done)

    return train_loop(model, [optimizer], draw, run, "toy", **OPTIONS)


def expected(run: Path) -> nn.ModuleList:
    """One process that takes the batches of two, and their mean."""
    model = new_model()

    def both(done: int) -> tuple[int, dict[str, float]]:
        count = sum(gradients(model, done + rank)[0] for rank in (0, 1))
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad / 2
        return count, {}

    return train_loop(model, [torch.optim.SGD(model.parameters())], both, run, "toy", **OPTIONS)


def whole_recipe(run: Path, photos: Path) -> None:
    """`hilo train`, on small models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "WIDTH", 8)
        patch.setattr(transformer, "new_transformer", small_transformer)
        patch.setattr(recipe, "load_lpips", lambda path: some_distance())
        patch.setattr(throughput, "COUNTED", 1)
        options = TrainOptions(
            AutoencoderOptions(samples=16, batch=4, crop=32),
            ViewOptions(groups=2, photos=2, masks=1),
            TransformerOptions(samples=16, batches=1, blocks=2),
            RefineOptions(samples=16, batches=1),
            labels="kind",
        )
        recipe.train(photos, run, options, torch.device("cpu"), Path("weights of LPIPS"))


def start(rank: int, port: int, *arguments: Path) -> subprocess.Popen:
    env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    env |= {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[str]]:
    """What two processes made together, first a toy and then by the whole recipe, and said."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "photos").mkdir()
    return folder, both(folder, training_photos(folder / "photos"))


def both(*arguments: Path) -> list[str]:
    """What two processes said that did this together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(rank, port, *arguments) for rank in (0, 1)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def test_two_processes_are_one_with_the_batches_of_both(two, tmp_path):
    folder, said = two
    one = expected(tmp_path).state_dict()
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]
    for name, weight in one.items():
        assert torch.equal(ranks[0]["model"][name], ranks[1]["model"][name])
        torch.testing.assert_close(ranks[0]["model"][name], weight)
    assert not set(ranks[0]["drawn"]) & set(ranks[1]["drawn"])
    assert ["toy" in text for text in said] == [True, False]  # the first alone speaks
    done = [load_if_any(run / "toy.pt")["done"] for run in (tmp_path, folder)]
    assert done[0] == done[1] >= OPTIONS["samples"]


def test_two_processes_make_one_model_by_the_whole_recipe(two):
    folder, said = two
    assert ["refine" in text for text in said] == [True, False]
    pipe = load_model(folder / "pipeline")
    assert pipe.labels
    for name in ("autoencoder", "transformer", "refine"):
        state = load_if_any(folder / f"{name}.pt")
        assert state is not None
        assert state["done"] >= 16


def test_alone_nothing_is_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr("hilotoken.train.parallel.reduce", None)
    drawn: list[int] = []
    trained(tmp_path, drawn)
    assert drawn[:3] == [0, 3, 7]


@pytest.mark.parametrize("name", ["cpu", "cuda:1"])
def test_a_device_that_is_named_stays(name):
    assert own_device(torch.device(name)) == torch.device(name)


if __name__ == "__main__":
    folder, drawn = Path(sys.argv[1]), []
    model = trained(folder, drawn)
    rank = PartialState().process_index
    torch.save({"model": model.state_dict(), "drawn": drawn}, folder / f"rank{rank}.pt")
    whole_recipe(folder, Path(sys.argv[2]))
    PartialState().destroy_process_group()
