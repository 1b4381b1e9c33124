"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from kandinsky.errors import BackendError, KandinskyError, RequestError, WeightsError
from kandinsky.model.option import in_fields

log = logging.getLogger(__name__)
LONGEST_WAIT_S = 120  # clients do not wait for longer
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    507: "insufficient_storage",
}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: What was given, what is allowed, what to do.
        code: A word for programs.
        param: The field that is wrong.
        retry_after_s: When another try makes sense.
        headers: Further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = _sendable(message)
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = None if param is None else _sendable(param)
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, min(LONGEST_WAIT_S, math.ceil(retry_after_s))))

    def answer(self) -> JSONResponse:
        return JSONResponse(body(self.status, self.message, self.code, self.param), self.status, self.headers)


def _sendable(text: str) -> str:
    """Text that may repeat half a surrogate of a request, which JSON can spell and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The envelope."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def told(error: KandinskyError, *, param: str | None = None) -> ApiError:
    """An error of the library as an answer."""
    message = in_fields(f"{error}; {error.hint}" if error.hint else str(error))
    if isinstance(error, RequestError):
        return ApiError(400, message, code="invalid_value", param=param)
    if isinstance(error, WeightsError | BackendError):
        return ApiError(400, message, code="model_not_available", param=param)
    return ApiError(500, message, code="internal_error")


def install(app: FastAPI) -> None:
    """Have every error of an application answered in the envelope."""

    async def of_api(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.answer()

    async def of_library(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, KandinskyError)
        return told(error).answer()

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message, headers = str(error.detail), dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(sorted(_methods(request)))
            message = f"`{request.method}` is not a method of this address: use {headers['Allow']}"
        if error.status_code == HTTPStatus.NOT_FOUND and message == "Not Found":
            message = "there is nothing at this address: see /openapi.json"
        return ApiError(error.status_code, message, headers=headers).answer()

    async def of_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        where = f"`{param}`: " if param else ""
        return ApiError(400, f"{where}{first['msg']}", code="invalid_value", param=param).answer()

    async def of_bug(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return ApiError(500, "the server failed; its log says why", code="internal_error").answer()

    app.add_exception_handler(ApiError, of_api)
    app.add_exception_handler(KandinskyError, of_library)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(Exception, of_bug)


class RangedFile(FileResponse):
    """A file, or a part of it; a part that is none is answered in the envelope."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: dict[str, str] | None = None

        async def answer(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refused = {name: value for name, value in Headers(raw=message["headers"]).items()
                           if name == "content-range"}  # fmt: skip
                error = ApiError(message["status"], "the file has no such part: see `Content-Range`", code="bad_range",
                                 headers=refused)  # fmt: skip
                await error.answer()(scope, receive, send)
            elif refused is None:
                await send(message)

        await super().__call__(scope, receive, answer)


def _methods(request: Request) -> set[str]:
    """Methods of an address; several routes may share it."""
    found: set[str] = set()
    for route in request.app.state.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            found |= set(route.methods or ())
    return found
