"""The fields of an edit, their limits, and the bodies that hold them."""

import base64
import binascii
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from .errors import ApiError
from .task import PRESETS, Task

QUALITIES = {"low": "fast", "medium": "balanced", "auto": "balanced", "high": "dense"}


class EditFields(BaseModel):
    """What may be said beside the pictures. Fields not listed here are refused."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field("", max_length=32_000, description="What to fill in.")
    model: str | None = Field(None, max_length=200, description="As listed by /v1/models.")
    n: int = Field(1, ge=1, le=10, description="Pictures; the i-th has the seed `seed + i`.")
    size: str | None = Field(
        "auto",
        max_length=20,
        description="`auto`, or the image's own WxH: the answer has the image's size.",
    )
    quality: Literal["auto", "low", "medium", "high"] | None = Field(
        "auto", description="A method and steps under one name; `method` and `steps` go before it."
    )
    background: Literal["auto", "opaque"] | None = "auto"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Of jpeg and webp; webp without it is lossless."
    )
    stream: bool | None = False
    partial_images: int | None = Field(0, ge=0, le=3, description="Previews while streaming.")
    response_format: Literal["b64_json"] | None = "b64_json"
    input_fidelity: Literal["high"] | None = None
    user: str | None = Field(None, max_length=500, description="Taken, and not kept.")
    # Beyond the images API:
    mask_mode: Literal["alpha", "white"] = Field(
        "alpha", description="What in the mask is edited: what is transparent, or white."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Same seed, same picture.")
    steps: int | None = Field(None, ge=1, le=100, description="Denoising steps.")
    method: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description='A preset, "dense", or such as "hilo detail=0.2".',
    )
    label: str = Field("", max_length=200, description="A kind of thing that the model knows.")
    working_size: int | None = Field(
        None, ge=128, le=2048, description="Longer side of the working picture, in pixels."
    )

    def task(self, image: bytes, mask: bytes) -> Task:
        """The task that these fields and pictures ask for."""
        preset = PRESETS[QUALITIES[self.quality or "auto"]]
        streaming = bool(self.stream)
        if self.partial_images and not streaming:
            raise ApiError(400, "partial_images needs stream=true", param="partial_images")
        output = self.output_format or "png"
        if self.output_compression is not None and output == "png":
            raise ApiError(400, "png is lossless: omit it", param="output_compression")
        return Task(
            image,
            mask,
            mask_mode=self.mask_mode,
            prompt=self.prompt,
            label=self.label,
            method=self.method or preset.method,
            steps=self.steps or preset.steps,
            size=self.working_size,
            seed=self.seed,
            count=self.n,
            partials=self.partial_images or 0,
            output=output,
            quality=self.output_compression,
        )


class ImageLink(BaseModel):
    """A picture in JSON: a data URL. Nothing is fetched from anywhere."""

    model_config = ConfigDict(extra="forbid")

    image_url: str = Field(
        max_length=100_000_000, description="`data:image/png;base64,...`, jpeg or webp too."
    )


class EditJson(EditFields):
    """The JSON body."""

    images: list[ImageLink] = Field(min_length=1, max_length=1)
    mask: ImageLink


class EditForm(EditFields):
    """The multipart body, for the API's description: `image[]` is taken in place of `image`."""

    image: str = Field(json_schema_extra={"format": "binary"})
    mask: str = Field(json_schema_extra={"format": "binary"})


def parse(model: type[Any], values: Any) -> Any:
    """The values as that model; ApiError 400 names the first field at fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        text = f"unknown parameter: {where!r}" if first["type"] == "extra_forbidden" else None
        raise ApiError(
            400, text or f"{where}: {first['msg']}", param=where or None, code=first["type"]
        ) from None


def parse_json(body: bytes) -> tuple[EditFields, bytes, bytes]:
    """Fields, image and mask of a JSON body."""
    try:
        found = EditJson.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(
            400, f"{where or 'body'}: {first['msg']}", param=where or None, code=first["type"]
        ) from None
    return found, _data_url(found.images[0], "images"), _data_url(found.mask, "mask")


def _data_url(link: ImageLink, param: str) -> bytes:
    head, comma, data = link.image_url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise ApiError(
            400,
            "image_url must be a data URL, data:image/png;base64,...: nothing is fetched",
            param=param,
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param}: the data URL is not base64", param=param) from None


async def parse_form(form: FormData) -> tuple[EditFields, bytes, bytes]:
    """Fields, image and mask of a multipart body."""
    values: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        field = "image" if name == "image[]" else name
        if field in files or field in values:
            more = "one image is edited at a time" if field == "image" else "it is given twice"
            raise ApiError(400, f"{field}: {more}", param=field)
        if isinstance(value, UploadFile):
            files[field] = value
        else:
            values[field] = value
    for name in ("image", "mask"):
        if name not in files:
            raise ApiError(400, f"{name} is missing: send it as a file", param=name)
    for name in files:
        if name not in ("image", "mask"):
            raise ApiError(400, f"unknown parameter: {name!r}", param=name)
    for name in ("image", "mask"):
        values.pop(name, None)
    fields = parse(EditFields, values)
    return fields, await files["image"].read(), await files["mask"].read()


def request_body() -> dict[str, Any]:
    """The OpenAPI description of both bodies."""
    content = {}
    for kind, model in (("multipart/form-data", EditForm), ("application/json", EditJson)):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = schema.pop("$defs", {})
        content[kind] = {"schema": _inlined(schema, parts)}
    return {"required": True, "content": content}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(parts[schema["$ref"].rsplit("/", 1)[1]], parts)
        return {key: _inlined(value, parts) for key, value in schema.items()}
    return [_inlined(value, parts) for value in schema] if isinstance(schema, list) else schema
