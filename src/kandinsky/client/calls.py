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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from kandinsky.client.failures import ApiError, JobFailed, error_of, nobody_answers
from kandinsky.client.values import Event, Job, Lines, Model
from kandinsky.errors import RequestError, needs_extra
from kandinsky.model.given import KINDS, conditions_of, plain
from kandinsky.model.given import Given as Condition
from kandinsky.model.timeline import PromptAt, prompts_at

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
# A file in a call: a path, bytes, a finished job or its name, ``{"id": …}`` of one, or a `data:` URL.
File: TypeAlias = str | Path | bytes | Job | Mapping[str, str]
# What is known of a result; files of mappings are as above.
Given: TypeAlias = Condition | str | Mapping[str, Any]
# A prompt with the second it begins at, and possibly the one it ends at.
Timed: TypeAlias = PromptAt | tuple[Any, ...] | Mapping[str, Any]
URL = "http://127.0.0.1:8000"
VARIABLE, ADDRESS = "KANDINSKY_API_KEY", "KANDINSKY_SERVER"
FILES = ("image", "last_image", "mask", "video", "control", "reference")
OF_CONDITION = (*KINDS, "mask")
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


def create(
    prompt: str | Sequence[Timed] = "",
    *,
    image: File | None = None,
    last_image: File | None = None,
    video: File | None = None,
    control: File | None = None,
    reference: File | None = None,
    conditions: Given | Sequence[Given] | None = None,
    idempotency_key: str | None = None,
    **fields: Any,
) -> Call[Job]:
    """Queue a clip.

    Args:
        prompt: What it shows; or a list of prompts with the second each begins at.
        image: First frame; files are paths, bytes, finished jobs, their names, or `data:` URLs.
        last_image: Last frame.
        video: A clip that is changed, by `strength`, `mask`, `span`, `place` or `source_prompt`, or with `upscale`
            made larger as it is.
        control: A clip or an image that the result follows, through the control branch `branch`.
        reference: An image whose subject the result shows, through the reference branch `branch`.
        conditions: What else is known, as in Python: ``Frames``, ``Source``, ``Control``, ``Reference``, texts, or
            mappings of their values, whose files may be any of the above.
        idempotency_key: Makes a repetition safe; one is made up by default.
        fields: Fields of the API: `model`, `seconds`, `prompt_at`, `loop`, `upscale`, `steps`, `seed`, …; `mask` is a
            file too.

    Returns:
        The job, which waits.

    Raises:
        ApiError: The server refused it.
        BackendError: No server answers.
        RequestError: A file does not exist.
    """
    files = {"image": image, "last_image": last_image, "video": video, "control": control, "reference": reference}
    asked = {**_told(prompt, fields), **files, "conditions": conditions}
    return Call("POST", "/v1/videos", _job, asked, key=idempotency_key)


def edit(
    video: File,
    prompt: str = "",
    *,
    last_image: File | None = None,
    conditions: Given | Sequence[Given] | None = None,
    **fields: Any,
) -> Call[Job]:
    """Queue the change of a clip by `strength`, `mask`, `span`, `place` or `source_prompt`; as for ``create``."""
    asked = {"prompt": prompt, "video": video, **fields, "last_image": last_image, "conditions": conditions}
    return Call("POST", "/v1/videos/edits", _job, asked)


def extend(
    video: File,
    prompt: str | Sequence[Timed] = "",
    *,
    last_image: File | None = None,
    conditions: Given | Sequence[Given] | None = None,
    **fields: Any,
) -> Call[Job]:
    """Queue the continuation of a clip from its last frames; `seconds` are added. As for ``create``."""
    asked = {**_told(prompt, fields), "video": video, "last_image": last_image, "conditions": conditions}
    return Call("POST", "/v1/videos/extensions", _job, asked)


def sound(video: File, prompt: str = "", **fields: Any) -> Call[Job]:
    """Queue the generation of audio for a clip; as for ``create``."""
    return Call("POST", "/v1/audio", _job, {"prompt": prompt, "video": video, **fields})


def remix(job: Job | str, prompt: str, **fields: Any) -> Call[Job]:
    """Queue a job again with another prompt, and with what else is given."""
    return Call("POST", f"/v1/videos/{_name(job)}/remix", _job, {"prompt": prompt, **fields})


def images(prompt: str = "", **fields: Any) -> Call[builtins.list[bytes]]:
    """Make images and wait for them; with `image`, and possibly `mask`, edit one.

    Args:
        prompt: What they show.
        fields: Fields of the API: `n`, `size`, `output_format`, …

    Returns:
        The files' bytes.
    """

    def read(answer: httpx.Response) -> builtins.list[bytes]:
        return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]

    return Call("POST", _images(fields), read, {"prompt": prompt, **fields}, waits=True)


def create_images(prompt: str = "", **fields: Any) -> Call[builtins.list[Job]]:
    """Queue images without waiting for them; fields as for ``images``.

    Returns:
        A job for each image.
    """
    headers = {"Prefer": "respond-async"}
    return Call("POST", _images(fields), _jobs, {"prompt": prompt, **fields}, headers=headers)


def get(job: Job | str) -> Call[Job]:
    """A job as it stands."""
    return Call("GET", f"/v1/jobs/{_name(job)}", _job)


def list_jobs(*, limit: int = 20, **filters: Any) -> Call[builtins.list[Job]]:
    """Jobs, the newest first; filters are `kind`, `status`, `after`, `order`."""
    return Call("GET", "/v1/jobs", _jobs, query={"limit": min(100, limit), **filters})


def cancel(job: Job | str) -> Call[Job]:
    """Stop a job; one that runs stops within a step."""
    return Call("POST", f"/v1/jobs/{_name(job)}/cancel", _job)


def delete(job: Job | str) -> Call[None]:
    """Delete a finished job; cancel one that is not."""
    return Call("DELETE", f"/v1/jobs/{_name(job)}", lambda _: None)


def content(job: Job | str, *, variant: str | None = None) -> Call[bytes]:
    """The bytes of a result, or of its `thumbnail`, `spritesheet`, `audio`, `input`."""
    query = {} if variant is None else {"variant": variant}
    return Call("GET", f"/v1/jobs/{_name(job)}/content", _bytes, query=query)


def preview(job: Job | str) -> Call[bytes]:
    """A small WebP image of a clip that is being sampled."""
    return Call("GET", f"/v1/jobs/{_name(job)}/preview", _bytes)


def models() -> Call[builtins.list[Model]]:
    """The models of the server, and what each accepts."""
    return Call("GET", "/v1/models", lambda answer: [Model.of(one) for one in answer.json()["data"]])


def load(model: str) -> Call[Job]:
    """Have a model loaded before it is needed; the end of the job says that it is."""
    return Call("POST", f"/v1/models/{_part(model, 'model')}/load", _job)


def is_free(answer: httpx.Response) -> bool:
    """Whether what answers `/ready` has a worker that would begin a job at once."""
    if answer.status_code != 200:
        return False
    try:
        told = answer.json()
        return bool(told["queued"] == 0 and told["running"] < told["workers"])
    except (ValueError, KeyError, TypeError):  # no server of this library
        return False


def _told(prompt: str | Sequence[Timed], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with the prompt; of a list of prompts by time the first is the clip's own, as in Python.

    Raises:
        RequestError: The list is empty, or its first prompt does not begin with the clip.
    """
    if isinstance(prompt, str):
        return {"prompt": prompt, **fields}
    first, *later = prompts_at(prompt) or (None,)
    if first is None or first.at not in (0, "0", "0s") or first.until is not None:
        raise RequestError("the first of several prompts is the clip's own: give it as `('a panda', 0)`")
    return {**fields, "prompt": first.prompt, "prompt_at": [*later, *prompts_at(fields.get("prompt_at"))]}


def _images(fields: Mapping[str, Any]) -> str:
    return "/v1/images/generations" if fields.get("image") is None else "/v1/images/edits"


def _job(answer: httpx.Response) -> Job:
    return Job.of(answer.json())


def _jobs(answer: httpx.Response) -> builtins.list[Job]:
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


def opening(url: str | None, key: str | None, timeout_s: float) -> dict[str, Any]:
    """How a client of httpx is opened: address, headers and limits.

    Raises:
        BackendError: httpx is not installed.
    """
    with needs_extra("httpx", "serve", "`kandinsky.client`"):
        import httpx
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))
    return {"base_url": address(url), "headers": headers_of(key), "timeout": timeout}


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
    if "prompt_at" in given:
        given["prompt_at"] = [one.plain() for one in prompts_at(given["prompt_at"])]
    if isinstance(given.get("branch"), Path):
        raise RequestError(f"branch `{given['branch']}` is a path: give the name of one of the server's")
    if "conditions" in given:
        given["conditions"] = _conditions(given["conditions"], files)
    if not files:
        return {"json": given}
    return {"data": _form(given), "files": files}


def _conditions(values: Any, files: dict[str, Any]) -> builtins.list[dict[str, Any]]:
    """Conditions as JSON, with each file once among those of the form."""
    found = []
    names: dict[str, str] = {}
    if isinstance(values, str | Condition | Mapping):
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
        if name in ("conditions", "prompt_at"):
            found[name] = json.dumps(value)
        elif isinstance(value, Mapping):
            found |= {f"{name}[{key}]": str(inner) for key, inner in value.items()}
        elif isinstance(value, list | tuple):
            found[f"{name}[]"] = [str(one) for one in value]
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found
