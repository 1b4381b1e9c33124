"""The synchronous client."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kandinsky.client import calls
from kandinsky.client.calls import File, Given
from kandinsky.client.failures import error_of
from kandinsky.client.values import Event, Job, Model
from kandinsky.errors import needs_extra
from kandinsky.files import replacing

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


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
        with needs_extra("httpx", "serve", "`kandinsky.client`"):
            import httpx
        self.url = calls.address(url)
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, calls.CONNECT_S))
        self._http = httpx.Client(
            base_url=self.url, headers=calls.headers_of(key), timeout=timeout, transport=transport
        )

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

    def create(
        self,
        prompt: str = "",
        *,
        image: File | None = None,
        last_image: File | None = None,
        video: File | None = None,
        conditions: Given | Sequence[Given] | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Job:
        """Queue a clip.

        Args:
            prompt: What it shows.
            image: First frame; files are paths, bytes, finished jobs, their names, or `data:` URLs.
            last_image: Last frame.
            video: A clip that is changed, by `strength`, `mask`, `span`, `place` or `source_prompt`.
            conditions: What else is known, as in Python: ``Frames``, ``Source``, texts, or mappings of their values,
                whose files may be any of the above.
            idempotency_key: Makes a repetition safe; one is made up by default.
            fields: Fields of the API: `model`, `seconds`, `steps`, `seed`, …; `mask` is a file too.

        Returns:
            The job, which waits.

        Raises:
            ApiError: The server refused it.
            BackendError: No server answers.
            RequestError: A file does not exist.
        """
        files = {"image": image, "last_image": last_image, "video": video, "conditions": conditions}
        return self._ask(calls.create(prompt, {**fields, **files}, idempotency_key))

    def edit(
        self,
        video: File,
        prompt: str = "",
        *,
        last_image: File | None = None,
        conditions: Given | Sequence[Given] | None = None,
        **fields: Any,
    ) -> Job:
        """Queue the change of a clip by `strength`, `mask`, `span`, `place` or `source_prompt`; as for ``create``."""
        return self._ask(calls.edit(video, prompt, {**fields, "last_image": last_image, "conditions": conditions}))

    def extend(
        self,
        video: File,
        prompt: str = "",
        *,
        last_image: File | None = None,
        conditions: Given | Sequence[Given] | None = None,
        **fields: Any,
    ) -> Job:
        """Queue the continuation of a clip from its last frames; `seconds` are added. As for ``create``."""
        return self._ask(calls.extend(video, prompt, {**fields, "last_image": last_image, "conditions": conditions}))

    def sound(self, video: File, prompt: str = "", **fields: Any) -> Job:
        """Queue the generation of audio for a clip; as for ``create``."""
        return self._ask(calls.sound(video, prompt, fields))

    def remix(self, job: Job | str, prompt: str, **fields: Any) -> Job:
        """Queue a job again with another prompt, and with what else is given."""
        return self._ask(calls.remix(job, prompt, fields))

    def images(self, prompt: str = "", **fields: Any) -> builtins.list[bytes]:
        """Make images and wait for them; with `image`, and possibly `mask`, edit one.

        Args:
            prompt: What they show.
            fields: Fields of the API: `n`, `size`, `output_format`, …

        Returns:
            The files' bytes.
        """
        return self._ask(calls.images(prompt, fields))

    def create_images(self, prompt: str = "", **fields: Any) -> builtins.list[Job]:
        """Queue images without waiting for them; fields as for ``images``.

        Returns:
            A job for each image.
        """
        return self._ask(calls.create_images(prompt, fields))

    def get(self, job: Job | str) -> Job:
        """A job as it stands."""
        return self._ask(calls.get(job))

    def list(self, *, limit: int = 20, **filters: Any) -> builtins.list[Job]:
        """Jobs, the newest first; filters are `kind`, `status`, `after`, `order`."""
        return self._ask(calls.list_jobs(limit, filters))

    def cancel(self, job: Job | str) -> Job:
        """Stop a job; one that runs stops within a step."""
        return self._ask(calls.cancel(job))

    def delete(self, job: Job | str) -> None:
        """Delete a finished job; cancel one that is not."""
        self._ask(calls.delete(job))

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

    def content(self, job: Job | str, *, variant: str | None = None) -> bytes:
        """The bytes of a result, or of its `thumbnail`, `spritesheet`, `audio`, `input`."""
        return self._ask(calls.content(job, variant))

    def preview(self, job: Job | str) -> bytes:
        """A small WebP image of a clip that is being sampled."""
        return self._ask(calls.preview(job))

    def save(self, job: Job | str, target: str | Path, *, variant: str | None = None) -> Path:
        """Write a result to a file, completely or not at all."""
        data = self.content(job, variant=variant)
        with replacing(target) as part:
            part.write_bytes(data)
        return Path(target)

    # -- the server --------------------------------------------------------------------------------------------------

    def models(self) -> builtins.list[Model]:
        """The models of the server, and what each accepts."""
        return self._ask(calls.models())

    def load(self, model: str) -> Job:
        """Have a model loaded before it is needed; the end of the job says that it is."""
        return self._ask(calls.load(model))

    def is_ready(self) -> bool:
        """Whether a worker is there."""
        return bool((self._http.get("/ready")).status_code == 200)

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
