"""What the client raises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kandinsky.errors import BackendError, KandinskyError

if TYPE_CHECKING:
    from kandinsky.client.values import Job


class ApiError(KandinskyError):
    """The server answered with an error.

    Attributes:
        status: HTTP status.
        code: A word for programs.
        param: The field that is wrong.
        request_id: What the server's log calls the request.
        retry_after_s: When the server says another try makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class JobFailed(KandinskyError):  # noqa: N818 - as `NotFinite` and its sisters
    """A job ended without a result.

    Attributes:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        error = job.data.get("error") or {}
        super().__init__(error.get("message") or f"`{job.id}` was {job.status}", hint=error.get("hint") or None)
        self.job = job


def error_of(status: int, headers: Any, content: bytes) -> ApiError:
    """The error in an answer."""
    try:
        told = json.loads(content)["error"]
        message, code, param = str(told["message"]), told.get("code"), told.get("param")
    except (ValueError, KeyError, TypeError):
        message, code, param = f"the server answered {status}", None, None
    wait = headers.get("retry-after", "")
    return ApiError(
        message,
        status=status,
        code=code,
        param=param,
        request_id=headers.get("x-request-id"),
        retry_after_s=float(wait) if wait.isdigit() else None,
    )


def nobody_answers(url: str, error: Exception) -> BackendError:
    """The error where no connection holds."""
    return BackendError(
        f"no server answers at `{url}`: start `kandinsky serve`, or correct the address",
        hint=str(error) or type(error).__name__,
    )
