"""A request of `kandinsky generate` that a running server of the same user fulfils: same bytes, and no torch here."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import Job
from kandinsky.errors import BackendError, KandinskyError, RequestError
from kandinsky.jobs.order import FORMATS
from kandinsky.model.card import Source
from kandinsky.model.values import Request
from kandinsky.serve import announced

if TYPE_CHECKING:
    from kandinsky.client import Client, Event
    from kandinsky.client.values import Job as Ordered

log = logging.getLogger(__name__)
# what a request may say for which nothing is sent but words and numbers
SENT = (
    "negative_prompt", "steps", "guidance", "shift", "cache", "expand", "expanded_prompt", "fps", "motion",
)  # fmt: skip
OWN = ("model", "prompt", "width", "height", "seconds", "seed")
LOOK_S = 10.0  # for an answer of a server on this machine
CLEAR_S = 10.0  # for a job that is stopped to end, within a step


def handed(
    source: Source, options: RunOptions, request: Request, job: Job, target: Path, *, quiet: bool
) -> dict[str, Any] | None:
    """Have a running server make a result.

    Args:
        source: The model.
        options: How it runs.
        request: What was asked for.
        job: The same, resolved; its seed is used.
        target: File to write.
        quiet: Whether nothing is shown but errors.

    Returns:
        The recipe of the file that was written; None if this process is to make it: no server suits, all its workers
        are busy, it refuses, or it is lost before the file is here.

    Raises:
        JobFailed: The server has begun the job, which failed or was cancelled: so it would here.
        RequestError: The file cannot be written.
    """
    fields = _fields(request, job, options, target)
    if fields is None:
        return None
    server = announced.find(source, options)
    if server is None or (server.needs_key and not os.environ.get("KANDINSKY_API_KEY")):
        return None
    from kandinsky.cli.progress import patient
    from kandinsky.cli.streams import say
    from kandinsky.client import ApiError, Client

    try:
        import httpx

        # this machine is reached without proxies, and hears a key only if it asks for one
        key = None if server.needs_key else ""
        with Client(server.url, key=key, timeout_s=LOOK_S, transport=httpx.HTTPTransport()) as client:
            if not client.is_free():
                log.info("all workers of the server at %s are busy: made here", server.url)
                return None
            ordered = _ordered(client, job, fields, target)
            is_over = False
            try:
                if not quiet:
                    say(f"made by the server at {server.url} (process {server.pid}); --no-server makes it here")
                with patient(job.prompt, quiet=quiet) as tell:

                    def on_event(event: Event) -> None:
                        if tell is not None and event.kind == "step":
                            tell(event.data["step"], event.data["steps"], None)

                    done = client.wait(ordered, on_event=on_event)
                is_over = True
                client.save(done, target)
                return dict(done.recipe)
            finally:
                _clear(client, ordered, is_over=is_over)
    except RequestError:  # the file cannot be written
        raise
    except (ApiError, BackendError, ValueError, LookupError, TypeError) as error:  # the last: it is no server of ours
        log.warning("the server at %s does not make it, this process does: %s", server.url, error)
        return None


def _fields(request: Request, job: Job, options: RunOptions, target: Path) -> dict[str, Any] | None:
    """The request in the words of the API; None if it cannot be said there to the last bit."""
    given = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    defaults = {f.name: f.default for f in dataclasses.fields(request)}
    chosen = {name: value for name, value in given.items() if name not in OWN and value != defaults[name]}
    kind = "image" if job.shape.frames == 1 else "video"
    suits = (
        chosen.keys() <= set(SENT)
        and not job.conditions
        and job.long is None
        and not options.loras
        and options.parallel is None
        and options.only is None
        and target.suffix[1:] in FORMATS[kind]
        and "%" not in target.name
    )
    if not suits:
        return None
    size = {} if request.width is None else {"width": request.width, "height": request.height}
    length = {} if kind == "image" or request.seconds is None else {"seconds": request.seconds}
    attention = {} if options.attention == "auto" else {"attention": options.attention}
    return {"model": request.model, "seed": job.seed, **size, **length, **attention, **chosen}


def _ordered(client: Client, job: Job, fields: dict[str, Any], target: Path) -> Ordered:
    form = target.suffix[1:]
    if job.shape.frames == 1:
        (ordered,) = client.create_images(job.prompt, output_format=form, **fields)
        return ordered
    return client.create(job.prompt, format=form, **fields)


def _clear(client: Client, ordered: Ordered, *, is_over: bool) -> None:
    """Leave nothing of a job at the server, which stops it first if it is not over. What fails here is only noted."""
    end = time.monotonic() + CLEAR_S
    try:
        if not is_over:
            left = client.cancel(ordered)
            while not left.is_over and time.monotonic() < end:
                time.sleep(0.05)
                left = client.get(ordered)
        client.delete(ordered)
    except (KandinskyError, OSError) as error:
        log.info("the server keeps the job `%s`: %s", ordered.id, error)
