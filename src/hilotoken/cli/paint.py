"""The command `hilo app`."""

import secrets
import sys
from typing import Annotated

import typer

from .serve import LOCAL, MODEL_HELP, check_model, require_service


def paint(
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "embedded",
    host: Annotated[
        str, typer.Option(help="Where to listen; other than this machine needs --share.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` ...")] = "cpu",
    share: Annotated[
        bool,
        typer.Option("--share", help="Let other machines in, by an address with a key in it."),
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Open a page to paint on: what you paint over is removed, or filled by what you say.

    The page and the model are on this machine; nothing is sent elsewhere.
    """
    require_service()
    from ..app.routes import OPEN_PATHS, page_routes
    from ..edit import together_on
    from ..serve.routes import Limits
    from ..serve.service import ServiceOptions, create_app, process_workers, run

    if host not in LOCAL and not share:
        raise ValueError(
            f"--host {host} would let other machines edit photos here: add --share, and they need "
            "the key in the address that is printed"
        )
    check_model(model, device)
    key = secrets.token_urlsafe(16) if share else ""
    options = ServiceOptions(
        names=("embedded" if model == "embedded" else "local",),
        keys=(key,) if share else (),
        hosts=() if share else (*LOCAL, host),
        limits=Limits(together=together_on(device)),
    )
    service = create_app(process_workers(model, device, 1), options, page_routes, OPEN_PATHS)
    address = f"http://{host}:{port}/" + (f"#key={key}" if share else "")

    def ready() -> None:
        print(f"{address}  (Ctrl-C ends it)", file=sys.stderr)
        if open_browser:
            typer.launch(address)

    run(service, host, port, ready)
