"""`/v1/audio`: audio for a clip. A job as for clips; its result is a copy of the clip with the audio, or the audio."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from kandinsky.serve import fields
from kandinsky.serve.access import Access
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.intake import Wanted
from kandinsky.serve.routes import ACCEPTING, errors, house_of
from kandinsky.serve.shapes import JobObject
from kandinsky.serve.videos import CREATED

router = APIRouter()


@router.post(
    "/v1/audio",
    response_model=JobObject,
    responses={**CREATED, **errors(*ACCEPTING)},
    openapi_extra=fields.request_body(fields.AudioFields, {"video": "The clip."}, needs=("video",)),
    tags=["audio"],
)
async def create_audio(request: Request, response: Response, owner: Access) -> JobObject:
    """Queue the generation of audio for a clip: a file, or `{"id": …}` of a job; follow it at `/v1/videos/{id}`."""
    house = house_of(request)
    body, values, files = await house.read(request, fields.AudioFields, {"video": "video"})
    try:
        if "video" not in files:
            raise ApiError(400, "`video` is missing: give the clip that is to be heard", code="missing", param="video")
        return await house.queue(request, response, owner, Wanted(values, files, sound=True))
    finally:
        await body.close()
