"""The API's description as a page, made here: the usual viewers load themselves from elsewhere."""

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8884; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8883;
  vertical-align: top; }
code, h2 { font-family: ui-monospace, monospace; }
h2 b { color: #c4500c; }
"""


def reference_of(app: FastAPI) -> APIRouter:
    """The route of the page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def reference() -> HTMLResponse:
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(page(app.openapi()), headers=policy)

    return router


def page(described: dict[str, Any]) -> str:
    """An OpenAPI description as HTML."""
    parts = [
        _operation(path, verb, operation)
        for path, verbs in described["paths"].items()
        for verb, operation in verbs.items()
    ]
    title = escape(described["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><style>'
        f"{STYLE}</style><h1>{title}</h1><p>{escape(described['info'].get('summary', ''))}. "
        'The same for machines: <a href="openapi.json">openapi.json</a>.</p>' + "".join(parts)
    )


def _operation(path: str, verb: str, operation: dict[str, Any]) -> str:
    texts = [operation.get("summary", ""), operation.get("description", "")]
    said = "".join(f"<p>{escape(text)}</p>" for text in texts if text)
    bodies = operation.get("requestBody", {}).get("content", {})
    tables = "".join(
        f"<h3><code>{escape(kind)}</code></h3>{_fields(body['schema'])}"
        for kind, body in bodies.items()
    )
    answers = "".join(
        f"<tr><td><code>{code}</code><td>{escape(answer['description'])}"
        for code, answer in operation["responses"].items()
    )
    return (
        f"<section><h2><b>{verb.upper()}</b> {escape(path)}</h2>{said}{tables}"
        f"<h3>Answers</h3><table>{answers}</table></section>"
    )


def _fields(schema: dict[str, Any]) -> str:
    wanted = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' * (name in wanted)}"
        f"<td>{escape(kind_of(field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table><tr><th>field<th>values<th>meaning{rows}</table>"


def kind_of(field: dict[str, Any]) -> str:
    """Type, choices, limits and default in a few words."""
    options = field.get("anyOf", [field])
    words = [_one_kind(option) for option in options if option.get("type") != "null"]
    default = field.get("default")
    return " or ".join(words) + (f"; default {default}" if default not in (None, "") else "")


def _one_kind(field: dict[str, Any]) -> str:
    if "enum" in field or "const" in field:
        return ", ".join(map(str, field.get("enum", [field.get("const")])))
    kind = field.get("format") or field.get("type", "object")
    low, high = field.get("minimum"), field.get("maximum")
    return f"{kind} {low} to {high}" if low is not None and high is not None else str(kind)
