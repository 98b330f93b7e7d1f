"""A headless ComfyUI with this pack in its `custom_nodes`, on this machine alone."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import find_comfy

FLAGS = [
    "--cpu", "--use-pytorch-cross-attention", "--listen", "127.0.0.1", "--disable-api-nodes",
    "--disable-auto-launch", "--database-url", "sqlite:///:memory:",
]  # fmt: skip


@dataclass(frozen=True)
class Server:
    url: str
    base: Path  # with the folders input, output and custom_nodes

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    def run(self, prompt: dict[str, Any], patience: float = 600) -> dict[str, Any]:
        """Run a workflow in the form that servers take; its history entry when it is done."""
        try:
            answer = self.ask("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error
        if answer["node_errors"]:
            raise RuntimeError(json.dumps(answer["node_errors"]))
        number, end = answer["prompt_id"], time.monotonic() + patience
        while not (history := self.ask(f"/history/{number}")):
            if time.monotonic() > end:
                raise TimeoutError(f"no answer in {patience} s")
            time.sleep(0.25)
        return history[number]

    def saved(self, entry: dict[str, Any], node: str) -> Path:
        """The picture that a node of a run saved."""
        return self.base / "output" / entry["outputs"][node]["images"][0]["filename"]


@contextmanager
def serving(base: Path, page: Path | None = None) -> Iterator[Server]:
    """A server for this context; `page` is a folder with ComfyUI's page, or there is none."""
    code = base / "comfyui"
    ignored = shutil.ignore_patterns("extra_model_paths.yaml", "__pycache__", "tests*")
    shutil.copytree(find_comfy.folder(), code, ignore=ignored, dirs_exist_ok=True)
    for name in ("custom_nodes", "input", "output", "models", "temp", "user", "empty"):
        (base / name).mkdir(exist_ok=True)
    pack = base / "custom_nodes" / "hilotoken"
    if not pack.exists():  # as the documentation says: a link into the clone
        pack.symlink_to(find_comfy.HERE.parent, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(find_comfy.HERE / "serve.py"), str(code), *FLAGS]
    command += ["--port", str(port), "--base-directory", str(base)]
    command += ["--front-end-root", str(page or base / "empty")]
    with (base / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Server(f"http://127.0.0.1:{port}", base)
        _wait(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes], patience: float = 240) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            server.ask("/system_stats")
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > end:
                log = (server.base / "server.log").read_text()
                raise RuntimeError(f"no server: {log[-3000:]}") from error
            time.sleep(0.5)
