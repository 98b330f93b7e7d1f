"""Errors as clients of the images API read them: `{error: {message, type, param, code}}`."""

from typing import Any

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """An answer other than a picture.

    retry: whether the client should send the request again, which its library then does by itself
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: bool = False,
        after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry, self.after = retry, after

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": _type(self.status)}
        return {"error": error | {"param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"x-should-retry": "true" if self.retry else "false"}
        if self.after is not None:
            headers["Retry-After"] = str(self.after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def _type(status: int) -> str:
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "invalid_request_error" if status < 500 else "server_error")
