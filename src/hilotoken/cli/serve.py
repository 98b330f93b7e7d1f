"""The command `hilo serve`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..serve.worker import Worker

MODEL_HELP = "`embedded`, a folder in diffusers format, or a hub id."
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "embedded",
    host: Annotated[str, typer.Option(help="Where to listen; this machine alone by default.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
    workers: Annotated[
        int, typer.Option(help="Processes, each with a model of its own.", min=1, max=64)
    ] = 1,
    queue: Annotated[
        int, typer.Option(help="Edits that may wait; others are answered 429.", min=1)
    ] = 32,
    limit: Annotated[
        float, typer.Option(help="Seconds that an edit may take, waiting included.", min=0.1)
    ] = 600.0,
    max_megapixels: Annotated[float, typer.Option(help="Of a photo.", min=0.01, max=100)] = 50.0,
    max_megabytes: Annotated[float, typer.Option(help="Of a file.", min=0.01, max=500)] = 50.0,
    together: Annotated[
        int | None,
        typer.Option(
            help="Pictures made in one call of the pipeline at most, of a request (its n) and of "
            "others that wait and ask for the same; 1 on a CPU, else 4.",
            min=1,
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="A further name that clients may call the model; repeatable."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that clients may call this service by; repeatable."),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="A file with an API key a line; or HILO_API_KEYS, between commas."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Keep the models on a Ray cluster: `local`, or its address, such as auto.",
        ),
    ] = None,
    replicas: Annotated[
        str, typer.Option(help="Models on Ray: a number, or FEWEST:MOST to follow the load.")
    ] = "1",
) -> None:
    """Serve edits over HTTP, as clients of the images API know it: POST /v1/images/edits.

    Every pixel outside the mask comes back bit for bit. More: docs/how-to/serve.md.
    """
    require_service()
    from ..edit import together_on
    from ..serve.routes import Limits
    from ..serve.service import ServiceOptions, create_app, process_workers, run

    check_model(model, device)
    few, many = read_replicas(replicas)
    options = ServiceOptions(
        names=(Path(model).name if Path(model).is_dir() else model, *(names or [])),
        depth=queue,
        limit=limit,
        keys=read_keys(api_keys),
        hosts=(*LOCAL, host, *(allow_host or [])),
        limits=Limits(
            int(max_megabytes * 1e6), int(max_megapixels * 1e6), together or together_on(device)
        ),
    )

    def serve_by(workers: "Sequence[Worker]") -> None:
        print(f"http://{host}:{port}/v1  (Ctrl-C ends it)", file=sys.stderr)
        run(create_app(workers, options), host, port)

    if ray is None:
        serve_by(process_workers(model, device, workers))
        return
    require("ray", "ray")
    from ..cluster import connected
    from ..cluster.service import deploy, undeploy

    with connected(ray, many):
        try:
            serve_by(deploy(model, device, (few, many), threads=os.cpu_count() or 1))
        finally:
            undeploy()


def read_replicas(text: str) -> tuple[int, int]:
    """The fewest and the most of N or FEWEST:MOST."""
    few, _, many = text.partition(":")
    try:
        found = int(few), int(many or few)
    except ValueError:
        raise ValueError(f"--replicas takes N or FEWEST:MOST, got {text!r}") from None
    if not 1 <= found[0] <= found[1]:
        raise ValueError(f"--replicas: the fewest must lie in [1, the most], got {text!r}")
    return found


def require_service() -> None:
    """Raise ImportError, with what to install, where the extra is missing."""
    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        require(name, "serve")


def require(name: str, extra: str) -> Any:
    """The module of that name; ImportError says which extra brings it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} is missing: pip install 'hilotoken[{extra}]'") from error


def check_model(model: str, device: str) -> None:
    """Raise, before anything is started, for a device or a folder that is not there."""
    from ..model import find_device

    find_device(device)
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).is_dir():
        raise FileNotFoundError(f"no folder {model}: give one in diffusers format, or 'embedded'")


def read_keys(file: Path | None) -> tuple[str, ...]:
    """API keys of the file, or of HILO_API_KEYS; ValueError for a file without any."""
    if file is None:
        given = os.environ.get("HILO_API_KEYS", "").split(",")
        return tuple(key.strip() for key in given if key.strip())
    keys = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if not keys:
        raise ValueError(f"{file} holds no API key: write one a line")
    return keys
