"""The command line: the commands, and how each of them ends."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .batch import batch
from .bench import app as bench
from .check import check
from .compare import compare
from .edit import edit, plan
from .lora import lora
from .methods import methods
from .paint import paint
from .serve import serve
from .train import train

# What is wrong with an input or with this machine. The libraries' own, which have no common base
# and are not to be imported for it, stand by their names.
EXPECTED = (
    *(ValueError, TypeError, OSError, ImportError, RuntimeError),
    *(EOFError, MemoryError, OverflowError),
)
EXPECTED_NAMES = {
    *("BadZipFile", "DecompressionBombError", "SafetensorError", "UnpicklingError"),
    *("Error", "error"),  # of csv, struct, zlib and OpenCV
}


class Commands(TyperGroup):
    """Every failure is one line: exit code 2 for an input's, 1 for a fault here, 130 for Ctrl-C."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _reported():  # Ctrl-C, so early
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _quiet_libraries(), _reported():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="Masked photo editing that pays for what it changes: HiLo-Token for diffusers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
for _command in (edit, plan, check, compare, methods, batch, serve, train, lora):
    app.command()(_command)
app.command("app")(paint)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("hilotoken"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@contextmanager
def _reported() -> Iterator[None]:
    """Say what went wrong in a line; HILO_TRACEBACK=1 shows where it was."""
    try:
        yield
    except BrokenPipeError:  # `hilo methods | head`
        raise
    except Exception as error:
        # Typer's own, which it prints as a panel or ends by; some are RuntimeErrors.
        if type(error).__module__.partition(".")[0] in ("click", "typer"):
            raise
        if os.environ.get("HILO_TRACEBACK"):
            raise
        known = isinstance(error, EXPECTED) or type(error).__name__ in EXPECTED_NAMES
        _say(_line(error) if known else f"{_line(error)}: this looks like a fault of hilotoken's; "
             "HILO_TRACEBACK=1 shows where")  # fmt: skip
        raise typer.Exit(2 if known else 1) from None
    except KeyboardInterrupt:
        _say("interrupted")
        raise typer.Exit(130) from None


def _line(error: Exception) -> str:
    """The message, and of an error that is no sentence its kind too."""
    text = " ".join(str(error).split())
    if isinstance(error, LookupError | AssertionError | AttributeError | NameError) or not text:
        return f"{type(error).__name__}: {text}".removesuffix(": ")
    return text


def _say(text: str) -> None:
    print(f"hilo: {text}", file=sys.stderr)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Libraries' chatter, as they are imported and after, is not for the user of a command."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def main() -> None:
    """Run the command line."""
    app()
