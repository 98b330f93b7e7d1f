"""The public `openai` client against the service, hostile requests, and workers that die."""

import base64
import functools
import io
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from serving import QUICK, as_file, hole, inside, photo, served, thread_workers, until
from toys import saved_model

from hilotoken.model.pipeline import EmbeddedFillPipeline
from hilotoken.serve.jobs import Ended, JobQueue
from hilotoken.serve.loading import load_quietly
from hilotoken.serve.routes import Limits
from hilotoken.serve.service import ServiceOptions, create_app
from hilotoken.serve.task import Picture, Progress, Task
from hilotoken.serve.worker import ProcessWorker, ThreadWorker, WorkerDied

MASK = as_file(hole())


@pytest.fixture(scope="module")
def address():
    options = ServiceOptions(names=("embedded", "gpt-image-1"), keys=("sesame",))
    with served(create_app(thread_workers(), options)) as address:
        yield address


@pytest.fixture
def client(address):
    openai = pytest.importorskip("openai", reason="needs the client library")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sesame") as client:
        yield client


def arguments(seed: int = 0, **more):
    pictures = {"image": ("a.png", as_file(photo(seed))), "mask": ("b.png", MASK)}
    return pictures | {"model": "gpt-image-1", "prompt": "", "extra_body": QUICK} | more


def changed(text: str, seed: int = 0) -> np.ndarray:
    after = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    return (after != np.asarray(photo(seed))).any(-1)


def test_the_public_client_edits_exactly(client):
    assert [model.id for model in client.models.list()] == ["embedded", "gpt-image-1"]
    answer = client.images.edit(**arguments(n=2, quality="low", size="auto"))
    assert len(answer.data) == 2
    for entry in answer.data:
        assert changed(entry.b64_json)[inside()].any()
        assert not changed(entry.b64_json)[~inside()].any()
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_the_public_client_streams(client):
    events = list(client.images.edit(**arguments(stream=True, partial_images=1)))
    assert [event.type for event in events] == [
        "image_edit.partial_image", "image_edit.completed",
    ]  # fmt: skip
    for event in events:
        assert not changed(event.b64_json)[~inside()].any()


def test_the_public_client_reads_the_errors(client):
    import openai

    with pytest.raises(openai.BadRequestError) as error:
        client.images.edit(**arguments(size="1x1"))
    assert error.value.param == "size"
    assert error.value.request_id.startswith("req_")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.APIError, match="unicorn"):  # while it streams
        list(client.images.edit(**arguments(stream=True, extra_body=QUICK | {"label": "unicorn"})))
    with pytest.raises(openai.NotFoundError):
        client.images.edit(**arguments(model="other"))


@pytest.mark.filterwarnings("ignore")
def test_generated_requests_find_no_fault():
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    app = create_app(thread_workers(), ServiceOptions(hosts=(), limits=Limits(50_000, 10_000)))
    with served(app) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")

        for operation in schema.get_all_operations():
            _each(operation.ok().as_strategy(), address)


def _each(cases, address) -> None:
    from hypothesis import HealthCheck, given, settings

    @given(cases)
    @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def check(case):
        answer = case.call(base_url=address)
        assert answer.status_code < 500 or case.path == "/readyz", answer.text

    check()


LOAD = functools.partial(load_quietly, str(saved_model()), "cpu", 1)


def task(seed: int = 0, **more) -> Task:
    sent = as_file(photo(seed))
    return Task(sent, MASK, **({"steps": 2, "size": 128, "seed": seed} | more))


def follow(jobs: JobQueue, wanted: Task) -> list:
    """All events of a job, waited for as the service does."""
    import asyncio

    async def listen():
        job = jobs.submit(wanted)
        try:
            return [event async for event in job.follow(60) if event]
        finally:
            jobs.leave(job)

    return asyncio.run(listen())


@pytest.fixture(scope="module")
def pair():
    """A queue before a worker in a process."""
    worker = ProcessWorker(LOAD)
    jobs = JobQueue([worker])
    jobs.start()
    until(lambda: jobs.ready, 120)
    yield worker, jobs
    jobs.close()


def test_an_edit_outlives_its_worker(pair):
    worker, jobs = pair
    [picture] = [e for e in follow(jobs, task()) if isinstance(e, Picture)]
    killer = threading.Timer(0.3, lambda: os.kill(worker.process.pid, signal.SIGKILL))
    killer.start()
    events = follow(jobs, task(steps=40))
    killer.join()
    assert jobs.restarts == 1
    assert sum(isinstance(event, Picture) for event in events) == 1
    [again] = [e for e in follow(jobs, task()) if isinstance(e, Picture)]
    assert again.data == picture.data


def test_a_model_that_cannot_be_loaded_says_so():
    jobs = JobQueue([ThreadWorker(functools.partial(load_quietly, "/nowhere", "cpu", 1))])
    jobs.start()
    until(lambda: jobs.problem is not None)
    assert "/nowhere" in str(jobs.problem)
    assert not jobs.ready
    jobs.close()


def test_a_job_id_is_free_again_once_its_edit_was_broken_off():
    jobs = JobQueue(thread_workers())
    jobs.start()
    try:
        slow = jobs.submit(task(steps=90), "key")
        until(lambda: any(isinstance(event, Progress) for event in slow.events))
        jobs.leave(slow)
        again = jobs.submit(task(steps=90), "key")
        assert again is not slow
        until(lambda: slow.state == "cancelled")
        assert jobs.submit(task(steps=90), "key") is again
        jobs.leave(again)
        jobs.leave(again)
        until(lambda: again.state == "cancelled")
    finally:
        jobs.close()


def test_a_task_that_kills_every_worker_is_given_up():
    calls = []

    class Mortal(ThreadWorker):
        def events(self, tasks):
            if tasks[0].seed:
                calls.append(1)
                yield 0, Progress(1, 2)
                raise WorkerDied("gone")
            yield from super().events(tasks)

    jobs = JobQueue([Mortal(LOAD)])
    jobs.start()
    try:
        with pytest.raises(Ended):
            follow(jobs, task(seed=1))
        assert len(calls) == 2
        assert any(isinstance(event, Picture) for event in follow(jobs, task()))
    finally:
        jobs.close()


class Noting(ThreadWorker):
    """A worker that notes what it ran at once, and may be told to wait, or to die, before it."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.runs, self.deaths = [], 0
        self.may_begin = threading.Event()

    def events(self, tasks):
        self.may_begin.wait(60)
        self.runs.append([one.seed for one in tasks])
        if len(tasks) > 1 and self.deaths:
            self.deaths -= 1
            raise WorkerDied("gone")
        yield from super().events(tasks)


@pytest.fixture
def noting():
    worker = Noting(LOAD)
    jobs = JobQueue([worker])
    jobs.start()
    until(lambda: jobs.ready)
    yield worker, jobs
    worker.may_begin.set()
    jobs.close()


def ended(jobs: JobQueue, worker: Noting, tasks: list, meanwhile=lambda queued: None) -> list:
    """The jobs of tasks that had to wait for a worker at another, once all have ended."""
    first = jobs.submit(task(steps=3))
    until(lambda: first.state == "running")
    queued = [jobs.submit(one) for one in tasks]
    worker.may_begin.set()
    meanwhile(queued)
    until(lambda: all(job.ended for job in (first, *queued)))
    assert jobs.running == jobs.waiting == 0
    return queued


def pictures(job) -> list[Picture]:
    return [event for event in job.events if isinstance(event, Picture)]


def test_requests_that_wait_and_ask_for_the_same_run_at_once(noting):
    """Of other photos; one cannot be read; one has other steps; and no answer is another's."""
    worker, jobs = noting
    tasks = [task(seed=seed, together=3) for seed in range(1, 7)]
    tasks[1] = replace(tasks[1], photo=b"no picture")
    tasks[4] = replace(tasks[4], steps=3)
    queued = ended(jobs, worker, tasks)
    assert worker.runs == [[0], [1, 2, 3], [4], [5], [6]]
    assert [job.state for job in queued] == ["done", "failed", *["done"] * 4]
    for job, wanted in zip(queued, tasks, strict=True):
        if job.state == "done":
            [alone] = [e for e in follow(jobs, wanted) if isinstance(e, Picture)]
            [made] = pictures(job)
            both = [np.asarray(Image.open(io.BytesIO(e.data))).astype(int) for e in (made, alone)]
            assert np.abs(both[0] - both[1]).max() <= 1
            assert made.seed == wanted.seed


def test_one_of_those_that_run_at_once_is_cancelled_and_the_others_are_not(noting):
    worker, jobs = noting
    tasks = [task(seed=seed, steps=30, together=3) for seed in range(1, 4)]

    def leave(queued):
        until(lambda: any(isinstance(event, Progress) for event in queued[1].events))
        jobs.leave(queued[1])
        until(lambda: queued[1].ended)
        assert not queued[0].ended

    queued = ended(jobs, worker, tasks, leave)
    assert worker.runs == [[0], [1, 2, 3]]
    assert [job.state for job in queued] == ["done", "cancelled", "done"]
    assert [len(pictures(job)) for job in queued] == [1, 0, 1]


def test_what_ran_at_once_as_a_worker_died_is_begun_anew_one_by_one(noting):
    worker, jobs = noting
    worker.deaths = 1
    queued = ended(jobs, worker, [task(seed=s, together=3) for s in (1, 2, 3)])
    assert worker.runs == [[0], [1, 2, 3], [1], [2], [3]]
    assert [job.state for job in queued] == ["done"] * 3
    assert jobs.restarts == 1


def test_edits_that_fail_at_once_are_made_one_by_one(noting, monkeypatch):
    worker, jobs = noting
    original = EmbeddedFillPipeline.__call__

    @functools.wraps(original)
    def no_room(self, *args, **kwargs):
        if isinstance(kwargs["image"], list):
            raise MemoryError("of two")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(EmbeddedFillPipeline, "__call__", no_room)
    queued = ended(jobs, worker, [task(seed=s, together=2) for s in (1, 2)])
    assert worker.runs == [[0], [1, 2]]
    assert [len(pictures(job)) for job in queued] == [1, 1]
