"""Tools of the Model Context Protocol: a thin layer over ``kandinsky.client``. No torch.

A door (`mcp_stdio.py`, `mcp_http.py`) says which server is asked, what a tool may name as an image, and where results
can be had.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import kandinsky
from kandinsky.client import ApiError, AsyncClient, Job
from kandinsky.client.calls import FILES
from kandinsky.errors import KandinskyError, RequestError, needs_extra
from kandinsky.jobs.job_files import ID

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

LONGEST_WAIT_S = 50.0  # clients give up after a minute
LOOK_S = 0.5
# What is done to a clip; else it is continued
CHANGES = ("strength", "mask", "span", "place", "source_prompt", "upscale")
THUMBNAIL = "image/webp"
ABOUT = (
    "Makes clips, images and sound with the Kandinsky models. `generate` answers at once with the name of a job; ask "
    "`status` with `wait_s` until it is completed, then `result`. `list_models` tells sizes, lengths and limits."
)
JobId = Annotated[str, Field(description="Name of the job, as `generate` gave it.", pattern=f"^{ID.pattern}$")]


class Door(Protocol):
    """Where tools are called."""

    def client(self, request: Any) -> AbstractAsyncContextManager[AsyncClient]:
        """The server that is asked on behalf of a request."""
        ...

    def file(self, given: str) -> Any:
        """What a client of the server sends for an image or a clip that a tool named.

        Raises:
            RequestError: Files cannot be named so here.
        """
        ...

    async def place(self, request: Any, client: AsyncClient, job: Job) -> dict[str, str]:
        """Where a result can be had: `file` or `url`."""
        ...


class Arguments(BaseModel):
    """Arguments of a tool."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Known(Arguments):
    """Frames known of a clip: an image, or a part of another clip."""

    frames: str = Field(description="An image or a clip, as `image`.")
    at: int | str = Field(0, description="The frame of the result they begin at, as `12`, `-1` or `1.5s`; or `end`.")
    cut: str | None = Field(None, description="The part of a clip, `START:STOP`, as `-9:` or `1s:2s`.", max_length=40)


class Later(Arguments):
    """A prompt for a part of a clip."""

    prompt: str = Field(description="What the clip shows there.", max_length=4000)
    at: float | str = Field(description="Where it begins: seconds, or `5s`, or a frame such as `60`.")
    until: float | str | None = Field(None, description="Where it ends; else it holds until the next one begins.")


class Generate(Arguments):
    """Queue a clip, an image, or audio for a clip."""

    prompt: str = Field("", description="What the result shows, or how it sounds.", max_length=4000)
    kind: Literal["video", "image", "audio"] = Field("video", description="What is made.")
    model: str | None = Field(None, description="One of `list_models`; default: the first that fits.")
    image: str | None = Field(None, description="First frame of a clip, or the image to edit: see `list_models`.")
    mask: str | None = Field(None, description="For an edit: white where the image is repainted.")
    last_image: str | None = Field(None, description="Last frame of a clip.")
    video: str | None = Field(
        None,
        description="For audio: the clip. For a clip: the one that is continued; with `strength`, `mask`, `span`, "
        "`place` or `source_prompt`, the one that is changed; with `upscale`, the one that is made larger.",
    )
    strength: float | None = Field(None, description="How far `video` is changed as a whole.", gt=0, le=1)
    span: str | None = Field(None, description="The part of `video` made anew, as `1s:2s` or `12:24`.", max_length=40)
    place: str | None = Field(None, description="Where `video` lies in the result, `WxH+X+Y`.", max_length=40)
    source_prompt: str | None = Field(
        None, description="What `video` shows, to change it by both prompts.", max_length=4000
    )
    conditions: list[Known] | None = Field(None, description="Further frames known of a clip.", max_length=16)
    prompt_at: list[Later] | None = Field(
        None, description="Prompts for parts of a clip; `prompt` holds elsewhere.", max_length=64
    )
    fade: float | None = Field(None, description="Seconds over which each of `prompt_at` fades in.", ge=0)
    overlap: float | str | None = Field(
        None, description="Of clips longer than the model's longest: seconds that its windows share."
    )
    loop: bool | None = Field(None, description="Whether the end of a clip leads to its beginning.")
    control: str | None = Field(None, description="A clip or image that the result follows: see `branches`.")
    control_strength: float | None = Field(None, description="How much of `control`; 1 as trained.", ge=0, le=4)
    control_steps: str | None = Field(None, description="Share of the steps it works at, as `0:0.6`.", max_length=40)
    reference: str | None = Field(None, description="An image whose subject the result shows: see `branches`.")
    reference_strength: float | None = Field(None, description="How much of `reference`; 1 as trained.", ge=0, le=4)
    branch: list[str] | None = Field(None, description="Branches to use, of those that `list_models` names.")
    seconds: float | None = Field(None, description="Length of a clip.", ge=0)
    size: str | None = Field(None, description="`WIDTHxHEIGHT`.", max_length=20)
    upscale: float | str | None = Field(
        None,
        description="Makes the clip, or `video` as it is, larger in a second stage: a factor such as 2, or "
        "`WIDTHxHEIGHT`.",
    )
    upscale_strength: float | None = Field(None, description="How far that changes it; 0.4 by default.", gt=0, le=1)
    steps: int | None = Field(None, description="Steps of the sampler; more take longer.", ge=1)
    guidance: float | None = Field(None, description="Classifier-free guidance scale (1 disables it).")
    seed: int | None = Field(None, description="The same seed gives the same result.", ge=0)
    negative_prompt: str | None = Field(None, description="What the result should not show.", max_length=4000)
    lora: list[str] | None = Field(None, description="LoRAs of the server, each as `NAME` or `NAME:SCALE`.")


class OfJob(Arguments):
    """A job."""

    job: JobId


class Status(OfJob):
    """How far a job is."""

    wait_s: float = Field(0.0, description="Longest wait for its end.", ge=0, le=LONGEST_WAIT_S)


class Tools:
    """The tools.

    Args:
        door: Where they are called.
    """

    def __init__(self, door: Door) -> None:
        self.door = door

    async def generate(self, request: Any, client: AsyncClient, given: Generate) -> list[Any]:
        fields = given.model_dump(exclude_none=True, exclude={"kind", "prompt"})
        for name in FILES:
            if name in fields:
                fields[name] = self.door.file(fields[name])
        for one in fields.get("conditions", ()):
            one["frames"] = self.door.file(one["frames"])
        video = fields.pop("video", None)
        if given.kind == "audio":
            if video is None:
                raise RequestError("`video` is missing: give the clip that is to be heard")
            job = await client.sound(video, given.prompt, **fields)
        elif given.kind == "image":
            (job,) = await client.create_images(given.prompt, **fields)
        elif video is not None and not any(name in fields for name in CHANGES):
            job = await client.extend(video, given.prompt, **fields)
        else:
            job = await client.create(given.prompt, video=video, **fields)
        return [shown(job)]

    async def status(self, request: Any, client: AsyncClient, given: Status) -> list[Any]:
        end = time.monotonic() + given.wait_s
        while not (job := await client.get(given.job)).is_over and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(LOOK_S, left))
        return [shown(job)]

    async def result(self, request: Any, client: AsyncClient, given: OfJob) -> list[Any]:
        job = await client.get(given.job)
        if job.status != "completed":
            raise RequestError(f"`{job.id}` is {job.status}: it has no result" + (" yet" if not job.is_over else ""))
        told: list[Any] = [shown(job) | await self.door.place(request, client, job)]
        if "thumbnail" in job.data.get("variants", ()):
            told.append(await client.content(job, variant="thumbnail"))
        return told

    async def cancel(self, request: Any, client: AsyncClient, given: OfJob) -> list[Any]:
        return [shown(await client.cancel(given.job))]

    async def list_models(self, request: Any, client: AsyncClient, given: Arguments) -> list[Any]:
        left_out = ("object", "created", "owned_by", "licence", "parameters")
        models = [{k: v for k, v in model.data.items() if k not in left_out} for model in await client.models()]
        return [{"models": models}]


_Call = Callable[[Any, AsyncClient, Any], Awaitable[list[Any]]]


def table(tools: Tools) -> Mapping[str, tuple[type[Arguments], str, _Call]]:
    """The tools by name: arguments, what they do, and how."""
    return {
        "generate": (Generate, "Queue a clip, an image, or audio for a clip; answers with the job.", tools.generate),
        "status": (Status, "How far a job is; waits up to `wait_s` for its end.", tools.status),
        "result": (OfJob, "Where the result of a finished job is, and a small image of it.", tools.result),
        "list_models": (Arguments, "The models: what they make, take and accept.", tools.list_models),
        "cancel": (OfJob, "Stop a job; one that runs stops within a step.", tools.cancel),
    }


def shown(job: Job) -> dict[str, Any]:
    """A job as tools tell it."""
    data = job.data
    names = ("phase", "step", "steps", "queue", "error", "seed", "size", "seconds", "media_type", "prompt")
    told = {"job": job.id, "kind": job.kind, "model": job.model, "status": job.status, "progress": job.progress}
    return told | {name: data[name] for name in names if data.get(name) not in (None, "", 0)}


def server_of(door: Door) -> Server[Any]:
    """The tools as a server of the protocol.

    Args:
        door: Where they are called.

    Returns:
        The server, to be connected.

    Raises:
        BackendError: The package `mcp` is not installed.
    """
    with needs_extra("mcp", "mcp", "the Model Context Protocol"):
        import mcp.types as types
        from mcp.server.lowlevel import Server

    tools = table(Tools(door))

    async def on_list(_: Any, __: Any) -> Any:
        made = []
        for name, (kind, about, _call) in tools.items():
            schema = kind.model_json_schema()
            schema.pop("description", None)
            made.append(types.Tool(name=name, description=about, input_schema=schema))
        return types.ListToolsResult(tools=made)

    async def on_call(context: Any, asked: Any) -> Any:
        try:
            told = await answered(context.request, asked.name, asked.arguments or {})
        except KandinskyError as error:
            message = f"{error}; {error.hint}" if error.hint and not isinstance(error, ApiError) else str(error)
            return types.CallToolResult(content=[types.TextContent(type="text", text=message)], is_error=True)
        content: list[Any] = [
            types.ImageContent(type="image", data=base64.b64encode(one).decode(), mime_type=THUMBNAIL)
            if isinstance(one, bytes)
            else types.TextContent(type="text", text=json.dumps(one, ensure_ascii=False))
            for one in told
        ]
        return types.CallToolResult(content=content, structured_content=told[0])

    async def answered(request: Any, name: str, arguments: Mapping[str, Any]) -> list[Any]:
        if name not in tools:
            raise RequestError(f"there is no tool `{name[:60]}`: use one of {', '.join(tools)}")
        kind, _, call = tools[name]
        try:
            given = kind.model_validate(arguments)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RequestError(f"`{where}`: {first['msg']}") from None
        async with door.client(request) as client:
            return await call(request, client, given)

    return Server(
        "kandinsky", version=kandinsky.__version__, instructions=ABOUT, on_list_tools=on_list, on_call_tool=on_call
    )
