"""What all endpoints share: documented errors, jobs of an owner, bodies read and accepted."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import UploadFile

from kandinsky.evaluate.study_store import StudyStore
from kandinsky.jobs import job_files
from kandinsky.jobs.records import JobRecord, State
from kandinsky.jobs.store import JobStore
from kandinsky.serve import condition_files, fields, uploads
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.fields import Asked
from kandinsky.serve.hub import Hub
from kandinsky.serve.intake import Intake, Wanted
from kandinsky.serve.keys import Owner
from kandinsky.serve.offers import Offers
from kandinsky.serve.settings import ServeSettings
from kandinsky.serve.shapes import Envelope, JobObject, job_object

LONGEST_KEY = 255
_WORDS = {
    400: "The request cannot be fulfilled.",
    401: "The server needs a key.",
    403: "Not from this page or host, or a limit of the key.",
    404: "There is no such job, file or model.",
    409: "The job is in another state.",
    413: "The body is too large.",
    415: "The body is neither JSON nor a form.",
    422: "The idempotency key belongs to another request.",
    426: "The address speaks WebSocket.",
    429: "Too many requests or jobs; `Retry-After` says when to try again.",
    503: "The server is about to end.",
    507: "The server's disk is almost full.",
}


def errors(*status: int) -> dict[int | str, dict[str, Any]]:
    """The errors that an endpoint may answer, for OpenAPI; those that the guard gives are always among them."""
    found = sorted({400, 401, 403, 413, *status})
    return {one: {"model": Envelope, "description": _WORDS[one]} for one in found}


ACCEPTING = (404, 415, 422, 429, 503, 507)


@dataclass(frozen=True, slots=True)
class House:
    """What the endpoints work with."""

    store: JobStore
    offers: Offers
    settings: ServeSettings
    intake: Intake
    hub: Hub
    studies: StudyStore

    async def job(self, job_id: str, owner: Owner) -> JobRecord:
        """A job of an owner.

        Raises:
            ApiError: There is none of this name, or it is somebody else's, which nobody can tell apart.
        """
        found = await asyncio.to_thread(self.store.get, job_id, owner=owner.name) if is_id(job_id) else None
        if found is None or found.source != "http":
            raise ApiError(404, f"there is no job `{job_id[:60]}`", code="not_found")
        return found

    async def shown(self, job: JobRecord, response: Response | None = None) -> JobObject:
        """A job as the API shows it, with its place in the queue; the response says when to ask again."""
        place = await asyncio.to_thread(self.store.place, job.id) if job.state == State.QUEUED else None
        if place is None and job.state == State.QUEUED:  # a worker has taken it since it was read
            now: JobRecord | None = await asyncio.to_thread(self.store.get, job.id)
            job = now or job
        if response is not None and not job.state.is_final:
            response.headers["openai-poll-after-ms"] = str(poll_after_ms(job, None if place is None else place.wait_s))
        return job_object(job, place)

    async def accept(self, owner: Owner, wanted: Wanted, key: str | None) -> tuple[JobRecord, bool]:
        """Store a job, under an idempotency key if there is one; says whether it is new."""
        work = functools.partial(self.intake.accept, owner, wanted, idempotency_key=key)
        brings = wanted.files or wanted.values.get("conditions")
        return await (uploads.apart(work) if brings else asyncio.to_thread(work))

    async def queue(self, request: Request, response: Response, owner: Owner, wanted: Wanted) -> JobObject:
        """Store the job of a request, and show it."""
        job, _ = await self.accept(owner, wanted, idempotency_key(request))
        return await self.shown(job, response)

    async def read(
        self, request: Request, kind: type[Asked], aliases: Mapping[str, str]
    ) -> tuple[fields.Body, dict[str, Any], dict[str, Any]]:
        """Read a body.

        Args:
            request: The request.
            kind: Its fields.
            aliases: Names of file fields, and what they are: `image`, `last_image`, `mask` or `video`.

        Returns:
            The body, which is to be closed; checked values; files.
        """
        body = await fields.read_body(request, largest=self.settings.upload_bytes)
        try:
            return body, *_parted(body, kind, aliases)
        except BaseException:
            await body.close()
            raise


def _parted(body: fields.Body, kind: type[Asked], aliases: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checked values of a body, and its files."""
    values, files = dict(body.values), dict[str, Any]()
    for name, what in aliases.items():
        parts: list[UploadFile] = body.files.pop(name, [])
        given = values.pop(name, None)
        if isinstance(given, list) and len(given) == 1:
            given = given[0]
        if not parts and given in (None, ""):
            continue
        if what in files or len(parts) > 1 or (parts and given is not None):
            raise ApiError(400, f"`{name}`: one {what} is taken", code="invalid_value", param=name)
        if not parts and not isinstance(given, str | dict):
            raise ApiError(400, f"`{name}` is not a file", code="invalid_value", param=name)
        files[what] = parts[0].file if parts else given
    if values.get("conditions") is not None:
        values["conditions"] = fields.listed("conditions", values["conditions"])
        for name in condition_files.named_in(values["conditions"]) & set(body.files):
            parts = body.files.pop(name)
            if len(parts) > 1:
                raise ApiError(400, f"`{name[:60]}`: one file is taken", code="invalid_value", param=name[:60])
            files[condition_files.NAMED + name] = parts[0].file
    if values.get("prompt_at") is not None:
        values["prompt_at"] = fields.timed(values["prompt_at"])
    if body.files:
        name = next(iter(body.files))
        raise ApiError(
            400, f"`{name[:60]}` is not a file field of this call", code="unknown_parameter", param=name[:60]
        )
    return fields.checked(kind, values), files


def idempotency_key(request: Request) -> str | None:
    """The header that makes a repetition safe.

    Raises:
        ApiError: It is empty or too long.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= LONGEST_KEY:
        raise ApiError(400, f"`Idempotency-Key` must have 1 to {LONGEST_KEY} characters", code="invalid_value")
    return key


def is_id(text: str) -> bool:
    return job_files.ID.fullmatch(text) is not None


def house_of(request: Request) -> House:
    house: House = request.app.state.house
    return house


def poll_after_ms(job: JobRecord, wait_s: float | None) -> int:
    """When it makes sense to ask again: sooner for quick models."""
    if job.state == State.QUEUED:
        return 500 if wait_s is None else round(min(5000, max(250, wait_s * 500)))
    return 500


def needs_prompt(values: Mapping[str, Any]) -> None:
    """Refuse a request without a prompt.

    Raises:
        ApiError: There is none.
    """
    if not str(values.get("prompt", "")).strip():
        raise ApiError(400, "`prompt` is missing: say what the result should show", code="missing", param="prompt")
