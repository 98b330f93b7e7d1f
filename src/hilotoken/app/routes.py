"""What the page asks the service for, beyond the images API: patches instead of whole photos.

The page holds the photo and its history of edits, the service holds nothing: every request brings
the photo as it was opened, and the patches of the edits made so far.
"""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from ..serve.errors import ApiError
from ..serve.files import save
from ..serve.jobs import Job, JobQueue, QueueFull
from ..serve.routes import Limits, followed, hilo_fields, job_key, sse, upload_form
from ..serve.schema import parse
from ..serve.task import PRESETS, Patch, Picture, Preview, Progress, Refused, Task
from ..serve.uploads import check_upload

STATIC = Path(__file__).parent / "static"
OPEN_PATHS = ("/", "/static/")  # the page itself, which holds no secret
MOST_PATCHES = 200
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class PageEdit(BaseModel):
    """The options of an edit made on the page."""

    model_config = ConfigDict(extra="forbid")

    preset: str = "balanced"
    method: str | None = Field(None, min_length=1, max_length=200)
    steps: int | None = Field(None, ge=1, le=100)
    prompt: str = Field("", max_length=32_000)
    label: str = Field("", max_length=200)
    seed: int = Field(0, ge=0, le=2**32 - 1)
    count: int = Field(1, ge=1, le=3)
    previews: int = Field(3, ge=0, le=5)
    feather: int = Field(0, ge=0, le=200)
    working_size: int | None = Field(None, ge=128, le=2048)
    corners: list[tuple[int, int]] = Field(default_factory=list, max_length=MOST_PATCHES)

    def task(self, image: bytes, mask: bytes, patches: list[bytes]) -> Task:
        if self.preset not in PRESETS:
            raise ApiError(400, f"choose from {sorted(PRESETS)}", param="preset")
        preset = PRESETS[self.preset]
        return Task(
            image,
            mask,
            prompt=self.prompt,
            label=self.label,
            method=self.method or preset.method,
            steps=self.steps or preset.steps,
            size=self.working_size,
            seed=self.seed,
            feather=self.feather,
            count=self.count,
            partials=self.previews,
            output="patch",
            patches=_patches(self.corners, patches),
        )


class PageSave(BaseModel):
    """Where the patches of a photo to be saved lie."""

    model_config = ConfigDict(extra="forbid")

    corners: list[tuple[int, int]] = Field(default_factory=list, max_length=MOST_PATCHES)


def _patches(corners: list[tuple[int, int]], files: list[bytes]) -> tuple[Patch, ...]:
    if len(corners) != len(files):
        raise ApiError(400, "as many corners as patches are wanted", param="corners")
    return tuple(Patch(*at, png) for at, png in zip(corners, files, strict=True))


def page_routes(jobs: JobQueue, limits: Limits) -> APIRouter:
    """The page, its files, and what it asks for."""
    router = APIRouter(include_in_schema=False)
    router.mount("/static", StaticFiles(directory=STATIC), name="static")

    @router.get("/")
    async def page() -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return FileResponse(STATIC / "index.html", headers=headers)

    @router.get("/app/info")
    async def info() -> dict[str, Any]:
        presets = {name: vars(preset) for name, preset in PRESETS.items()}
        return {"model": jobs.info, "problem": jobs.problem, "presets": presets}

    @router.post("/app/edits")
    async def edit(request: Request) -> Response:
        async with upload_form(request) as form:
            options, files = await _parts(form, PageEdit, limits, ("image", "mask"))
        task = options.task(files["image"][0], files["mask"][0], files["patch"])
        try:
            job = jobs.submit(task, job_key(request))
        except QueueFull as error:
            raise ApiError(429, str(error), retry=True, after=error.retry_after) from None
        return StreamingResponse(_told(jobs, job), media_type="text/event-stream")

    @router.post("/app/save")
    async def save_edited(request: Request) -> Response:
        async with upload_form(request) as form:
            options, files = await _parts(form, PageSave, limits, ("image",))
        patches = _patches(options.corners, files["patch"])
        try:
            data = await run_in_threadpool(save, files["image"][0], patches, "png")
        except Refused as error:
            raise ApiError(400, str(error), param=error.param) from None
        return Response(data, media_type="image/png")

    return router


async def _parts(form: Any, model: Any, limits: Limits, wanted: tuple[str, ...]) -> Any:
    """Options and files of a request of the page."""
    files: dict[str, list[bytes]] = {name: [] for name in (*wanted, "patch")}
    for name, value in form.multi_items():
        if name in files and isinstance(value, UploadFile):
            data = await value.read()
            check_upload(data, name, limits.file_bytes, limits.pixels)
            files[name].append(data)
    for name in wanted:
        if len(files[name]) != 1:
            raise ApiError(400, f"one {name} is wanted", param=name)
    try:
        values = json.loads(str(form.get("options", "{}")))
    except ValueError:
        raise ApiError(400, "options are no JSON", param="options") from None
    return parse(model, values), files


async def _told(jobs: JobQueue, job: Job) -> AsyncIterator[bytes]:
    """The events of a job as the page reads them."""
    try:
        async for event in followed(jobs, job, pulse=1.0):
            if event is None:
                yield sse("waiting", {"ahead": jobs.ahead(job)})
            elif isinstance(event, Progress):
                yield sse("progress", {"done": event.done, "of": event.of})
            elif isinstance(event, Preview):
                yield sse("preview", _placed(event))
            elif isinstance(event, Picture):
                figures = hilo_fields(event) | {"plans": event.plans}
                yield sse("picture", _placed(event) | figures)
    except ApiError as error:
        yield sse("error", error.body)
    finally:
        jobs.leave(job)


def _placed(event: Preview | Picture) -> dict[str, Any]:
    data = base64.b64encode(event.data).decode()
    return {"image": event.image, "box": event.box, "png": data}
