"""What the server answers, as OpenAPI shows it; fields of OpenAI's come first, ours follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from kandinsky.jobs.records import JobRecord, Place, State

STATUS = {
    State.QUEUED: "queued",
    State.RUNNING: "in_progress",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Envelope(BaseModel):
    """Every answer that is an error."""

    error: Problem


class JobError(BaseModel):
    """Why a job has no result."""

    code: str
    message: str
    hint: str = ""


class Queue(BaseModel):
    """Where a job stands that waits; times are estimates, null without experience of the model."""

    place: int = Field(description="1 = the next to begin")
    wait_s: float | None
    run_s: float | None


class JobObject(BaseModel):
    """A job: a video, an image, or audio for a video."""

    id: str
    object: Literal["video", "image", "audio", "load"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str | None = None
    remixed_from_video_id: str | None = None
    seconds: str | None = None
    size: str | None = None
    error: JobError | None = None
    phase: str = Field("", description="`loading`, `encode`, `condition`, `sample`, `decode`, `write`")
    step: int = 0
    steps: int = 0
    cancelling: bool = False
    queue: Queue | None = None
    priority: int = 0
    attempts: int = 0
    seed: int | None = None
    request: dict[str, Any] = Field(default_factory=dict, description="What was asked for, to be asked again")
    recipe: dict[str, Any] | None = Field(None, description="What made the result; its file carries the same")
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    media_type: str | None = None
    bytes: int | None = None
    inference_time_s: float | None = None
    stages: dict[str, float] | None = None
    batch: int | None = None
    tiles: dict[str, int] | None = Field(None, description="Grid of the sprite sheet")
    variants: list[str] = Field(default_factory=list)


class JobList(BaseModel):
    """Part of a list of jobs."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(BaseModel):
    """A job that was deleted; one that had not finished was cancelled, and stays in lists."""

    id: str
    object: Literal["video.deleted", "image.deleted", "audio.deleted", "load.deleted"]
    deleted: Literal[True] = True


class ModelObject(BaseModel):
    """A model, and what it accepts."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    title: str
    task: str
    makes: Literal["video", "image", "sound"]
    licence: str
    parameters: int
    loaded: bool
    accepts: dict[str, str] = Field(description="What each option may be, in words")
    defaults: dict[str, Any]
    sizes: list[str]
    image: Literal["none", "required", "optional"]
    mask: bool
    video: bool
    knows: dict[str, str] = Field(
        description="What else may be given: `first frame`, `frames` (known anywhere), `source` (a clip that is "
        "changed); `native` if it was trained for it, else `replacement`"
    )
    prompt: Literal["required", "optional"]
    expands: bool
    stills: bool = Field(description="Whether it also makes images")
    extends: bool = Field(description="Whether it can continue a clip")
    upscales: bool = Field(description="Whether it can make its clips, and given ones, larger in a second stage")
    live: bool = Field(description="Whether `/v1/live` can show it")
    seconds: list[float] = Field(description="Shortest and longest; 0 makes an image")
    longest: float = Field(description="Longest clip; beyond `seconds`, clips are made in windows")
    overlap: float = Field(description="Seconds that windows share if a request does not say; 0 where none are made")
    frames_together: int = Field(description="Frames after the first that are known, or made, together")
    branches: dict[str, list[str]] = Field(
        description="What else the result may follow, `control` and `reference`: names that `branch` may have; none "
        "where the model has a branch of its own alone"
    )
    shortest: float = Field(description="Shortest clip that is no image, in seconds")
    seconds_step: float = Field(description="By how much clips grow, in seconds")
    fps: float
    steps: list[int] = Field(description="Fewest and most")
    seed: list[int] = Field(description="Smallest and largest")
    prompt_length: int = Field(description="Most characters of a prompt")
    upload_bytes: int = Field(description="Largest request body")
    effort: float = Field(description="Largest job, in multiples of the default request")
    images: int = Field(description="Most images of one request; 0 where it makes none")
    sounds_with: str | None
    loras: list[str] = Field(description="Names that `lora` may have")
    formats: list[str]


class ModelList(BaseModel):
    """All models of the server."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    id: str
    seed: int | None = None


class ImagesResponse(BaseModel):
    """Images that were made."""

    created: int
    data: list[ImageData]
    background: str = "opaque"
    output_format: str
    quality: str = "auto"
    size: str


class Health(BaseModel):
    """The server lives."""

    status: Literal["ok"] = "ok"
    version: str


class Ready(BaseModel):
    """Whether work is done."""

    status: Literal["ready", "starting", "draining"]
    workers: int
    queued: int
    running: int


class RecipeResponse(BaseModel):
    """The recipe in a file."""

    recipe: dict[str, Any]


def _as_called(one: Mapping[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    """A condition with its files as the request called them."""
    return {key: called.get(value, value) if isinstance(value, str) else value for key, value in one.items()}


def job_object(job: JobRecord, place: Place | None = None) -> JobObject:
    """A job as the API shows it."""
    order, result = dict(job.order), dict(job.result or {})
    shape = order.get("shape", {})
    asked = {name: value for name, value in order.get("request", {}).items() if value is not None}
    seconds = result.get("seconds", shape.get("seconds"))
    width, height = result.get("width", shape.get("width")), result.get("height", shape.get("height"))
    if asked.get("conditions"):
        asked["conditions"] = [_as_called(one, order.get("called", {})) for one in asked["conditions"]]
    extra = {name: order[name] for name in ("lora", "attention", "sound") if order.get(name)}
    names = {"file": job.kind, "thumbnail": "thumbnail", "spritesheet": "spritesheet"}
    variants = [variant for name, variant in names.items() if name in result and name != "audio"]
    if "audio" in result and "audio" not in variants:
        variants.append("audio")
    if job.kind == "audio" and result.get("media_type", "").startswith("video/"):
        variants.append("video")
    return JobObject(
        id=job.id,
        object=job.kind,  # type: ignore[arg-type]
        model=job.model,
        status=STATUS[job.state],  # type: ignore[arg-type]
        progress=job.progress,
        created_at=int(job.created),
        completed_at=None if job.finished is None or job.state != State.COMPLETED else int(job.finished),
        expires_at=None if job.expires is None else int(job.expires),
        prompt=job.prompt,
        remixed_from_video_id=job.parent,
        seconds=None if seconds is None else f"{float(seconds):g}",
        size=f"{width}x{height}" if width and height else None,
        error=None if job.error is None else JobError(**job.error),
        phase=job.phase if job.state == State.RUNNING else "",
        step=job.step,
        steps=job.steps or int(shape.get("steps", 0)),
        cancelling=job.cancelling and not job.state.is_final,
        queue=None if place is None else Queue(place=place.place, wait_s=place.wait_s, run_s=place.run_s),
        priority=job.priority,
        attempts=job.attempts,
        seed=result.get("seed", asked.get("seed")),
        request={**asked, **extra, **({"format": order["form"]} if order.get("form") else {})},
        recipe=result.get("recipe"),
        width=width,
        height=height,
        frames=result.get("frames", shape.get("frames")),
        fps=result.get("fps", shape.get("fps")),
        media_type=result.get("media_type"),
        bytes=job.bytes or None,
        inference_time_s=None if job.run_s is None else round(job.run_s, 3),
        stages=result.get("stages"),
        batch=result.get("batch"),
        tiles=result.get("tiles"),
        variants=variants,
    )
