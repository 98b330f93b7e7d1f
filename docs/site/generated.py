"""The parts of the site that are made of the program itself.

A page holds `<!-- site: NAME -->` where the part of that name in `PARTS` goes. In a checkout the
page says where else to find it.
"""

import base64
import inspect
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from PIL import Image

import hilotoken
from hilotoken.cli import app as commands_app

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "extreme-desert-hike"

MARK = re.compile(r"^<!-- site: (\w+) -->$", re.MULTILINE)


def fill_in(app: Any, name: str, source: list[str]) -> None:
    """Put the parts in their places."""
    source[0] = MARK.sub(lambda match: PARTS[match.group(1)](), source[0])


def commands() -> str:
    """Every command with its options, by Typer's own writer."""
    from typer._click import Context

    command = typer.main.get_command(commands_app)
    text = typer.cli.get_docs_for_click(
        obj=command, ctx=Context(command, info_name="hilo"), name="hilo"
    )
    text = text.replace("```console", "```text")
    text = re.sub(r"^(\* `\w+`): .*\.\.\.$", r"\1", text, flags=re.MULTILINE)  # cut short there
    return text.partition("\n")[2]  # the page has a title


def routes() -> str:
    """Every route of `hilo serve`, from its OpenAPI description."""
    from hilotoken.serve.service import create_app

    described = create_app([]).openapi()
    return "\n".join(
        _route(path, verb, operation)
        for path, verbs in described["paths"].items()
        for verb, operation in verbs.items()
    )


def _route(path: str, verb: str, operation: dict[str, Any]) -> str:
    from hilotoken.serve.reference import kind_of

    lines = [f"## `{verb.upper()} {path}`", operation.get("summary", "")]
    lines += [operation.get("description", "")]
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        wanted = body["schema"].get("required", [])
        lines += [f"`{kind}`:", "| field | values | meaning |\n|---|---|---|"]
        lines[-1] += "".join(
            f"\n| `{name}`{' (required)' * (name in wanted)} | {_cell(kind_of(field))} "
            f"| {_cell(field.get('description', ''))} |"
            for name, field in body["schema"].get("properties", {}).items()
        )
    answers = operation["responses"].items()
    lines += ["| status | |\n|---|---|"]
    lines[-1] += "".join(f"\n| {code} | {_cell(one['description'])} |" for code, one in answers)
    return "\n\n".join(line for line in lines if line) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api() -> str:
    """Every public name of the package, from its docstring."""
    parts = []
    for name in sorted({*hilotoken.__all__} - {"Run"}, key=str.lower):  # it has a page
        value = getattr(hilotoken, name)
        if inspect.isclass(value):
            options = "\n   :members:\n   :special-members: __call__"
            parts += [f"## `{name}`", f".. autoclass:: hilotoken.{name}{options}"]
        elif inspect.isfunction(value):
            parts += [f"## `{name}`", f".. autofunction:: hilotoken.{name}"]
    return "\n\n".join(
        f"```{{eval-rst}}\n{part}\n```" if part.startswith("..") else part for part in parts
    )


def run() -> str:
    """The record of a run."""
    return "```{eval-rst}\n.. autoclass:: hilotoken.Run()\n   :members:\n```"


def token_map() -> str:
    """The interactive token map."""
    html = (HERE / "token-map.html").read_text(encoding="utf-8")
    return f"```{{raw}} html\n{html}```"


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "routes": routes,
    "api": api,
    "run": run,
    "token_map": token_map,
}


def write_example(app: Any, error: Exception | None) -> None:
    """Put photo, mask and presets beside the token map: scripts of a folder may read no files."""
    if error:
        return
    pictures = {
        name: Image.open(EXAMPLE.with_name(EXAMPLE.name + end)).resize((1024, 672))
        for name, end in (("photo", ".jpg"), ("mask", "_mask.png"))
    }
    held: dict[str, Any] = {name: _data(picture) for name, picture in pictures.items()}
    held["presets"] = map_presets()
    script = Path(app.outdir) / "_static" / "token-map-example.js"
    script.write_text(f"const TokenMapExample = {json.dumps(held)};\n", encoding="utf-8")


def map_presets() -> dict[str, dict[str, Any]]:
    """The presets as the fields of the token map, but for those with options that it has not."""
    known = {"detail", "energy", "coarse", "context", "cell", "refresh"}
    fields = {}
    for name, method in hilotoken.PRESETS.items():
        refresh = method.refresh or hilotoken.Refresh(1)
        shown = {each: getattr(method, each) for each in known - {"refresh"}}
        again = hilotoken.Refresh(refresh.at, text=refresh.text) if method.refresh else None
        if hilotoken.HiLo(**_given(shown), refresh=again) != method:
            continue
        fields[name] = {
            "byEnergy": method.energy is not None,
            "detail": method.detail or 0,
            "context": method.context,
            "cell": method.cell or 2,
            "coarse": str(method.coarse),
            "refresh": refresh.at if method.refresh else 0,
            "text": refresh.text,
        }
    return fields


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that say something: one without effect is refused."""
    return {name: value for name, value in options.items() if value is not None}


def _data(picture: Image.Image) -> str:
    kind = "jpeg" if picture.mode == "RGB" else "png"
    held = io.BytesIO()
    picture.save(held, kind, quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"


_LEGEND = re.compile(r"(\w+(?:, \w+)*): +(\S.*)")


def docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Make a definition list of lines such as `seed:   of the random choices`."""
    made: list[str] = []
    inside = False
    for line in lines:
        if match := _LEGEND.fullmatch(line):
            names = ", ".join(f"`{name}`" for name in match.group(1).split(", "))
            made += ["", names, f"    {match.group(2)}"]
        elif inside and line.startswith(" "):
            made.append(f"    {line.strip()}")
        else:
            made += [""] * inside + [line]
        inside = bool(match) or (inside and line.startswith(" "))
    lines[:] = made
