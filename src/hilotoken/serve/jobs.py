"""The bounded queue before the workers: jobs that are followed, cancelled, retried, never lost."""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from .task import Event, Failed, Picture, Preview, Task
from .worker import Worker, WorkerDied

ATTEMPTS = 2  # an edit is the same each time: what a worker's death broke off is begun anew once
RESTART = 1.0, 60.0  # seconds before a worker that would not start is tried again: first, at most
log = logging.getLogger("hilotoken.serve")


class QueueFull(Exception):
    """No room for another job; `retry_after` seconds say when to ask again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: ask again in {retry_after} s")
        self.retry_after = retry_after


class KeyReused(ValueError):
    """A job id that was given to a different request before."""


class TimeLimit(Exception):
    """The job took longer than it may."""


class Ended(Exception):
    """The worker died more often than a job is tried: the request may be sent again."""


class Job:
    """A task on its way. Events are kept, so that each follower hears all of them."""

    def __init__(self, task: Task, key: str | None = None, digest: bytes = b"") -> None:
        self.id = f"edit_{secrets.token_hex(12)}"
        self.task: Task | None = task
        self.key, self.digest = key, digest
        self.created = time.monotonic()
        self.attempts = 0
        self.events: list[Event] = []
        self.state = "queued"  # running, done, failed, cancelled, died
        self.seconds = 0.0
        self.followers = 0
        self.cancelled = threading.Event()
        self._bells: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    @property
    def size(self) -> int:
        """Bytes of what a finished one holds, about."""
        return 4096 + sum(len(e.data) for e in self.events if isinstance(e, Picture | Preview))

    def post(self, event: Event) -> None:
        self.events.append(event)
        self.ring()

    def end(self, state: str) -> None:
        self.state = state
        self.ring()

    def ring(self) -> None:
        with self._lock:
            for loop, bell in self._bells:
                with contextlib.suppress(RuntimeError):  # a loop that is closed hears nothing
                    loop.call_soon_threadsafe(bell.set)

    async def follow(self, limit: float, pulse: float = 15.0) -> AsyncIterator[Event | None]:
        """All events, from the first on; None after every `pulse` seconds of silence.

        Raises TimeLimit when the job is older than `limit` seconds, Ended when its worker died.
        """
        bell = asyncio.Event()
        entry = (asyncio.get_running_loop(), bell)
        with self._lock:
            self._bells.append(entry)
        told = 0
        try:
            while True:
                bell.clear()
                over = self.ended  # read before the events: none come after
                while told < len(self.events):
                    yield self.events[told]
                    told += 1
                if over:
                    break
                left = self.created + limit - time.monotonic()
                if left <= 0:
                    raise TimeLimit(f"the edit took longer than {limit:g} s")
                try:
                    await asyncio.wait_for(bell.wait(), min(left, pulse))
                except TimeoutError:
                    yield None
            if self.state in ("died", "cancelled"):
                raise Ended("the edit was broken off: send it again")
        finally:
            with self._lock:
                self._bells.remove(entry)


class JobQueue:
    """Jobs for a few workers, each looked after by a thread.

    Args:
        depth: jobs that may wait
        limit: seconds that a job may take, waiting included
        kept: bytes of finished jobs that are kept for the same request sent again
        watch: is told of every job that ended
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        depth: int = 32,
        limit: float = 600.0,
        kept: int = 256 << 20,
        watch: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.workers, self.depth, self.limit, self.watch = workers, depth, limit, watch
        self.kept = kept
        self.running = 0
        self.restarts = 0
        self.info: dict[str, Any] | None = None  # of the model, once one is loaded
        self.problem: str | None = None  # why a worker does not start
        self._waiting: deque[Job] = deque()
        self._named: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds: deque[float] = deque([5.0], maxlen=16)  # of the last jobs
        self._threads: list[threading.Thread] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and there is room for a job."""
        return any(worker.info for worker in self.workers) and self.waiting < self.depth

    def start(self) -> None:
        """Load the models; jobs may be submitted meanwhile."""
        for number, worker in enumerate(self.workers):
            thread = threading.Thread(
                target=self._tend, args=(worker,), name=f"worker-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Cancel what runs, forget what waits, end the workers."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.end("died")
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)
        for worker in self.workers:
            worker.stop()

    def ahead(self, job: Job) -> int:
        """Jobs that run before this one does."""
        with self._changed:
            return self._waiting.index(job) + self.running if job in self._waiting else 0

    def retry_after(self) -> int:
        """Seconds until there is likely to be room."""
        mean = sum(self._seconds) / len(self._seconds)
        return max(1, min(60, round(mean / max(1, len(self.workers)))))

    def check_room(self) -> None:
        """Raise QueueFull, before a body is read, if a job would find no room."""
        if self.waiting >= self.depth:
            raise QueueFull(self.retry_after())

    def submit(self, task: Task, key: str | None = None) -> Job:
        """Queue a task and follow it; the same key and task again is the same job.

        Raises QueueFull, or KeyReused for a key that another task has.
        """
        digest = _digest(task) if key else b""
        with self._changed:
            known = self._named.get(key) if key else None
            if known and known.digest != digest:
                raise KeyReused("this job id was given to a different request: use a new one")
            if known and not known.cancelled.is_set():
                known.followers += 1
                return known
            self.check_room()
            job = Job(task, key, digest)
            job.followers = 1
            if key:
                self._named[key] = job
            self._waiting.append(job)
            self._changed.notify()
        return job

    def leave(self, job: Job) -> None:
        """One follower less; a job that nobody follows is cancelled."""
        with self._changed:
            job.followers -= 1
            if job.followers or job.ended:
                return
            job.cancelled.set()
            if job in self._waiting:
                self._waiting.remove(job)
                self._finish(job, "cancelled")

    def _tend(self, worker: Worker) -> None:
        """Give a worker one job after another, and start it anew when it dies."""
        pause, most = RESTART
        while not self._closed:
            try:
                worker.start()
            except WorkerDied as error:
                log.error("%s", error)
                self.problem = str(error)
                time.sleep(pause)
                pause = min(2 * pause, most)
                continue
            (pause, _), self.info, self.problem = RESTART, worker.info, None
            while jobs := self._next():
                if not self._run(worker, jobs):
                    self.restarts += 1
                    break

    def _next(self) -> list[Job]:
        """What waits longest, and those behind it that may run with it; none once it is closed."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return []
            jobs = [self._waiting.popleft()]
            while self._waiting and _may_join(self._waiting[0], jobs):
                jobs.append(self._waiting.popleft())
            for job in jobs:
                job.state = "running"
            self.running += len(jobs)
            return jobs

    def _run(self, worker: Worker, jobs: list[Job]) -> bool:
        """Run jobs to their ends; False if the worker died of them, or with them."""
        started, alive = time.monotonic(), True
        for job in jobs:
            job.attempts += 1
        try:
            states = self._pass_on(worker, jobs)
        except WorkerDied as error:
            log.warning("%s: %s", ", ".join(job.id for job in jobs), error)
            states, alive = ["died"] * len(jobs), False
        with self._changed:
            for job, state in zip(reversed(jobs), reversed(states), strict=True):
                if not job.ended:
                    self._end(job, state, time.monotonic() - started)
        return alive

    def _end(self, job: Job, state: str, seconds: float) -> None:
        """A job is over, or begun anew as the first of those that wait."""
        self.running -= 1
        job.seconds = seconds
        if state == "died" and job.attempts < ATTEMPTS and not self._closed:
            if not job.cancelled.is_set():
                job.state = "queued"
                self._waiting.appendleft(job)
                self._changed.notify()
                return
            state = "cancelled"
        if state == "done":
            self._seconds.append(seconds)
        self._finish(job, state)

    def _pass_on(self, worker: Worker, jobs: list[Job]) -> list[str]:
        """Hand events to the jobs they are of; how each job ended."""
        tasks = [job.task for job in jobs if job.task is not None]
        known = [{_name(event) for event in job.events} for job in jobs]  # before a worker died
        states, started = ["done"] * len(jobs), time.monotonic()
        events = worker.events(tasks)
        try:
            for told in events:
                if self._closed:
                    return ["died"] * len(jobs)
                for job in jobs:
                    if job.cancelled.is_set() and not job.ended:
                        with self._changed:
                            self._end(job, "cancelled", time.monotonic() - started)
                if all(job.ended for job in jobs):
                    return states
                if told is None:
                    continue
                place, event = told
                if jobs[place].ended or _name(event) in known[place]:
                    continue
                if isinstance(event, Failed):
                    states[place] = "failed"
                jobs[place].post(event)
        finally:
            events.close()  # pyright: ignore[reportAttributeAccessIssue]
        return states

    def _finish(self, job: Job, state: str) -> None:
        job.task = None  # a photo is large, and no longer needed
        job.end(state)
        if job.key and state in ("cancelled", "died") and self._named.get(job.key) is job:
            del self._named[job.key]
        finished = [j for j in self._named.values() if j.ended]
        held = sum(job.size for job in finished)
        for old in finished:
            if held <= self.kept:
                break
            held -= old.size
            del self._named[str(old.key)]
        self.watch(job)


def _may_join(job: Job, others: Sequence[Job]) -> bool:
    """Whether a job may run at once with those; what broke a worker off runs by itself."""
    tasks = [one.task for one in (*others, job) if one.task is not None]
    alike = all(task.kind == tasks[0].kind for task in tasks)
    few = sum(task.count for task in tasks) <= tasks[0].together
    return alike and few and not any(one.attempts for one in (*others, job))


def _name(event: Event) -> tuple[Any, ...]:
    """What makes a picture or a preview the same one when an edit is begun anew."""
    if isinstance(event, Picture | Preview):
        return type(event), event.image, getattr(event, "index", 0)
    return (event,)


def _digest(task: Task) -> bytes:
    found = hashlib.sha256()
    for value in vars(task).values():
        data = value if isinstance(value, bytes) else repr(value).encode()
        found.update(len(data).to_bytes(8) + data)
    return found.digest()
