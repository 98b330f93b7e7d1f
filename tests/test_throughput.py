"""How fast a training runs, by FLOPs that are counted now and then."""

import json

import pytest
import torch
from torch import nn

from hilotoken.train import throughput
from hilotoken.train.loop import train_loop

CPU = torch.device("cpu")
OPTIONS = {"rate": 0.1, "cooldown": 0.5, "decay": 0.9, "checkpoint_seconds": 0.0}
PICTURES, SIDE = 4, 8


def trained(run, stage: str, samples: int) -> list[int]:
    """Trains one matrix of SIDE by SIDE; returns what was drawn."""
    layer, drawn = nn.Linear(SIDE, SIDE, bias=False), []

    def gradients(done: int) -> tuple[int, dict[str, float]]:
        drawn.append(done)
        layer(torch.ones(PICTURES, SIDE)).sum().backward()
        return PICTURES, {}

    optimizer = torch.optim.SGD(layer.parameters())
    train_loop(layer, [optimizer], gradients, run, stage, samples=samples, **OPTIONS)
    return drawn


def test_every_stage_leaves_its_throughput(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "matrix_rate", lambda device: 1e6)
    assert trained(tmp_path, "one", 200) == list(range(0, 200, PICTURES))
    trained(tmp_path, "two", 3)
    found = json.loads((tmp_path / "pace.json").read_text())
    assert set(found) == {"one", "two"}
    for figures in found.values():
        assert figures["flops_per_picture"] == 2 * 2 * SIDE**2  # forwards, and for the weights
        expected = figures["pictures_per_second"] * figures["flops_per_picture"] / 1e6
        assert figures["share_of_matrix_rate"] == pytest.approx(expected)
    trained(tmp_path, "two", 3)  # which is done, and leaves what was kept
    assert json.loads((tmp_path / "pace.json").read_text()) == found


def test_most_batches_are_not_slowed_down(monkeypatch):
    counted, tracker = [], throughput.Throughput(CPU, 2)
    monkeypatch.setattr(throughput, "COUNTED", 64)
    mode = throughput.FlopCounterMode
    monkeypatch.setattr(
        throughput, "FlopCounterMode", lambda **given: counted.append(1) or mode(**given)
    )
    all_done = range(0, 2 * throughput.OF, 16)
    assert [tracker.count(lambda done: (1, done), done) for done in all_done] == [
        (1, done) for done in all_done
    ]
    assert len(counted) == 2 * throughput.COUNTED // 16


def test_the_matrix_rate_is_one():
    assert 1e8 < throughput.matrix_rate(CPU) < 1e14
