"""The synchronous client."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from kandinsky.client import calls
from kandinsky.client.failures import error_of, nobody_answers
from kandinsky.client.values import Event, Job
from kandinsky.files import replacing

if TYPE_CHECKING:
    import httpx

P = ParamSpec("P")
T = TypeVar("T")


def _sent(call: Callable[P, calls.Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """The method that sends a call of ``client/calls.py``, with its arguments and its words."""

    @functools.wraps(call)
    def send(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._ask(call(*args, **kwargs))

    return send


class Client:
    """Talks to a server.

    Args:
        url: Its address; the variable KANDINSKY_SERVER, or this machine, by default.
        key: Its key; the variable KANDINSKY_API_KEY by default; an empty one sends none.
        timeout_s: Longest wait for an answer.
        transport: How requests travel, as in httpx; None = over the network.

    Raises:
        BackendError: httpx is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        opening = calls.opening(url, key, timeout_s)
        import httpx

        self.url: str = opening["base_url"]
        self._http = httpx.Client(**opening, transport=transport)

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

    create = _sent(calls.create)
    edit = _sent(calls.edit)
    extend = _sent(calls.extend)
    sound = _sent(calls.sound)
    remix = _sent(calls.remix)
    images = _sent(calls.images)
    create_images = _sent(calls.create_images)
    get = _sent(calls.get)
    list = _sent(calls.list_jobs)
    cancel = _sent(calls.cancel)
    delete = _sent(calls.delete)
    content = _sent(calls.content)
    preview = _sent(calls.preview)

    def events(self, job: Job | str | None = None, *, after: int | None = None) -> Iterator[Event]:
        """What happens to a job until it ends, or to all jobs for ever; cut connections are taken up again.

        Args:
            job: The job; None = all of this key.
            after: Number of the event after which to begin.

        Yields:
            Events, as they happen.

        Raises:
            ApiError: The server refused.
            BackendError: No server answers.
        """
        import httpx

        following = calls.Following(self.url, job, after)
        timeout = httpx.Timeout(calls.IDLE_S, connect=calls.CONNECT_S)
        while True:
            try:
                with self._http.stream("GET", following.path, headers=following.headers(), timeout=timeout) as answer:
                    if answer.status_code == 200:
                        for line in answer.iter_lines():
                            yield from following.take(line)
                            if following.is_over:
                                return
                    else:
                        following.refused(error_of(answer.status_code, answer.headers, answer.read()))
                if job is not None and self.get(job).is_over:  # nothing was left to tell
                    return
            except httpx.TransportError as error:
                following.cut(error)
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
        return calls.completed(self.get(job))

    def save(self, job: Job | str, target: str | Path, *, variant: str | None = None) -> Path:
        """Write a result to a file, completely or not at all."""
        data = self.content(job, variant=variant)
        with replacing(target) as part:
            part.write_bytes(data)
        return Path(target)

    # -- the server --------------------------------------------------------------------------------------------------

    models = _sent(calls.models)
    load = _sent(calls.load)

    def is_ready(self) -> bool:
        """Whether a worker is there."""
        return bool((self._http.get("/ready")).status_code == 200)

    def is_free(self) -> bool:
        """Whether a worker is there that has nothing to do, and no job of anybody waits.

        Raises:
            BackendError: No server answers.
        """
        import httpx

        try:
            answer = self._http.get("/ready")
        except httpx.TransportError as error:
            raise nobody_answers(self.url, error) from error
        return calls.is_free(answer)

    def _ask(self, call: calls.Call[T]) -> T:
        """Send a call; one that the server cannot take now is repeated, under one idempotency key."""
        import httpx

        arguments = call.arguments()
        for attempt in calls.tries(self.url):
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.request(**arguments)
            except httpx.TransportError as error:
                outcome = error
            pause_s = attempt.pause_after(outcome)
            if pause_s is None and isinstance(outcome, httpx.Response):
                return call.read(outcome)
            time.sleep(pause_s or 0.0)
        raise AssertionError("the last try returns or raises")
