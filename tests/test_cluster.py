"""Batches and the service on a Ray cluster of this machine: as alone, and when a worker dies."""

import numpy as np
import psutil
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("ray", reason="needs the extra `ray`")

from pathlib import Path

from serving import BOX, as_file, hole, inside, photo, until
from tiny import make_mask, make_photo
from toys import saved_model

from hilotoken.batch import BatchOptions, Record, Row, edit_photos, read_rows
from hilotoken.cluster import connected
from hilotoken.cluster.batch import run_on_ray
from hilotoken.model import load_model
from hilotoken.photo import load_photo
from hilotoken.serve.task import Picture, Progress, Task

OPTIONS = BatchOptions(steps=3, size=128)


@pytest.fixture(scope="module")
def cluster():
    """Two workers, and a processor for the driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves them
        with connected("local", 2):
            yield


@pytest.fixture
def rows(tmp_path):
    for name in ("photos", "alone", "together"):
        (tmp_path / name).mkdir()
    for i in range(8):
        make_photo(150, 170, seed=i).save(tmp_path / f"photos/{i}.png")
    mask = tmp_path / "mask.png"
    make_mask(150, 170, BOX).save(mask)
    common = Row(Path(), Path(), Path(), seed=4)

    def to(place: str) -> list[Row]:
        return read_rows(tmp_path / "photos", mask, tmp_path / place, common, ".png")

    return to


def test_a_batch_on_ray_is_that_of_one_machine_though_a_worker_dies(cluster, rows, tmp_path):
    alone = rows("alone")
    assert all(result.edit for result in edit_photos(alone, load_model(saved_model()), OPTIONS))
    together = rows("together")
    broken = Row(tmp_path / "none.png", alone[0].mask, tmp_path / "together/none.png")
    record = Record(tmp_path / "together/batch.jsonl", OPTIONS, str(saved_model()))
    failed, killed = [], False
    for row, error in run_on_ray([*together, broken], OPTIONS, record, "local", 2, "cpu"):
        if error:
            failed.append(row)
        if not killed:
            killed = kill_one("ray::MapWorker")
    assert killed
    assert failed == [broken]
    for one, other in zip(alone, together, strict=True):
        assert (load_photo(one.output).pixels == load_photo(other.output).pixels).all()
    again = Record(tmp_path / "together/batch.jsonl", OPTIONS, str(saved_model()))
    assert {again.state(row) for row in together} == {"done"}


def test_the_example_of_a_folder(cluster, rows, tmp_path, capsys):
    from test_examples import main

    given = [tmp_path / "photos", tmp_path / "mask.png", tmp_path / "example"]
    for path in sorted(given[0].iterdir())[1:]:
        path.unlink()
    small = {"model": str(saved_model()), "steps": 2, "size": 128, "workers": 1}
    run = main("folder_on_ray")
    run(*given, **small)
    assert capsys.readouterr().out.count("done") == 1
    assert len(list(given[2].glob("*.png"))) == 1
    run(*given, **small)  # goes on, with nothing to do
    assert capsys.readouterr().out == ""


def kill_one(name: str) -> bool:
    """Kill one of this cluster's processes that has that in its title."""
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and name in " ".join(process.cmdline()):
            process.kill()
            return True
    return False


def test_the_service_on_ray_outlives_a_replica(cluster):
    from test_serve_clients import follow

    from hilotoken.cluster.service import deploy, undeploy
    from hilotoken.serve.jobs import JobQueue

    jobs = JobQueue(deploy(str(saved_model()), "cpu", (2, 2), 1))
    jobs.start()
    try:
        until(lambda: jobs.ready, 120)
        task = Task(as_file(photo()), as_file(hole()), steps=2, size=128, output="patch")
        [first] = [event for event in follow(jobs, task) if isinstance(event, Picture)]
        assert first.box == (60, 50, 50, 40)
        assert np.prod(first.box[2:]) == inside().sum()
        assert kill_one("ray::ServeReplica")
        for _ in range(3):
            events = follow(jobs, task)
            assert [e.data for e in events if isinstance(e, Picture)] == [first.data]
        cancelled = jobs.submit(Task(as_file(photo()), as_file(hole()), steps=90, size=128))
        until(lambda: any(isinstance(event, Progress) for event in cancelled.events))
        jobs.leave(cancelled)
        until(lambda: cancelled.ended)
        assert len(cancelled.events) < 90
        assert any(isinstance(event, Picture) for event in follow(jobs, task))
    finally:
        undeploy()
        jobs.close()
