"""The routes of the images API: `POST /v1/images/edits` and the list of models."""

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from ..edit import TOGETHER
from .errors import ApiError
from .jobs import Ended, Job, JobQueue, KeyReused, QueueFull, TimeLimit
from .schema import EditFields, parse_form, parse_json, request_body
from .task import Event, Failed, Picture, Preview, Task
from .uploads import check_mask, check_upload


@dataclass(frozen=True)
class Limits:
    """What a request may bring.

    together: pictures that are made in one call of the pipeline at most
    """

    file_bytes: int = 50_000_000
    pixels: int = 50_000_000
    together: int = TOGETHER

    @property
    def body_bytes(self) -> int:
        """Two files in base64, and the fields."""
        return 2 * self.file_bytes * 4 // 3 + 1_000_000


ERRORS = {
    400: "A field that does not fit; `param` names it",
    401: "No API key, or a wrong one",
    403: "From another origin, or to another host",
    404: "No such model",
    408: "The time limit was reached",
    413: "Too many bytes or pixels",
    415: "Neither multipart nor JSON",
    429: "The queue is full; `Retry-After` says when to come again",
    500: "The edit failed",
    503: "A worker ended in the middle of the edit: send it again",
}


def routes(jobs: JobQueue, limits: Limits, names: list[str]) -> APIRouter:
    """The routes, in front of a queue; `names` are those that `model` may have."""
    router, created = APIRouter(prefix="/v1"), int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "hilotoken"}

    @router.get("/models", summary="The models served", responses=_described(401, 403))
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in names]}

    @router.get("/models/{name}", summary="One of the models", responses=_described(401, 403, 404))
    async def get_model(name: str) -> dict[str, Any]:
        _check_model(name, names)
        return model(name)

    @router.post(
        "/images/edits",
        summary="Edit an image under a mask",
        description="Every pixel outside the mask comes back bit for bit as PNG or lossless WebP. "
        "The header `Idempotency-Key` makes a retry the same job.",
        responses=_described(*ERRORS) | {200: _answer_described()},
        openapi_extra={"requestBody": request_body(), "parameters": [_key_described()]},
    )
    async def edit(request: Request) -> Any:
        try:
            jobs.check_room()
            fields, image, mask = await _body(request)
            task = checked_task(fields, image, mask, limits, names)
            job = jobs.submit(task, job_key(request))
        except QueueFull as error:
            raise ApiError(
                429, str(error), code="queue_full", retry=True, after=error.retry_after
            ) from None
        except KeyReused as error:
            raise ApiError(400, str(error), param="Idempotency-Key", code="key_reused") from None
        request.state.job = job.id
        if fields.stream:
            return StreamingResponse(_streamed(jobs, job, fields), media_type="text/event-stream")
        events = await gathered(request, jobs, job)
        return _answer(fields, [event for event in events if isinstance(event, Picture)])

    return router


def checked_task(
    fields: EditFields, image: bytes, mask: bytes, limits: Limits, names: list[str]
) -> Task:
    """The task of a request whose headers, names and limits are all right."""
    if fields.model is not None:
        _check_model(fields.model, names)
    header = check_upload(image, "image", limits.file_bytes, limits.pixels)
    check_mask(
        check_upload(mask, "mask", limits.file_bytes, limits.pixels), header, fields.mask_mode
    )
    own = {f"{header.width}x{header.height}", f"{header.height}x{header.width}"}
    if (fields.size or "auto") not in {"auto", *own}:
        raise ApiError(
            400,
            f"size: the answer has the image's own size, {header.width}x{header.height}; send "
            "`auto`, resize the image, or set working_size for the model's",
            param="size",
        )
    return replace(fields.task(image, mask), together=limits.together)


def _check_model(name: str, names: list[str]) -> None:
    if name not in names:
        raise ApiError(
            404,
            f"no model {name!r} here: choose from {names}",
            param="model",
            code="model_not_found",
        )


def job_key(request: Request) -> str | None:
    """The client's job id, apart from those of other API keys."""
    key = request.headers.get("idempotency-key")
    if not key:
        return None
    if len(key) > 255:
        raise ApiError(400, "Idempotency-Key has over 255 characters", param="Idempotency-Key")
    owner = request.headers.get("authorization", "")
    return hashlib.sha256(f"{owner}\n{key}".encode()).hexdigest()


async def _body(request: Request) -> tuple[EditFields, bytes, bytes]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return parse_json(await request.body())
    if kind != "multipart/form-data":
        raise ApiError(415, "send multipart/form-data or application/json")
    async with upload_form(request) as form:
        return await parse_form(form)


class upload_form:
    """The request's multipart body, parsed; ApiError 400 for one that is damaged."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.form: Any = None

    async def __aenter__(self) -> Any:
        try:
            self.form = await self.request.form(max_files=64, max_fields=128)
        except (HTTPException, MultiPartException, UnicodeDecodeError, ValueError) as error:
            text = getattr(error, "detail", None) or getattr(error, "message", "") or "damaged"
            raise ApiError(400, f"the multipart body cannot be read: {text}") from None
        return self.form

    async def __aexit__(self, *_: object) -> None:
        await self.form.close()


async def gathered(request: Request, jobs: JobQueue, job: Job) -> list[Event]:
    """All events of a job; the job is left, and so cancelled, when the client goes."""
    following = asyncio.ensure_future(_all_events(jobs, job))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            raise ApiError(499, "the client went away")
        return following.result()
    finally:
        for waiting in (following, gone):
            waiting.cancel()
        with suppress(asyncio.CancelledError, ApiError):
            await following
        jobs.leave(job)


async def _all_events(jobs: JobQueue, job: Job) -> list[Event]:
    return [event async for event in followed(jobs, job) if event is not None]


async def followed(jobs: JobQueue, job: Job, pulse: float = 15.0) -> AsyncIterator[Event | None]:
    """The events of a job, with what goes wrong as ApiError; None after a `pulse` of silence."""
    try:
        async for event in job.follow(jobs.limit, pulse):
            if isinstance(event, Failed):
                raise ApiError(400 if event.refused else 500, event.message, param=event.param)
            yield event
    except TimeLimit as error:
        raise ApiError(408, str(error), code="time_limit") from None
    except Ended as error:
        raise ApiError(503, str(error), code="worker_died", retry=True, after=1) from None


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(jobs: JobQueue, job: Job, fields: EditFields) -> AsyncIterator[bytes]:
    """Server-sent events; leaving it, by an error or a client gone, leaves the job."""
    try:
        async for event in followed(jobs, job):
            if event is None:
                yield b": waiting\n\n"
            elif isinstance(event, Preview):
                data = {"b64_json": _b64(event.data), "partial_image_index": event.index}
                yield sse("image_edit.partial_image", _common(fields) | data)
            elif isinstance(event, Picture):
                data = {"b64_json": _b64(event.data), "usage": _usage([event])}
                data |= {"size": _size(event), "hilo": hilo_fields(event)}
                yield sse("image_edit.completed", _common(fields) | data)
    except ApiError as error:
        yield sse("error", error.body)
    finally:
        jobs.leave(job)


def sse(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode()


def _common(fields: EditFields) -> dict[str, Any]:
    return {
        "created_at": int(time.time()),
        "size": fields.size or "auto",
        "quality": fields.quality or "auto",
        "background": "opaque",
        "output_format": fields.output_format or "png",
    }


def _answer(fields: EditFields, pictures: list[Picture]) -> dict[str, Any]:
    data = [{"b64_json": _b64(picture.data)} for picture in pictures]
    common = _common(fields)
    created = common.pop("created_at")
    usage, size = _usage(pictures), _size(pictures[0])
    figures = [hilo_fields(picture) for picture in pictures]
    return common | {
        "created": created, "size": size, "data": data, "usage": usage, "hilo": figures,
    }  # fmt: skip


def hilo_fields(picture: Picture) -> dict[str, Any]:
    """What the images API has no field for: seed, tokens, seconds."""
    return {"seed": picture.seed} | picture.figures


def _size(picture: Picture) -> str:
    return f"{picture.size[0]}x{picture.size[1]}"


def _usage(pictures: list[Picture]) -> dict[str, Any]:
    """Tokens of the photo's grid as input, those that ran as output, of all pictures."""
    given = sum(picture.figures["tokens_full"] for picture in pictures)
    run = sum(picture.figures["tokens_run"] for picture in pictures)
    details = {"image_tokens": given, "text_tokens": 0}
    return {
        "input_tokens": given, "input_tokens_details": details,
        "output_tokens": run, "total_tokens": given + run,
    }  # fmt: skip


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _described(*codes: int) -> dict[int | str, dict[str, Any]]:
    nullable = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}}
    fields |= {"param": nullable, "code": nullable}
    error = {"type": "object", "properties": fields, "required": ["message", "type"]}
    schema = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    content = {"application/json": {"schema": schema}}
    return {code: {"description": ERRORS[code], "content": content} for code in codes}


def _answer_described() -> dict[str, Any]:
    data = {"type": "object", "properties": {"b64_json": {"type": "string"}}}
    schema = {
        "type": "object",
        "properties": {
            "created": {"type": "integer"},
            "data": {"type": "array", "items": data},
            "size": {"type": "string"},
            "quality": {"type": "string"},
            "background": {"type": "string"},
            "output_format": {"type": "string"},
            "usage": {"type": "object"},
            "hilo": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["created", "data", "usage"],
    }
    content = {
        "application/json": {"schema": schema},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return {"description": "The pictures; a stream of events with stream=true", "content": content}


def _key_described() -> dict[str, Any]:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": "A job id: the same request under the same id is run once.",
    }
