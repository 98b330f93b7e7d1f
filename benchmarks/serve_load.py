"""The service under load: many clients, workers killed at random, hostile and impatient requests.

A tiny model of random weights answers, so that what is tested is the service: that no accepted
request is lost, that no answer is another request's (each photo is noise of its own, and everything
outside its mask has to come back bit for bit), and that memory stays flat.

    python benchmarks/serve_load.py --requests 10000 --clients 16 --kills 20
"""

import argparse
import base64
import http.client
import io
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

SIDE = 128  # pixels: the smallest that the model works on


def save_tiny_model(folder: Path) -> None:
    """A pipeline like the embedded one with next to no weights."""
    import torch
    from diffusers import AutoencoderTiny, FluxTransformer2DModel

    from hilotoken.model import LABELS, REGISTERS
    from hilotoken.train.run import export

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=2 * 4 * 8 + 4 * 64, out_channels=4 * 8, num_layers=1, num_single_layers=1,
        attention_head_dim=32, num_attention_heads=1, joint_attention_dim=REGISTERS,
        pooled_projection_dim=LABELS, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        latent_channels=8,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    export(autoencoder, transformer, 1.0, folder)


def serve(folder: str, port: int, workers: int, kept: int, together: int) -> None:
    """The service itself, in a process of its own."""
    import logging

    import uvicorn

    from hilotoken.serve.routes import Limits
    from hilotoken.serve.service import ServiceOptions, create_app, process_workers

    logging.disable(logging.WARNING)
    options = ServiceOptions(depth=12, kept=kept, limits=Limits(together=together))
    app = create_app(process_workers(folder, "cpu", workers), options)
    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Load:
    """Clients, a killer, and what they saw."""

    def __init__(self, port: int, options: argparse.Namespace) -> None:
        self.port, self.options = port, options
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []
        self.seconds: list[float] = []
        self.memory: list[int] = []
        self.lock = threading.Lock()
        self.numbers = iter(range(options.requests))
        self.ended = 0

    def note(self, what: str, count: int = 1) -> None:
        with self.lock:
            self.seen[what] += count

    def client(self) -> None:
        while True:
            with self.lock:
                number = next(self.numbers, None)
            if number is None:
                return
            draw = random.Random(number)
            kind = draw.choices(("edit", "malformed", "cancelled"), (90, 5, 5))[0]
            try:
                getattr(self, kind)(number, draw)
            except Exception as error:  # a client must go on, and tell
                self.faults.append(f"request {number}, {kind}: {type(error).__name__}: {error}")
            with self.lock:
                self.ended += 1

    def edit(self, number: int, draw: random.Random) -> None:
        """Sent again while the service says so; the answer has to be this photo's."""
        photo, mask = pictures(number)
        body, kind = multipart(as_png(photo), as_png(mask), {"seed": number, "steps": 2})
        started = time.monotonic()
        for _ in range(200):
            status, headers, answer = self.post(body, kind, f"load-{number}")
            if status == 200:
                break
            self.note(f"asked to come again ({status})")
            if headers.get("x-should-retry") != "true":
                raise RuntimeError(f"{status} without retry: {answer[:200]!r}")
            time.sleep(float(headers.get("retry-after", 1)) * draw.uniform(0.2, 1))
        else:
            raise RuntimeError("never answered")
        self.seconds.append(time.monotonic() - started)
        picture = json.loads(answer)["data"][0]["b64_json"]
        after = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        kept = mask[..., 3] > 0
        if after.shape != photo.shape or (after[kept] != photo[kept]).any():
            raise RuntimeError("the outside is not this photo's")
        if (after[~kept] == photo[~kept]).all():
            raise RuntimeError("nothing was edited")
        self.note("edited, its outside bit for bit")

    def malformed(self, number: int, draw: random.Random) -> None:
        photo, mask = (as_png(picture) for picture in pictures(number))
        cut = photo[: len(photo) // 2]
        body, kind = draw.choice([
            multipart(cut, mask, {}),
            multipart(b"", mask, {}),
            multipart(photo, photo, {}),
            multipart(photo, mask, {"n": "many"}),
            multipart(photo, mask, {"colour": "red"}),
            multipart(photo, mask, {"prompt": "a dog"}),
            (b"{", "application/json"),
            (os.urandom(300), "multipart/form-data; boundary=x"),
        ])  # fmt: skip
        for _ in range(200):
            status, headers, _ = self.post(body, kind, None)
            if status not in (429, 503):
                break
            time.sleep(float(headers.get("retry-after", 1)) * draw.uniform(0.2, 1))
        if not 400 <= status < 500:
            raise RuntimeError(f"malformed, and answered {status}")
        self.note("malformed, refused")

    def cancelled(self, number: int, draw: random.Random) -> None:
        photo, mask = pictures(number)
        body, kind = multipart(as_png(photo), as_png(mask), {"seed": number, "steps": 50})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/images/edits", body, {"Content-Type": kind})
        time.sleep(draw.uniform(0, 0.2))
        connection.close()
        self.note("cancelled by the client")

    def post(self, body: bytes, kind: str, key: str | None) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": kind} | ({"Idempotency-Key": key} if key else {})
        try:
            connection.request("POST", "/v1/images/edits", body, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def watch(self, process: psutil.Process, done: threading.Event) -> None:
        """Kill a worker after every so many requests; measure the service's memory."""
        kills, total = self.options.kills, self.options.requests
        while not done.wait(0.2):
            self.memory.append(process.memory_info().rss)
            due = kills * self.ended / total
            if self.seen["workers killed"] < min(kills, int(due + 0.5)) and kill_worker(process):
                self.note("workers killed")


def kill_worker(service: psutil.Process) -> bool:
    """Kill one of the service's workers: its grandchildren, by way of the fork server."""
    workers = [worker for child in service.children() for worker in child.children()]
    if not workers:
        return False
    try:
        random.choice(workers).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def pictures(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo of noise, which no other request has, and a mask with a hole."""
    draw = np.random.default_rng(number)
    height, width = draw.integers(SIDE, SIDE + 24, 2)
    photo = draw.integers(0, 256, (height, width, 3), np.uint8)
    mask = np.full((height, width, 4), 255, np.uint8)
    top, left = draw.integers(0, SIDE - 40, 2)
    mask[top : top + draw.integers(8, 40), left : left + draw.integers(8, 40), 3] = 0
    return photo, mask


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def multipart(image: bytes, mask: bytes, fields: dict[str, Any]) -> tuple[bytes, str]:
    """A body, and its content type."""
    boundary = uuid.uuid4().hex
    parts = []
    for name, value in ({"working_size": SIDE, "prompt": ""} | fields).items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        parts.append(head.encode() + str(value).encode() + b"\r\n")
    for name, data in (("image", image), ("mask", mask)):
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n'
        )
        parts.append(head.encode() + data + b"\r\n")
    return b"".join(
        [*parts, f"--{boundary}--\r\n".encode()]
    ), f"multipart/form-data; boundary={boundary}"


def wait_ready(port: int, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the service did not become ready")


def figures(load: Load, started: float) -> dict[str, Any]:
    """What was seen, as one row."""
    quiet = sorted(load.memory[len(load.memory) // 10 :])  # after the first tenth, which warms up
    first = sorted(load.memory[len(load.memory) // 10 : len(load.memory) // 5])
    last = sorted(load.memory[-len(load.memory) // 10 :])
    seconds = sorted(load.seconds)
    middle = lambda values: values[len(values) // 2] if values else 0  # noqa: E731
    return {
        "requests": load.options.requests,
        "clients": load.options.clients,
        "workers": load.options.workers,
        "kept_mb": load.options.kept,
        "together": load.options.together,
        "seconds": round(time.monotonic() - started, 1),
        **{name: load.seen[name] for name in sorted(load.seen)},
        "faults": len(load.faults),
        "median_seconds": round(middle(seconds), 2),
        "p95_seconds": round(seconds[int(0.95 * len(seconds))], 2) if seconds else 0,
        "memory_early_mb": round(middle(first) / 1e6, 1),
        "memory_late_mb": round(middle(last) / 1e6, 1),
        "memory_most_mb": round(quiet[-1] / 1e6, 1) if quiet else 0,
        "machine": f"{os.cpu_count()} CPUs, Python {platform.python_version()}",
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        save_tiny_model(Path(folder))
        command = [sys.executable, __file__, "--serve", folder, str(port)]
        for name in ("workers", "kept", "together"):
            command += [f"--{name}", str(getattr(options, name))]
        service = subprocess.Popen(command)
        try:
            wait_ready(port)
            load, started = Load(port, options), time.monotonic()
            done = threading.Event()
            watcher = threading.Thread(target=load.watch, args=(psutil.Process(service.pid), done))
            clients = [threading.Thread(target=load.client) for _ in range(options.clients)]
            for thread in (watcher, *clients):
                thread.start()
            while any(client.is_alive() for client in clients):
                time.sleep(1)
                if sys.stderr.isatty():
                    print(f"\r{load.ended} of {options.requests}", end="", file=sys.stderr)
            done.set()
            watcher.join()
            for fault in load.faults[:20]:
                print(fault, file=sys.stderr)
            return figures(load, started)
        finally:
            service.terminate()
            service.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kept", type=int, default=256, help="megabytes of answers kept")
    parser.add_argument("--together", type=int, default=4, help="requests run at once, at most")
    parser.add_argument("--output", type=Path, help="a file of JSON lines that the row is added to")
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        folder, port = options.serve
        serve(folder, int(port), options.workers, options.kept << 20, options.together)
        return
    row = run(options)
    print(json.dumps(row, indent=2))
    if options.output:
        with options.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
    if row["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
