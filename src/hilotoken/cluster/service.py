"""The service's workers as replicas of a Ray Serve deployment: more than one GPU or machine.

Requests, limits and answers are those of the service on one machine; Ray starts the replicas, moves
them, adds some under load and starts those anew that died.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import serve

from ..serve.engine import describe, run_tasks
from ..serve.loading import load_quietly
from ..serve.task import Cancelled, Event, Task
from ..serve.worker import TICK, Told, WorkerDied

NAME = "hilotoken"
PATIENCE = 600.0  # seconds for a replica to load its model


class Replica:
    """A model, and what is run at once."""

    def __init__(self, model: str, device: str, threads: int) -> None:
        self.pipe = load_quietly(model, device, threads)
        self.pipe.set_progress_bar_config(disable=True)
        self.lock = threading.Lock()  # what was cancelled still has to come to the end of its step

    def describe(self) -> dict[str, Any]:
        return describe(self.pipe)

    async def edit(self, tasks: Sequence[Task]) -> AsyncIterator[Told]:
        """The events of tasks. Cancelling the request stops them between two steps."""
        loop, gone = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[Told | None] = asyncio.Queue()

        def tell(told: Told | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, told)

        def report(place: int, event: Event) -> None:
            if gone.is_set():
                raise Cancelled
            tell((place, event))

        threading.Thread(target=self._run, args=(tasks, report, tell), daemon=True).start()
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            gone.set()

    def _run(self, tasks: Sequence[Task], report: Any, tell: Any) -> None:
        try:
            with self.lock, suppress(Cancelled):
                run_tasks(self.pipe, tasks, report)
        finally:
            tell(None)


def deploy(model: str, device: str, replicas: tuple[int, int], threads: int) -> list["RayWorker"]:
    """Deploy the model on the connected cluster; one worker for each replica there may be.

    replicas: the fewest and the most; between them, Ray follows the load
    """
    few, many = replicas
    options: dict[str, Any] = {
        "name": NAME,
        "max_ongoing_requests": 1,
        "ray_actor_options": {"num_gpus": 1} if device.startswith("cuda") else {},
    }
    if few == many:
        options["num_replicas"] = few
    else:
        load = {"min_replicas": few, "max_replicas": many, "target_ongoing_requests": 1}
        options["autoscaling_config"] = load
    deployment: Any = serve.deployment(**options)(Replica)
    # The service speaks HTTP itself: Ray's own proxy would be a second door.
    serve.start(proxy_location="Disabled")
    handle = serve.run(deployment.bind(model, device, threads), name=NAME, route_prefix=None)
    return [RayWorker(handle) for _ in range(many)]


class RayWorker:
    """A place in the cluster: on whichever replica is free."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.info: dict[str, Any] | None = None

    def start(self) -> None:
        try:
            self.info = self.handle.describe.remote().result(timeout_s=PATIENCE)
        except Exception as error:  # of any of Ray's layers
            raise WorkerDied(f"no replica answers: {type(error).__name__}") from error

    def events(self, tasks: Sequence[Task]) -> Iterator[Told | None]:
        response = self.handle.options(stream=True).edit.remote(tasks)
        heard: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=_listen, args=(response, heard), daemon=True).start()
        ended = False
        try:
            while True:
                try:
                    event = heard.get(timeout=TICK)
                except queue.Empty:
                    yield None
                    continue
                if event is None or isinstance(event, Exception):
                    ended = True
                if event is None:
                    return
                if isinstance(event, Exception):
                    raise WorkerDied(f"a replica ended: {type(event).__name__}") from event
                yield event
        finally:
            if not ended:
                response.cancel()

    def stop(self) -> None:
        self.info = None


def _listen(response: Any, heard: "queue.Queue[Any]") -> None:
    try:
        for event in response:
            heard.put(event)
        heard.put(None)
    except Exception as error:  # of any of Ray's layers: the replica is gone
        heard.put(error)


def undeploy() -> None:
    """Take the model off the cluster."""
    if ray.is_initialized():
        serve.delete(NAME)
