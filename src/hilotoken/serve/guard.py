"""What every request passes first: host, origin, API key, size of the body, a request id."""

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError

OPEN = ("/healthz", "/readyz")  # which a load balancer asks, without a key
LOOPBACK = ("localhost", "127.0.0.1", "::1")
log = logging.getLogger("hilotoken.serve")


class Guard:
    """ASGI middleware. Logs a line a request: id, route, status, seconds; no photo and no prompt.

    keys:  API keys; none asks for none
    hosts: names that the service may be called by, so that no other site's name can lead a
           browser here; empty takes any
    open_paths: prefixes that need no key, such as a page's own files
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str] = (),
        hosts: Sequence[str] = LOOPBACK,
        max_body: int = 150_000_000,
        open_paths: Sequence[str] = (),
    ) -> None:
        self.app, self.hosts, self.max_body = app, hosts, max_body
        self.keys = [_digest(key) for key in keys]
        self.open_paths = (*OPEN, *open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number, started, status = f"req_{secrets.token_hex(12)}", time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        scope.setdefault("state", {})["request_id"] = number
        try:
            self._check(scope)
            await self.app(scope, self._counted(receive), answer)
        except ApiError as error:
            await error.response()(scope, receive, answer)
        finally:
            if scope["path"] not in OPEN:  # which are asked every few seconds
                self._log(scope, status, time.monotonic() - started)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        state, route = scope["state"], getattr(scope.get("route"), "path", "-")
        said = (state["request_id"], scope["method"], route, status, state.get("job", "-"))
        log.info("%s %s %s %s %s %.3f", *said, seconds)

    def _check(self, scope: Scope) -> None:
        """Raise ApiError for a request that may not pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and _name(host) not in self.hosts:
            raise ApiError(403, "not served by that host name: see --allow-host", code="host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "requests from other sites' pages are refused", code="origin")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            raise _too_large(self.max_body)
        path = scope["path"]
        if self.keys and not any(_below(path, prefix) for prefix in self.open_paths):
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, given: str) -> None:
        """Compare with every key, in a time that tells nothing of them."""
        found = _digest(given.removeprefix("Bearer ").strip())
        matches = [hmac.compare_digest(found, key) for key in self.keys]
        if not any(matches):
            raise ApiError(
                401, "no API key, or a wrong one: send Authorization: Bearer KEY", code="api_key"
            )

    def _counted(self, receive: Receive) -> Receive:
        """The body, up to the limit, however it is sent."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body:
                raise _too_large(self.max_body)
            return message

        return limited


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes: send a smaller picture")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    return urlsplit(f"//{host}").hostname or ""


def _below(path: str, prefix: str) -> bool:
    return path == prefix or (prefix.endswith("/") and path.startswith(prefix) and prefix != "/")
