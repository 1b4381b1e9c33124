"""The synchronous client."""

from __future__ import annotations

import base64
import builtins
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from kandinsky.client import calls
from kandinsky.client.failures import JobFailed, error_of
from kandinsky.client.values import Event, Job, Lines, Model
from kandinsky.errors import needs_extra
from kandinsky.files import replacing

if TYPE_CHECKING:
    import httpx

IDLE_S = 60.0  # the server is heard of every 15 seconds


class Client:
    """Talks to a server.

    Args:
        url: Its address; the variable KANDINSKY_SERVER, or this machine, by default.
        key: Its key; the variable KANDINSKY_API_KEY by default.
        timeout_s: Longest wait for an answer.

    Raises:
        BackendError: httpx is not installed.
    """

    def __init__(self, url: str | None = None, *, key: str | None = None, timeout_s: float = 60.0) -> None:
        with needs_extra("httpx", "serve", "`kandinsky.client`"):
            import httpx
        self.url = calls.address(url)
        self._http = httpx.Client(base_url=self.url, headers=calls.headers_of(key), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- jobs --------------------------------------------------------------------------------------------------------

    def create(self, prompt: str = "", *, idempotency_key: str | None = None, **fields: Any) -> Job:
        """Queue a clip.

        Args:
            prompt: What it shows.
            idempotency_key: Makes a repetition safe; one is made up by default.
            fields: Fields of the API: `model`, `seconds`, `steps`, `seed`, …; `image` is a path, bytes, or
                ``{"id": …}`` of a job.

        Returns:
            The job, which waits.

        Raises:
            ApiError: The server refused it.
            RequestError: A file does not exist.
        """
        return self._job("POST", "/v1/videos", {"prompt": prompt, **fields}, key=idempotency_key)

    def extend(self, video: Any, prompt: str = "", **fields: Any) -> Job:
        """Queue the continuation of a clip; as for ``create``."""
        return self._job("POST", "/v1/videos/extensions", {"prompt": prompt, "video": video, **fields})

    def sound(self, video: Any, prompt: str = "", **fields: Any) -> Job:
        """Queue the generation of audio for a clip; as for ``create``."""
        return self._job("POST", "/v1/audio", {"prompt": prompt, "video": video, **fields})

    def remix(self, job: Job | str, prompt: str, **fields: Any) -> Job:
        """Queue a job again with another prompt, and with what else is given."""
        return self._job("POST", f"/v1/videos/{_name(job)}/remix", {"prompt": prompt, **fields})

    def images(self, prompt: str, **fields: Any) -> builtins.list[bytes]:
        """Make images and wait for them.

        Args:
            prompt: What they show.
            fields: Fields of the API: `n`, `size`, `output_format`, …

        Returns:
            The files' bytes.
        """
        answer = self._send("POST", "/v1/images/generations", {"prompt": prompt, **fields}, timeout_s=None)
        return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]

    def get(self, job: Job | str) -> Job:
        """A job as it stands."""
        return self._job("GET", f"/v1/jobs/{_name(job)}")

    def list(self, *, limit: int = 20, **filters: Any) -> builtins.list[Job]:
        """Jobs, the newest first; filters are `kind`, `status`, `after`, `order`."""
        query = {"limit": min(100, limit), **filters}
        answer = self._send("GET", "/v1/jobs", query=query)
        return [Job.of(one) for one in answer.json()["data"]]

    def cancel(self, job: Job | str) -> Job:
        """Stop a job; one that runs stops within a step."""
        return self._job("POST", f"/v1/jobs/{_name(job)}/cancel")

    def delete(self, job: Job | str) -> None:
        """Delete a finished job; cancel one that is not."""
        self._send("DELETE", f"/v1/jobs/{_name(job)}")

    def events(self, job: Job | str | None = None, *, after: int | None = None) -> Iterator[Event]:
        """What happens to a job until it ends, or to all jobs for ever; cut connections are taken up again.

        Args:
            job: The job; None = all of this key.
            after: Number of the event after which to begin.

        Yields:
            Events, as they happen.

        Raises:
            ApiError: The server refused.
        """
        import httpx

        path = "/v1/events" if job is None else f"/v1/jobs/{_name(job)}/events"
        tries = 0
        while True:
            headers = {} if after is None else {"Last-Event-ID": str(after)}
            try:
                timeout = httpx.Timeout(IDLE_S, connect=10.0)
                with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                    if answer.status_code != 200:
                        raise error_of(answer.status_code, answer.headers, answer.read())
                    lines = Lines()
                    for line in answer.iter_lines():
                        for event in lines.take(line):
                            tries, after = 0, event.id or after
                            yield event
                            if job is not None and event.kind in calls.FINAL:
                                return
            except httpx.TransportError:
                tries += 1
                if tries >= 10 * calls.TRIES:
                    raise
            time.sleep(calls.PAUSE_S)

    def wait(self, job: Job | str, *, on_event: Callable[[Event], object] | None = None) -> Job:
        """Wait until a job has ended.

        Args:
            job: The job.
            on_event: Called with each event.

        Returns:
            The finished job.

        Raises:
            JobFailed: It failed, or was cancelled.
        """
        for event in self.events(job):
            if on_event is not None:
                on_event(event)
        found = self.get(job)
        if found.status != "completed":
            raise JobFailed(found)
        return found

    def content(self, job: Job | str, *, variant: str | None = None) -> bytes:
        """The bytes of a result, or of its `thumbnail`, `spritesheet`, `audio`, `input`."""
        query = {} if variant is None else {"variant": variant}
        answer = self._send("GET", f"/v1/jobs/{_name(job)}/content", query=query)
        return answer.content

    def preview(self, job: Job | str) -> bytes:
        """A small WebP image of a clip that is being sampled."""
        return (self._send("GET", f"/v1/jobs/{_name(job)}/preview")).content

    def save(self, job: Job | str, target: str | Path, *, variant: str | None = None) -> Path:
        """Write a result to a file, completely or not at all."""
        data = self.content(job, variant=variant)
        with replacing(target) as part:
            part.write_bytes(data)
        return Path(target)

    # -- the server --------------------------------------------------------------------------------------------------

    def models(self) -> builtins.list[Model]:
        """The models of the server, and what each accepts."""
        return [Model.of(one) for one in (self._send("GET", "/v1/models")).json()["data"]]

    def is_ready(self) -> bool:
        """Whether a worker is there."""
        return bool((self._http.get("/ready")).status_code == 200)

    def _job(self, method: str, path: str, fields: dict[str, Any] | None = None, *, key: str | None = None) -> Job:
        return Job.of((self._send(method, path, fields, key=key)).json())

    def _send(
        self,
        method: str,
        path: str,
        fields: dict[str, Any] | None = None,
        *,
        query: dict[str, Any] | None = None,
        key: str | None = None,
        timeout_s: float | None = 60.0,
    ) -> httpx.Response:
        """Send a request; one that the server cannot take now is repeated, under one idempotency key."""
        import httpx

        parts = {} if fields is None else calls.parts_of(fields)
        headers = {"Idempotency-Key": key or secrets.token_hex(16)} if method == "POST" else {}
        for number in range(calls.TRIES):
            is_last = number + 1 == calls.TRIES
            try:
                answer = self._http.request(method, path, params=query, headers=headers, timeout=timeout_s, **parts)
            except httpx.TransportError:
                if is_last:
                    raise
                time.sleep(calls.pause(number, None))
                continue
            if answer.is_success:
                return answer
            error = error_of(answer.status_code, answer.headers, answer.content)
            if is_last or answer.status_code not in calls.TRY_AGAIN:
                raise error
            time.sleep(calls.pause(number, error.retry_after_s))
        raise AssertionError("unreachable")


def _name(job: Job | str) -> str:
    return job.id if isinstance(job, Job) else job
