"""`/v1/images`: stills, answered when they are made, or as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from kandinsky.jobs import job_files
from kandinsky.jobs.records import JobRecord, State
from kandinsky.serve import fields
from kandinsky.serve.access import Access
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.envelope import body as envelope_body
from kandinsky.serve.intake import Wanted
from kandinsky.serve.keys import Owner
from kandinsky.serve.routes import ACCEPTING, House, errors, house_of, idempotency_key, needs_prompt
from kandinsky.serve.shapes import ImageData, ImagesResponse, JobList

router = APIRouter()
OURS = ("n", "response_format", "output_format", "output_compression", "quality", "moderation", "style", "background",
        "input_fidelity", "stream", "partial_images")  # fmt: skip
ENDS = ("completed", "failed", "cancelled", "deleted")
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    202: {"model": JobList, "description": "With the header `Prefer: respond-async`: the jobs, which were queued."},
}


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    responses={**STREAMED, **errors(*ACCEPTING)},
    openapi_extra=fields.request_body(fields.ImageFields, {}, needs=("prompt",)),
    tags=["images"],
)
async def generate_images(request: Request, owner: Access) -> Any:
    """Make images, with a model of images or a video model that makes stills; answered when they are made."""
    house = house_of(request)
    body, values, files = await house.read(request, fields.ImageFields, {})
    needs_prompt(values)
    try:
        return await _images(request, house, owner, values, files, "image_generation")
    finally:
        await body.close()


@router.post(
    "/v1/images/edits",
    response_model=ImagesResponse,
    responses={**STREAMED, **errors(*ACCEPTING)},
    openapi_extra=fields.request_body(
        fields.ImageFields,
        {"image": "The image.", "mask": "Transparent, or white, where it is repainted."},
        needs=("image",),
    ),
    tags=["images"],
)
async def edit_images(request: Request, owner: Access) -> Any:
    """Edit an image, or repaint a part of it, with a model that takes one."""
    house = house_of(request)
    body, values, files = await house.read(request, fields.ImageFields, {"image": "image", "mask": "mask"})
    try:
        if "image" not in files:
            raise ApiError(
                400, "`image` is missing: give the image that is to be edited", code="missing", param="image"
            )
        return await _images(request, house, owner, values, files, "image_edit")
    finally:
        await body.close()


async def _images(
    request: Request, house: House, owner: Owner, values: dict[str, Any], files: dict[str, Any], kind: str
) -> Any:
    asked = {name: values.pop(name) for name in OURS if name in values}
    form = asked.get("output_format") or "png"
    jobs: list[JobRecord] = []
    own: list[JobRecord] = []  # those that this request brought: a repetition does not cancel another's
    key = idempotency_key(request)
    after = house.hub.position
    try:
        for index in range(asked.get("n") or 1):
            wanted = Wanted(dict(values), files, still=True, form=form, index=index)
            of_index = key if key is None or index == 0 else f"{key} {index}"
            job, is_new = await house.accept(owner, wanted, of_index)
            jobs.append(job)
            if is_new:
                own.append(job)
    except ApiError:
        await _cancel(house, own)
        raise
    if "respond-async" in request.headers.get("prefer", ""):  # RFC 7240: the jobs go on when the client goes away
        shown = [await house.shown(job) for job in jobs]
        listed = JobList(data=shown, has_more=False, first_id=jobs[0].id, last_id=jobs[-1].id)
        told = {"preference-applied": "respond-async"}
        return JSONResponse(listed.model_dump(mode="json"), status_code=202, headers=told)
    if asked.get("stream"):
        return EventSourceResponse(
            _streamed(house, jobs, own, after, kind, form, asked.get("partial_images") or 0), ping=15
        )
    try:
        done = await _finished(request, house, jobs, own, after)
    except asyncio.CancelledError:
        await _cancel(house, own)
        raise
    data = [await _data(request, house, job, asked.get("response_format") or "b64_json") for job in done]
    result = dict(done[0].result or {})
    size = f"{result.get('width')}x{result.get('height')}"
    return ImagesResponse(created=int(time.time()), data=data, output_format=form, size=size)


async def _cancel(house: House, jobs: list[JobRecord]) -> None:
    for job in jobs:
        with suppress(Exception):
            await asyncio.to_thread(house.store.cancel, job.id)


async def _finished(
    request: Request, house: House, jobs: list[JobRecord], own: list[JobRecord], after: int
) -> list[JobRecord]:
    """Wait for jobs; cancel its own if the client goes away.

    Raises:
        ApiError: One of them failed.
    """
    left = {job.id for job in jobs}
    async for _ in house.hub.follow(after):
        found = [await asyncio.to_thread(house.store.get, job_id) for job_id in left]
        left -= {job.id for job in found if job is not None and job.state.is_final}
        if any(job is None for job in found) or not left:
            break
        if await request.is_disconnected():
            await _cancel(house, own)
            raise ApiError(400, "the client went away", code="cancelled")
    else:
        raise ApiError(503, "the server is about to end: the job waits in its queue", code="closing", retry_after_s=5)
    done = [await asyncio.to_thread(house.store.get, job.id) for job in jobs]
    for job in done:
        if job is None or job.state == State.CANCELLED:
            raise ApiError(400, "the job was cancelled", code="cancelled")
        if job.state == State.FAILED:
            error = dict(job.error or {})
            raise ApiError(500 if error.get("code") != "invalid_request" else 400, str(error.get("message", "failed")),
                           code=str(error.get("code", "failed")))  # fmt: skip
    return [job for job in done if job is not None]


async def _data(request: Request, house: House, job: JobRecord, form: str) -> ImageData:
    result = dict(job.result or {})
    revised = (result.get("recipe") or {}).get("expanded_prompt")
    if form == "url":
        url = str(request.url_for("video_content", job_id=job.id))
        return ImageData(url=url, revised_prompt=revised, id=job.id, seed=result.get("seed"))
    path = job_files.path_of(house.store.folder, job.id, result["file"])
    data = base64.b64encode(await asyncio.to_thread(path.read_bytes)).decode()
    return ImageData(b64_json=data, revised_prompt=revised, id=job.id, seed=result.get("seed"))


async def _streamed(
    house: House, jobs: list[JobRecord], own: list[JobRecord], after: int, kind: str, form: str, partial: int
) -> AsyncIterator[ServerSentEvent]:
    """Previews and results of images, in OpenAI's events."""
    places = {job.id: index for index, job in enumerate(jobs)}
    shown = dict.fromkeys(places, 0)
    left = set(places)

    def event(name: str, data: bytes, **more: Any) -> ServerSentEvent:
        told = {"type": name, "b64_json": base64.b64encode(data).decode(), "output_format": form, **more}
        return ServerSentEvent(json.dumps(told), event=name)

    async def ended(job_id: str) -> ServerSentEvent | None:
        """The last event of a job; None while there is none."""
        job = await asyncio.to_thread(house.store.get, job_id)
        if job is not None and not job.state.is_final:
            return None
        error: dict[str, Any] = {"message": "the job was cancelled", "code": "cancelled"}
        if job is not None and job.state == State.FAILED:
            error |= job.error or {}
        if job is not None and job.state == State.COMPLETED and job.result is not None:
            try:
                path = job_files.path_of(house.store.folder, job.id, job.result["file"])
                data = await asyncio.to_thread(path.read_bytes)
            except OSError:
                error = {"message": f"the files of `{job.id}` are gone", "code": "not_found"}
            else:
                size = f"{job.result['width']}x{job.result['height']}"
                return event(f"{kind}.completed", data, created_at=int(time.time()), size=size, id=job.id,
                             quality="auto", background="opaque", usage=None)  # fmt: skip
        told = envelope_body(500, str(error["message"]), str(error["code"]))
        return ServerSentEvent(json.dumps({"type": "error", **told}), event="error")

    try:
        for job in jobs:  # a repetition may come after the end
            if (last := await ended(job.id)) is not None:
                left.discard(job.id)
                yield last
        if not left:
            return
        async for events in house.hub.follow(after):
            for one in events:
                if one.job not in left:
                    continue
                if one.kind == "preview" and shown[one.job] < partial:
                    with suppress(OSError):
                        data = job_files.path_of(house.store.folder, one.job, job_files.PREVIEW).read_bytes()
                        yield event(f"{kind}.partial_image", data, partial_image_index=shown[one.job], id=one.job)
                        shown[one.job] += 1
                elif one.kind in ENDS and (last := await ended(one.job)) is not None:
                    left.discard(one.job)
                    yield last
            if not left:
                return
    finally:
        await _cancel(house, [job for job in own if job.id in left])
