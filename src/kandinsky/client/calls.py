"""Every call of the API as a value: what is sent, how the answer is read, and when it is tried again.

``Client`` and ``AsyncClient`` only send them.
"""

from __future__ import annotations

import base64
import builtins
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from kandinsky.client.failures import ApiError, JobFailed, error_of, nobody_answers
from kandinsky.client.values import Event, Job, Lines, Model
from kandinsky.errors import RequestError
from kandinsky.model.given import Frames, Source, conditions_of, plain

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
# A file in a call: a path, bytes, a finished job or its name, ``{"id": …}`` of one, or a `data:` URL.
File: TypeAlias = str | Path | bytes | Job | Mapping[str, str]
# What is known of a result; files of mappings are as above.
Given: TypeAlias = Frames | Source | str | Mapping[str, Any]
URL = "http://127.0.0.1:8000"
VARIABLE, ADDRESS = "KANDINSKY_API_KEY", "KANDINSKY_SERVER"
FILES = ("image", "last_image", "mask", "video")
OF_CONDITION = ("frames", "source", "mask")
_JOB = re.compile(r"job_[0-9a-f]{32}")
FINAL = ("completed", "failed", "cancelled", "deleted")
TRIES, PAUSE_S = 3, 0.5
CUTS = 30  # of a stream, in a row, before it is given up
TRY_AGAIN = (429, 502, 503, 504)
CONNECT_S = 10.0
IDLE_S = 60.0  # of a stream; the server is heard of every 15 seconds


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call.

    Attributes:
        method: HTTP method.
        path: Path of the address.
        read: What the answer means.
        fields: Fields of the body; None = no body.
        query: Fields of the query.
        headers: Further headers.
        key: Idempotency key; None makes one up where it matters.
        waits: Whether the answer comes when the work is done, so that there is no limit of time.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    fields: Mapping[str, Any] | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    waits: bool = False

    def arguments(self) -> dict[str, Any]:
        """Arguments for ``httpx``'s `request`, the same for each try.

        Raises:
            RequestError: A file does not exist.
        """
        headers = dict(self.headers)
        if self.method == "POST":
            headers["Idempotency-Key"] = self.key or secrets.token_hex(16)
        told: dict[str, Any] = {"method": self.method, "url": self.path, "params": self.query, "headers": headers}
        if self.waits:
            told["timeout"] = None
        return told | ({} if self.fields is None else parts_of(self.fields))


# -- the calls -------------------------------------------------------------------------------------------------------


def create(prompt: str, fields: Mapping[str, Any], key: str | None) -> Call[Job]:
    return Call("POST", "/v1/videos", _job, {"prompt": prompt, **fields}, key=key)


def edit(video: Any, prompt: str, fields: Mapping[str, Any]) -> Call[Job]:
    return Call("POST", "/v1/videos/edits", _job, {"prompt": prompt, "video": video, **fields})


def extend(video: Any, prompt: str, fields: Mapping[str, Any]) -> Call[Job]:
    return Call("POST", "/v1/videos/extensions", _job, {"prompt": prompt, "video": video, **fields})


def sound(video: Any, prompt: str, fields: Mapping[str, Any]) -> Call[Job]:
    return Call("POST", "/v1/audio", _job, {"prompt": prompt, "video": video, **fields})


def remix(job: Job | str, prompt: str, fields: Mapping[str, Any]) -> Call[Job]:
    return Call("POST", f"/v1/videos/{_name(job)}/remix", _job, {"prompt": prompt, **fields})


def images(prompt: str, fields: Mapping[str, Any]) -> Call[list[bytes]]:
    def read(answer: httpx.Response) -> list[bytes]:
        return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]

    return Call("POST", _images(fields), read, {"prompt": prompt, **fields}, waits=True)


def create_images(prompt: str, fields: Mapping[str, Any]) -> Call[list[Job]]:
    headers = {"Prefer": "respond-async"}
    return Call("POST", _images(fields), _jobs, {"prompt": prompt, **fields}, headers=headers)


def get(job: Job | str) -> Call[Job]:
    return Call("GET", f"/v1/jobs/{_name(job)}", _job)


def list_jobs(limit: int, filters: Mapping[str, Any]) -> Call[builtins.list[Job]]:
    return Call("GET", "/v1/jobs", _jobs, query={"limit": min(100, limit), **filters})


def cancel(job: Job | str) -> Call[Job]:
    return Call("POST", f"/v1/jobs/{_name(job)}/cancel", _job)


def delete(job: Job | str) -> Call[None]:
    return Call("DELETE", f"/v1/jobs/{_name(job)}", lambda _: None)


def content(job: Job | str, variant: str | None) -> Call[bytes]:
    query = {} if variant is None else {"variant": variant}
    return Call("GET", f"/v1/jobs/{_name(job)}/content", _bytes, query=query)


def preview(job: Job | str) -> Call[bytes]:
    return Call("GET", f"/v1/jobs/{_name(job)}/preview", _bytes)


def models() -> Call[list[Model]]:
    return Call("GET", "/v1/models", lambda answer: [Model.of(one) for one in answer.json()["data"]])


def load(model: str) -> Call[Job]:
    return Call("POST", f"/v1/models/{_part(model, 'model')}/load", _job)


def _images(fields: Mapping[str, Any]) -> str:
    return "/v1/images/generations" if fields.get("image") is None else "/v1/images/edits"


def _job(answer: httpx.Response) -> Job:
    return Job.of(answer.json())


def _jobs(answer: httpx.Response) -> list[Job]:
    return [Job.of(one) for one in answer.json()["data"]]


def _bytes(answer: httpx.Response) -> bytes:
    return answer.content


def _name(job: Job | str) -> str:
    return _part(job.id if isinstance(job, Job) else job, "job")


def _part(name: str, what: str) -> str:
    """A name as one part of a path.

    Raises:
        RequestError: It is empty or would lead to another path.
    """
    if name in ("", ".", ".."):
        raise RequestError(f"`{name}` is not the name of a {what}: pass one that the server gave")
    return quote(name, safe="")


# -- sending ---------------------------------------------------------------------------------------------------------


class Try:
    """One try of a call: says whether to wait and try again, or what went wrong."""

    def __init__(self, url: str, number: int) -> None:
        self._url, self._number = url, number

    def pause_after(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try; None = the answer is good.

        Raises:
            ApiError: The server refused, and another try makes no sense.
            BackendError: Nobody answers.
        """
        is_last = self._number + 1 == TRIES
        pause_s: float = PAUSE_S * 2**self._number
        if isinstance(outcome, Exception):
            if is_last:
                raise nobody_answers(self._url, outcome) from outcome
            return pause_s
        if outcome.is_success:
            return None
        error = error_of(outcome.status_code, outcome.headers, outcome.content)
        if is_last or outcome.status_code not in TRY_AGAIN:
            raise error
        return pause_s if error.retry_after_s is None else error.retry_after_s


def tries(url: str) -> Iterator[Try]:
    """The tries of one call; the last one raises."""
    return (Try(url, number) for number in range(TRIES))


class Following:
    """A stream of events, also over cut connections.

    Args:
        url: Address of the server.
        job: The job; None = all.
        after: Number of the event after which to begin.
    """

    def __init__(self, url: str, job: Job | str | None, after: int | None) -> None:
        self.path = "/v1/events" if job is None else f"/v1/jobs/{_name(job)}/events"
        self.is_over = False
        self._url, self._ends, self._after, self._cuts = url, job is not None, after, 0
        self._lines = Lines()

    def headers(self) -> dict[str, str]:
        """Headers of the next connection, which goes on where the last one ended."""
        self._lines = Lines()
        return {} if self._after is None else {"Last-Event-ID": str(self._after)}

    def take(self, line: str) -> Iterator[Event]:
        """The event that a line ends, if any; ``is_over`` when it was the last one of the job."""
        for event in self._lines.take(line):
            self._cuts, self._after = 0, event.id or self._after
            self.is_over = self._ends and event.kind in FINAL
            yield event

    def refused(self, error: ApiError) -> None:
        """The server, or what stands before it, did not let the stream begin.

        Raises:
            ApiError: It will not later either, or was asked too often.
        """
        self._cuts += 1
        if error.status not in TRY_AGAIN or self._cuts >= CUTS:
            raise error

    def cut(self, error: httpx.TransportError) -> None:
        """The connection broke.

        Raises:
            BackendError: Once too often.
        """
        self._cuts += 1
        if self._cuts >= CUTS:
            raise nobody_answers(self._url, error) from error


def completed(job: Job) -> Job:
    """The job.

    Raises:
        JobFailed: It has no result.
    """
    if job.status != "completed":
        raise JobFailed(job)
    return job


def headers_of(key: str | None) -> dict[str, str]:
    """The header with a key; None takes the one of the environment, an empty one sends none."""
    key = os.environ.get(VARIABLE) if key is None else key
    return {"Authorization": f"Bearer {key}"} if key else {}


def address(url: str | None) -> str:
    """The address that is meant; None takes the one of the environment, or this machine."""
    return (url or os.environ.get(ADDRESS) or URL).rstrip("/")


def parts_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for httpx: JSON, or a form if there are files.

    Args:
        fields: Fields of a call; files are paths, bytes, jobs, their names, also as ``{"id": …}``, or `data:` URLs.

    Returns:
        `json`, or `data` and `files`.

    Raises:
        RequestError: A file does not exist.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    files: dict[str, Any] = {}
    for name in FILES:
        if name in given:
            sent = _reference(given.pop(name), name, name, files)
            if name not in files:
                given[name] = sent
    if "conditions" in given:
        given["conditions"] = _conditions(given["conditions"], files)
    if not files:
        return {"json": given}
    return {"data": _form(given), "files": files}


def _conditions(values: Any, files: dict[str, Any]) -> builtins.list[dict[str, Any]]:
    """Conditions as JSON, with each file once among those of the form."""
    found = []
    names: dict[str, str] = {}
    if isinstance(values, str | Frames | Source | Mapping):
        values = [values]
    for one in values:
        mapping = dict(one) if isinstance(one, Mapping) else plain(*conditions_of([one]))
        for key in OF_CONDITION:
            if (value := mapping.get(key)) is not None:
                place = str(value) if isinstance(value, str | Path) else f"#{len(names)}"
                name = names.setdefault(place, f"conditions-{len(names) + 1}")
                mapping[key] = name if name in files else _reference(value, key, name, files)
        found.append(mapping)
    return found


def _reference(value: Any, what: str, name: str, files: dict[str, Any]) -> Any:
    """What names a file in a body: its field, once it is among the files; a job, or a `data:` URL.

    Raises:
        RequestError: It does not exist.
    """
    if isinstance(value, Job):
        return {"id": value.id}
    if isinstance(value, str) and _JOB.fullmatch(value):
        return {"id": value}
    if isinstance(value, bytes):
        files[name] = (name, value)
        return name
    if isinstance(value, str | Path) and not str(value).startswith("data:"):
        path = Path(value)
        if not path.is_file():
            raise RequestError(f"{what} `{path}` is not a file")
        files[name] = (path.name, path.read_bytes())
        return name
    return value


def _form(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name == "conditions":
            found[name] = json.dumps(value)
        elif isinstance(value, Mapping):
            found |= {f"{name}[{key}]": str(inner) for key, inner in value.items()}
        elif isinstance(value, list | tuple):
            found[f"{name}[]"] = [str(one) for one in value]
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found
