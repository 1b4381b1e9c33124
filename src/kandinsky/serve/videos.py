"""`/v1/videos`: clips, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from kandinsky.errors import RequestError
from kandinsky.jobs import job_files
from kandinsky.jobs.order import MEDIA_TYPES
from kandinsky.jobs.records import JobRecord, State
from kandinsky.serve import fields
from kandinsky.serve.access import Access
from kandinsky.serve.envelope import ApiError, RangedFile
from kandinsky.serve.intake import Wanted
from kandinsky.serve.routes import ACCEPTING, errors, house_of, needs_prompt
from kandinsky.serve.shapes import Deleted, Envelope, JobList, JobObject

router = APIRouter()
REFERENCES = {
    "input_reference": "image",
    "image": "image",
    "image_reference": "image",
    "last_image": "last_image",
    "mask": "mask",
    "video": "video",
    "control": "control",
    "reference": "reference",
}
_FOLLOWED = ("control", "reference")
EDITED = {name: name for name in ("video", "mask", "last_image", *_FOLLOWED)}
EXTENDED = {name: name for name in ("video", "last_image", *_FOLLOWED)}
_BRANCHES = {
    "control": "A clip or an image that the result follows, through a control branch.",
    "reference": "An image whose subject the result shows, through a reference branch.",
}
_CHANGED = {
    **_BRANCHES,
    "mask": "Where the video is made anew: white in an image of its size, or in a video of masks.",
    "last_image": "Last frame.",
}
JobId = Annotated[str, Path(description="The name of a job.", max_length=100)]
Variant = Literal["video", "image", "audio", "thumbnail", "spritesheet", "input"]
CREATED: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"openai-poll-after-ms": {"schema": {"type": "integer"}, "description": "When to ask again."}}}
}
KINDS = {**MEDIA_TYPES, "jpg": "image/jpeg"}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "Part of the file.", "content": {"application/octet-stream": {"schema": {"type": "string"}}}},
    304: {"description": "Not changed."},
    416: {"model": Envelope, "description": "There is no such part."},
}
for _name in sorted({*MEDIA_TYPES.values(), "image/jpeg", "video/x-matroska"}):
    BYTES[200]["content"][_name] = BYTES[206]["content"][_name] = {"schema": {"type": "string", "format": "binary"}}
BYTES[206]["content"]["multipart/byteranges"] = {"schema": {"type": "string"}}


@router.post(
    "/v1/videos",
    response_model=JobObject,
    responses={**CREATED, **errors(*ACCEPTING)},
    openapi_extra=fields.request_body(
        fields.VideoFields,
        {"input_reference": "First frame.", "image": "First frame.", "video": "The clip that is changed.", **_CHANGED},
    ),
    tags=["videos"],
)
async def create_video(request: Request, response: Response, owner: Access) -> JobObject:
    """Queue a clip. Form or JSON; `Idempotency-Key` makes a repetition safe."""
    house = house_of(request)
    body, values, files = await house.read(request, fields.VideoFields, REFERENCES)
    try:
        return await house.queue(request, response, owner, Wanted(values, files))
    finally:
        await body.close()


@router.get("/v1/videos", response_model=JobList, responses=errors(), tags=["videos"])
async def list_videos(
    request: Request,
    response: Response,
    owner: Access,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> JobList:
    """Clips, the newest first."""
    return await _listed(request, response, owner, ("video",), after, limit, order)


@router.get("/v1/jobs", response_model=JobList, responses=errors(), tags=["jobs"])
async def list_jobs(
    request: Request,
    response: Response,
    owner: Access,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    kind: Literal["video", "image", "audio"] | None = None,
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"] | None = None,
) -> JobList:
    """Jobs of all kinds, the newest first; `x-last-event-id` is where `/v1/events` goes on."""
    kinds = (kind,) if kind else ("video", "image", "audio")
    state = State("running" if status == "in_progress" else status) if status else None
    return await _listed(request, response, owner, kinds, after, limit, order, state)


async def _listed(
    request: Request,
    response: Response,
    owner: Access,
    kinds: tuple[str, ...],
    after: str | None,
    limit: int,
    order: str,
    state: State | None = None,
) -> JobList:
    house = house_of(request)
    last = await asyncio.to_thread(house.store.last_event)
    try:
        page = await asyncio.to_thread(
            house.store.list,
            owner=owner.name,
            kinds=kinds,
            states=(state,) if state else (),
            after=after,
            limit=limit,
            newest_first=order == "desc",
            source="http",
        )
    except RequestError as error:
        raise ApiError(400, str(error), code="invalid_value", param="after") from None
    shown = [await house.shown(job) for job in page.jobs]
    response.headers["x-last-event-id"] = str(last)
    ids = [job.id for job in page.jobs]
    return JobList(data=shown, has_more=page.more, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None)


@router.post(
    "/v1/videos/edits",
    response_model=JobObject,
    responses={**CREATED, **errors(*ACCEPTING)},
    openapi_extra=fields.request_body(
        fields.VideoFields, {"video": "The clip.", **_CHANGED}, needs=("prompt", "video")
    ),
    tags=["videos"],
)
async def edit_video(request: Request, response: Response, owner: Access) -> JobObject:
    """Change a clip: as a whole by `strength` or `source_prompt`, or where `mask`, `span` or `place` say."""
    house = house_of(request)
    body, values, files = await house.read(request, fields.VideoFields, EDITED)
    try:
        needs_prompt(values)
        if "video" not in files:
            raise ApiError(
                400, "`video` is missing: give the clip that is to be changed", code="missing", param="video"
            )
        return await house.queue(request, response, owner, Wanted(values, files))
    finally:
        await body.close()


@router.post(
    "/v1/videos/extensions",
    response_model=JobObject,
    responses={**CREATED, **errors(*ACCEPTING)},
    openapi_extra=fields.request_body(
        fields.VideoFields,
        {"video": "The clip that goes on.", "last_image": "Last frame.", **_BRANCHES},
        needs=("video",),
    ),
    tags=["videos"],
)
async def extend_video(request: Request, response: Response, owner: Access) -> JobObject:
    """Continue a clip from its last frames; `seconds` are added, and the result holds both parts."""
    house = house_of(request)
    body, values, files = await house.read(request, fields.VideoFields, EXTENDED)
    try:
        return await house.queue(request, response, owner, Wanted(values, files, extend=True))
    finally:
        await body.close()


@router.get("/v1/videos/{job_id}", response_model=JobObject, responses=errors(404), tags=["videos"])
@router.get("/v1/jobs/{job_id}", response_model=JobObject, responses=errors(404), tags=["jobs"])
async def retrieve_video(request: Request, response: Response, owner: Access, job_id: JobId) -> JobObject:
    """A job as it stands; `openai-poll-after-ms` says when to ask again."""
    house = house_of(request)
    return await house.shown(await house.job(job_id, owner), response)


@router.delete("/v1/videos/{job_id}", response_model=Deleted, responses=errors(404), tags=["videos"])
@router.delete("/v1/jobs/{job_id}", response_model=Deleted, responses=errors(404), tags=["jobs"])
async def delete_video(request: Request, owner: Access, job_id: JobId) -> Deleted:
    """Delete a finished job with its files; one that is not finished is cancelled, and stays in lists."""
    house = house_of(request)
    job = await house.job(job_id, owner)
    if not await asyncio.to_thread(house.store.delete, job.id, owner=owner.name):
        left = await asyncio.to_thread(house.store.cancel, job.id, owner=owner.name)
        if left is not None and left.state in (State.COMPLETED, State.FAILED):  # it ended in between
            await asyncio.to_thread(house.store.delete, job.id, owner=owner.name)
    return Deleted(id=job.id, object=f"{job.kind}.deleted")  # type: ignore[arg-type]


@router.post("/v1/videos/{job_id}/cancel", response_model=JobObject, responses=errors(404), tags=["videos"])
@router.post("/v1/jobs/{job_id}/cancel", response_model=JobObject, responses=errors(404), tags=["jobs"])
async def cancel_video(request: Request, response: Response, owner: Access, job_id: JobId) -> JobObject:
    """Stop a job within a step; a finished one stays as it is."""
    house = house_of(request)
    job = await house.job(job_id, owner)
    changed = await asyncio.to_thread(house.store.cancel, job.id, owner=owner.name)
    return await house.shown(changed or job, response)


@router.post("/v1/jobs/cancel", response_model=JobList, responses=errors(), tags=["jobs"])
async def cancel_jobs(
    request: Request, owner: Access, which: Annotated[Literal["queued", "all"], Query()] = "queued"
) -> JobList:
    """Cancel all jobs of this key that wait, or also those that run."""
    house = house_of(request)
    states = (State.QUEUED,) if which == "queued" else (State.QUEUED, State.RUNNING)

    def cancel() -> list[JobRecord]:
        page = house.store.list(owner=owner.name, states=states, limit=1000, source="http")
        return [job for one in page.jobs if (job := house.store.cancel(one.id, owner=owner.name)) is not None]

    jobs = await asyncio.to_thread(cancel)
    ids = [job.id for job in jobs]
    return JobList(
        data=[await house.shown(job) for job in jobs],
        has_more=False,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
    )


@router.post(
    "/v1/videos/{job_id}/remix",
    response_model=JobObject,
    responses={**CREATED, **errors(*ACCEPTING)},
    openapi_extra=fields.request_body(
        fields.RemixFields,
        {"image": "First frame.", "video": "The clip it is made from.", **_CHANGED},
        needs=("prompt",),
    ),
    tags=["videos"],
)
async def remix_video(request: Request, response: Response, owner: Access, job_id: JobId) -> JobObject:
    """Make a clip again with another prompt, and with what else is given; the seed stays."""
    house = house_of(request)
    parent = await house.job(job_id, owner)
    body, values, files = await house.read(request, fields.RemixFields, REFERENCES)
    try:
        needs_prompt(values)
        form = str(parent.order.get("form", ""))
        wanted = Wanted(
            values, files, still=parent.kind == "image", sound=parent.kind == "audio",
            extend=bool(parent.order.get("before")), parent=parent, form=form,
        )  # fmt: skip
        return await house.queue(request, response, owner, wanted)
    finally:
        await body.close()


@router.get("/v1/videos/{job_id}/content", response_class=Response, responses={**BYTES, **errors(404)}, tags=["videos"])
@router.get("/v1/jobs/{job_id}/content", response_class=Response, responses={**BYTES, **errors(404)}, tags=["jobs"])
async def video_content(
    request: Request,
    owner: Access,
    job_id: JobId,
    variant: Variant | None = None,
    download: bool = False,
) -> Response:
    """The result, or another view of it; ranges are served."""
    house = house_of(request)
    job = await house.job(job_id, owner)
    return await asyncio.to_thread(_content, house.store.folder, job, variant, download)


def _content(folder: Any, job: JobRecord, variant: Variant | None, download: bool) -> Response:
    result = dict(job.result or {})
    if variant == "input":
        request = job.order.get("request", {})
        name = request.get("video") or job.order.get("before") or request.get("image")
        kind = "image/png" if str(name).endswith(".png") else "video/mp4"
    else:
        if job.state != State.COMPLETED:
            why = f"is {job.state}" if job.state.is_final else "is not finished yet"
            raise ApiError(404, f"`{job.id}` {why}: it has no content", code="not_ready")
        is_clip = str(result.get("media_type", "")).startswith("video/") or job.kind == "video"
        own = (variant in (None, job.kind) and variant != "audio") or (variant == "video" and is_clip)
        name = result.get("file" if own else str(variant))
        kind = KINDS.get(str(name).rpartition(".")[2], "application/octet-stream")
    if not name:
        raise ApiError(404, f"`{job.id}` has no {variant}", code="not_found", param="variant")
    try:
        os.close(job_files.open_file(folder, job.id, name))
    except (OSError, RequestError):
        raise ApiError(404, f"the files of `{job.id}` are gone", code="not_found") from None
    path = job_files.path_of(folder, job.id, name)
    shown = f"{job.kind}-{job.id[4:12]}{path.suffix}"
    how = "attachment" if download else "inline"
    return RangedFile(
        path,
        media_type=kind,
        filename=shown,
        content_disposition_type=how,
        headers={"cache-control": "private, max-age=3600"},
    )


@router.get(
    "/v1/videos/{job_id}/preview",
    response_class=Response,
    responses={200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}}, **errors(404)},
    tags=["videos"],
)
@router.get(
    "/v1/jobs/{job_id}/preview",
    response_class=Response,
    responses={200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}}, **errors(404)},
    tags=["jobs"],
)
async def video_preview(request: Request, owner: Access, job_id: JobId) -> Response:
    """A small image of a clip that is being sampled, as it is predicted now."""
    house = house_of(request)
    job = await house.job(job_id, owner)

    def read() -> bytes:
        try:
            with open(job_files.open_file(house.store.folder, job.id, job_files.PREVIEW), "rb") as file:  # noqa: PTH123
                return file.read()
        except OSError:
            raise ApiError(404, f"`{job.id}` has no preview", code="not_found") from None

    return Response(await asyncio.to_thread(read), media_type="image/webp", headers={"cache-control": "no-store"})
