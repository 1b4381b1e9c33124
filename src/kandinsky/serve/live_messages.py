"""What a client of `/v1/live` may say: JSON objects with a `type`, checked as the fields of the other calls are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from kandinsky.engine.request import SEED_LIMIT
from kandinsky.jobs.live_line import KEPT_S
from kandinsky.media.packets import FORMATS, JPEG, Format
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.fields import LONGEST_PROMPT, Asked, Sizes, checked

Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]
Number = Annotated[int, Field(ge=0, lt=2**53)]


Wanted = Annotated[
    Format | Annotated[list[Format], Field(min_length=1, max_length=len(FORMATS))],
    Field(description="How frames may be sent: a name, or names of which the first that can be is taken."),
]


class Start(Asked):
    """Begin; the first message of a session."""

    type: Literal["start"]
    prompt: Prompt
    model: Annotated[str, Field(max_length=200)] | None = None
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT)] | None = None
    size: Annotated[str, Field(pattern=Sizes)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance: float | None = None
    shift: float | None = None
    negative_prompt: Prompt | None = None
    format: Wanted = JPEG


class NewPrompt(Asked):
    """Show something else, from the next chunk on."""

    type: Literal["prompt"]
    prompt: Prompt
    id: Number | None = None


class Action(Asked):
    """Do something from the next chunk on, until the next of these; without one, stop doing it."""

    type: Literal["action"]
    action: Annotated[str, Field(max_length=40)] | None = None


class NewFormat(Asked):
    """Send frames in another way from the next chunk on; of a coded one, it begins with a key frame."""

    type: Literal["format"]
    format: Wanted


class Ack(Asked):
    """This frame has come, and all before it."""

    type: Literal["ack"]
    frame: Number


class Save(Asked):
    """Save the last seconds as a clip."""

    type: Literal["save"]
    seconds: Annotated[float, Field(gt=0, le=KEPT_S)] = 10.0
    id: Number | None = None


class Stop(Asked):
    """End the session."""

    type: Literal["stop"]


KINDS: Mapping[str, type[Asked]] = {
    "start": Start, "prompt": NewPrompt, "action": Action, "format": NewFormat, "ack": Ack, "save": Save, "stop": Stop
}  # fmt: skip


def read(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the client.

    Args:
        message: As ASGI gives it.

    Returns:
        Its checked fields, `type` among them.

    Raises:
        ApiError: It is none of those above.
    """
    known = ", ".join(f"`{name}`" for name in KINDS)
    text = message.get("text")
    if text is None:
        raise ApiError(400, "a message in binary: send JSON as text", code="invalid_value")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ApiError(400, f"a message that is no JSON object: send one whose `type` is one of {known}",
                       code="invalid_value")  # fmt: skip
    kind = values.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ApiError(400, f"`type` is `{str(kind)[:60]}`: use one of {known}", code="invalid_value", param="type")
    found = checked(KINDS[kind], values)
    if "prompt" in KINDS[kind].model_fields and not str(found.get("prompt", "")).strip():
        raise ApiError(400, "`prompt` is missing: say what should be shown", code="missing", param="prompt")
    return found
