"""A service on a port of its own with a small model, and pictures to send to it."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from tiny import make_photo
from toys import saved_model

from hilotoken.model import load_model
from hilotoken.serve.worker import ThreadWorker

SIZE = 150, 170  # height, width
BOX = (60, 50, 110, 90)  # left, top, right, bottom
QUICK = {"steps": 2, "working_size": 128}  # of an edit by the small model: a second


def small_model() -> Any:
    return load_model(saved_model())


def thread_workers(count: int = 1) -> list[ThreadWorker]:
    return [ThreadWorker(small_model) for _ in range(count)]


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of the application, once it is ready for edits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        app, port=port, log_level="warning", timeout_graceful_shutdown=1, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started and app.state.jobs.ready)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def as_file(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def photo(seed: int = 0) -> Image.Image:
    return make_photo(*SIZE, seed=seed)


def hole(box: tuple[int, int, int, int] = BOX, size: tuple[int, int] = SIZE) -> Image.Image:
    """A mask in the manner of the images API: transparent in the box."""
    pixels = np.full((*size, 4), 255, np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right, 3] = 0
    return Image.fromarray(pixels)


def inside(box: tuple[int, int, int, int] = BOX) -> np.ndarray:
    return np.asarray(hole(box))[..., 3] == 0
