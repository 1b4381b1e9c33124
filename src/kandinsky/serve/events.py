"""What happens to jobs, as server-sent events; a client that was cut off goes on with `Last-Event-ID`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent

from kandinsky.jobs.records import Place, State, StoredEvent
from kandinsky.serve.access import Access
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.routes import House, errors, house_of
from kandinsky.serve.videos import JobId

router = APIRouter()
PING_S = 15
PLACES_S = 2.0  # estimates are told anew at most this often
FINAL = ("completed", "failed", "cancelled")
ENDS = (*FINAL, "deleted")
MOVES = ("started", "queued", *ENDS)  # after these, the places of those that wait may be others
MOST_PLACES = 50
LARGEST = 2**62  # number of an event
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events."}
}
LastId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=30)]
After = Annotated[int | None, Query(ge=0, le=LARGEST, description="As `Last-Event-ID`, for clients without headers.")]


@router.get("/v1/events", response_class=EventSourceResponse, responses={**STREAM, **errors()}, tags=["events"])
async def all_events(request: Request, owner: Access, last_event_id: LastId = None, after: After = None) -> Any:
    """Events of all jobs of this key, from now on, or after an event."""
    house = house_of(request)
    begin = _number(last_event_id, after)
    if begin is None:
        begin = await asyncio.to_thread(house.store.last_event)
    return EventSourceResponse(_events(house, owner.name, None, begin), ping=PING_S)


@router.get(
    "/v1/videos/{job_id}/events",
    response_class=EventSourceResponse,
    responses={**STREAM, **errors(404)},
    tags=["events"],
)
@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={**STREAM, **errors(404)},
    tags=["events"],
)
async def job_events(
    request: Request, owner: Access, job_id: JobId, last_event_id: LastId = None, after: After = None
) -> Any:
    """Events of one job from its beginning, or after an event; the stream ends with the job."""
    house = house_of(request)
    job = await house.job(job_id, owner)
    return EventSourceResponse(_events(house, owner.name, job.id, _number(last_event_id, after) or 0), ping=PING_S)


def _number(header: str | None, query: int | None) -> int | None:
    if not header:
        return query
    if not (header.isascii() and header.isdigit()) or int(header) > LARGEST:
        raise ApiError(
            400, "`Last-Event-ID` is not the number of an event", code="invalid_value", param="Last-Event-ID"
        )
    return int(header)


async def _events(house: House, owner: str, job_id: str | None, after: int) -> AsyncIterator[ServerSentEvent]:
    places: dict[str, Place | None] = {}
    told_s = 0.0
    if job_id is not None:
        job = await asyncio.to_thread(house.store.get, job_id)
        if job is None:
            return
        if job.state.is_final:  # all that there will be
            for event in await asyncio.to_thread(house.store.events, after, job_id=job_id, limit=100_000):
                yield await _told(house, event)
            return
        after = await asyncio.to_thread(_begin, house, job_id, after)
    is_first, known = True, dict[str, bool]()
    async for events in house.hub.follow(after):
        mine = [e for e in events if e.owner == owner and (job_id is None or e.job == job_id)]
        if job_id is None and mine:
            mine = await asyncio.to_thread(_of_the_api, house, mine, known)
        for event in mine:
            yield await _told(house, event)
            if event.kind == "queued":
                places[event.job] = None
            elif event.kind in MOVES:
                places.pop(event.job, None)
            if job_id is not None and event.kind in ENDS:
                return
        has_moved = any(event.kind in MOVES for event in events)
        is_due = any(event.kind == "step" for event in events) and time.monotonic() - told_s >= PLACES_S
        if is_first or (places and (has_moved or is_due)):
            told_s = time.monotonic()
            if is_first:
                places = dict.fromkeys(await asyncio.to_thread(_waiting, house, owner, job_id)) | places
            is_first = False
            for waiting in list(places)[:MOST_PLACES]:
                place = await asyncio.to_thread(house.store.place, waiting)
                if place is not None and _is_news(places[waiting], place):
                    places[waiting] = place
                    data = {"job": waiting, "type": "queued", "place": place.place, "wait_s": place.wait_s,
                            "run_s": place.run_s}  # fmt: skip
                    yield ServerSentEvent(json.dumps(data), event="queued")  # without a number: it is not kept


def _is_news(known: Place | None, now: Place) -> bool:
    """Whether a place, or a second of the wait, is another."""
    if known is None or known.place != now.place or (known.wait_s is None) != (now.wait_s is None):
        return True
    return known.wait_s is not None and now.wait_s is not None and abs(known.wait_s - now.wait_s) >= 1


def _begin(house: House, job_id: str, after: int) -> int:
    """The number before a job's first event after a number, so that nobody looks through those of other jobs."""
    last = house.store.last_event()
    first = house.store.events(after, job_id=job_id, limit=1)
    return first[0].id - 1 if first else max(after, last)


def _of_the_api(house: House, events: list[StoredEvent], known: dict[str, bool]) -> list[StoredEvent]:
    """Those of jobs that came through the API; ``known`` remembers which did."""
    found = []
    for event in events:
        if event.kind == "deleted":
            known.pop(event.job, None)
            is_ours = "source" not in event.data
        else:
            if event.job not in known:
                job = house.store.get(event.job)
                known[event.job] = job is not None and job.source == "http"
            is_ours = known[event.job]
        if is_ours:
            found.append(event)
    return found


def _waiting(house: House, owner: str, job_id: str | None) -> list[str]:
    page = house.store.list(owner=owner, states=(State.QUEUED,), limit=MOST_PLACES, newest_first=False, source="http")
    return [job.id for job in page.jobs if job_id in (None, job.id)]


async def _told(house: House, event: StoredEvent) -> ServerSentEvent:
    data: dict[str, Any] = {"job": event.job, "type": event.kind, "at": round(event.at, 3), **event.data}
    if event.kind == "preview":
        data["url"] = f"/v1/jobs/{event.job}/preview?step={event.data.get('step', 0)}"
    if event.kind in FINAL:
        job = await asyncio.to_thread(house.store.get, event.job)
        if job is not None:
            data["object"] = (await house.shown(job)).model_dump(mode="json")
    return ServerSentEvent(json.dumps(data), event=event.kind, id=str(event.id))
