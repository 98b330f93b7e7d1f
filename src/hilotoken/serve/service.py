"""The service as one ASGI application, and how it is started."""

import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from .errors import ApiError
from .guard import LOOPBACK, Guard
from .jobs import JobQueue
from .loading import load_quietly
from .metrics import Metrics
from .reference import reference_of
from .routes import Limits, routes
from .worker import ProcessWorker, Worker


@dataclass(frozen=True)
class ServiceOptions:
    """How a service answers.

    names: what clients may call the model; the first is its own
    depth: edits that may wait before others are told to come again
    limit: seconds that an edit may take, waiting included
    kept: bytes of answers that are kept for the same job id sent again
    """

    names: tuple[str, ...] = ("embedded",)
    depth: int = 32
    limit: float = 600.0
    kept: int = 256 << 20
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = LOOPBACK
    limits: Limits = field(default_factory=Limits)


def create_app(
    workers: Sequence[Worker],
    options: ServiceOptions | None = None,
    page: Callable[[JobQueue, Limits], APIRouter] | None = None,
    open_paths: Sequence[str] = (),
) -> FastAPI:
    """The service in front of those workers, and a page of its own if there is one.

    Args:
        page: makes further routes of the queue and the limits
        open_paths: what of it needs no API key
    """
    options = options or ServiceOptions()
    metrics = Metrics()
    jobs = JobQueue(workers, options.depth, options.limit, options.kept, metrics.count)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        try:
            yield
        finally:
            jobs.close()

    app = FastAPI(
        title="hilotoken",
        summary="Masked photo editing that pays for what it changes",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.jobs = jobs
    app.include_router(routes(jobs, options.limits, list(options.names)))
    app.include_router(_health(jobs, metrics))
    if page:
        app.include_router(page(jobs, options.limits))
    app.include_router(reference_of(app))
    _answer_errors(app)
    app.add_middleware(
        Guard,
        keys=options.keys,
        hosts=options.hosts,
        max_body=options.limits.body_bytes,
        open_paths=open_paths,
    )
    return app


def _health(jobs: JobQueue, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", summary="Whether the service is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        summary="Whether an edit would be taken now",
        responses={503: {"description": "No model is loaded yet, or the queue is full"}},
    )
    async def readyz() -> Response:
        text = "ready" if jobs.ready else "not ready"
        return PlainTextResponse(text, 200 if jobs.ready else 503)

    @router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        return PlainTextResponse(metrics.text(jobs), media_type="text/plain; version=0.0.4")

    return router


def _answer_errors(app: FastAPI) -> None:
    """All errors in the one form."""

    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        response = ApiError(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return ApiError(500, "the service failed: see its log").response()


def process_workers(model: str, device: str, count: int) -> list[ProcessWorker]:
    """Workers in processes of their own, which share the machine's cores."""
    threads = max(1, (os.cpu_count() or 1) // count)
    load = functools.partial(load_quietly, model, device, threads)
    return [ProcessWorker(load) for _ in range(count)]


def run(app: FastAPI, host: str, port: int, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until Ctrl-C; `ready` is called once the port is open."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    logging.disable(logging.NOTSET)  # which commands set for libraries' chatter
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,  # ours has no query strings, and the job's id
        log_level="warning",
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    Server(config).run()
