"""A worker: a model in a process of its own, which takes from a pipe what it is to run at once.

A crash of the model, or a photo that crashes its decoder, takes the worker and not the service;
a task that will not stop between steps is ended by ending the process.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, Protocol

from .engine import describe, run_tasks
from .task import Cancelled, Event, Failed, Task

TICK = 0.1  # seconds between looks at whether the task is still wanted
GRACE = 20.0  # seconds that a cancelled task has to come to the end of its step
CANCEL, END = "cancel", "end"


Told = tuple[int, Event]  # of which task, by its place


class WorkerDied(RuntimeError):
    """The process ended, or was ended, before the tasks did."""


class Worker(Protocol):
    """What runs tasks."""

    info: dict[str, Any] | None

    def start(self) -> None:
        """Load the model; return when it is ready. Raises WorkerDied."""
        ...

    def events(self, tasks: Sequence[Task]) -> Iterator[Told | None]:
        """Run tasks of one kind at once: their events, and None every `TICK`.

        Closing the iterator cancels all of them.
        """
        ...

    def stop(self) -> None: ...


def work(connection: Connection, load: Callable[[], Any], inside_process: bool = True) -> None:
    """Serve tasks from a connection until its other end is closed."""
    if inside_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    try:
        try:
            pipe = load()
        except Exception as error:  # whatever a folder of weights can hold
            connection.send(Failed(f"the model cannot be loaded: {' '.join(str(error).split())}"))
            return
        pipe.set_progress_bar_config(disable=True)
        connection.send(describe(pipe))
        while True:
            tasks = connection.recv()
            if tasks != CANCEL:  # which came after the tasks had ended
                _run(connection, pipe, tasks)
                connection.send(END)
    except (EOFError, OSError):
        return  # nobody is there any more


def _run(connection: Connection, pipe: Any, tasks: Sequence[Task]) -> None:
    def report(place: int, event: Event) -> None:
        if connection.poll():
            connection.recv()  # nothing but CANCEL is sent during tasks
            raise Cancelled
        connection.send((place, event))

    with suppress(Cancelled):
        run_tasks(pipe, tasks, report)


class _Piped:
    """The parent's end: starts `work` somewhere, sends tasks and receives events."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load
        self.info: dict[str, Any] | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        here, there = multiprocessing.Pipe()
        self._begin(there)
        try:
            said = here.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied("the worker ended while it loaded the model") from error
        if isinstance(said, Failed):
            raise WorkerDied(said.message)
        self.info, self._connection = said, here

    def events(self, tasks: Sequence[Task]) -> Iterator[Told | None]:
        if self._connection is None:
            self.start()
        connection, ended = self._connection, False
        assert connection is not None
        try:
            connection.send(tasks)
            while True:
                if not connection.poll(TICK):
                    yield None
                    continue
                told = connection.recv()
                if told == END:
                    ended = True
                    return
                yield told
        except (EOFError, OSError) as error:
            ended = True
            self.stop()
            raise WorkerDied("the worker ended in the middle of an edit") from error
        finally:
            if not ended:
                self._cancel(connection)

    def _cancel(self, connection: Connection) -> None:
        """Stop the tasks between two of their steps, or with the worker."""
        try:
            connection.send(CANCEL)
            until = time.monotonic() + GRACE
            while connection.poll(max(0.0, until - time.monotonic())):
                if connection.recv() == END:
                    return
        except (EOFError, OSError):
            pass
        self.stop()

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self.info = None
        self._end()

    def _begin(self, there: Connection) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


@cache
def _context() -> Any:
    """Processes forked from one that has imported all and done nothing: they start at once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hilotoken.model", "hilotoken.serve.engine"])
    return context


class ProcessWorker(_Piped):
    """A worker in a process of its own; `load` has to be picklable."""

    process: Any = None

    def _begin(self, there: Connection) -> None:
        self._end()
        self.process = _context().Process(target=work, args=(there, self.load), daemon=True)
        self.process.start()
        there.close()  # so that the child's end is the only one, and closes with it

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


class ThreadWorker(_Piped):
    """A worker in a thread: starts at once where a process has to import all anew."""

    def _begin(self, there: Connection) -> None:
        threading.Thread(target=self._work, args=(there,), daemon=True).start()

    def _work(self, there: Connection) -> None:
        with there:
            work(there, self.load, inside_process=False)

    def _end(self) -> None:
        """It ends when its connection does."""
