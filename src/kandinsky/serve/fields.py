"""What a request may set: the fields of ``Request`` and ``RunOptions``, rendered for JSON, forms and OpenAPI.

Nothing is spelled again here but what belongs to the API alone: `size`, `format`, `priority`, OpenAI's own names.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
)
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request as HttpRequest

from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import SEED_LIMIT
from kandinsky.errors import RequestError
from kandinsky.model.checks import hints_of, unknown
from kandinsky.model.given import MOST_CONDITIONS, MOST_STRENGTH
from kandinsky.model.timeline import MOST_PROMPTS, prompts_at
from kandinsky.model.values import Request
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.keys import PRIORITY

FILES = ("image", "last_image", "mask", "video", "control", "reference")
LONGEST_PROMPT = 4000
DEEPEST, MOST_FIELDS = 6, 64
MOST_MARKS = 10_000  # commas and opening brackets of a JSON body; base64 has none
MOST_IMAGES = 10  # of one request
_BRACKETS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_TEXTS = ("prompt", "negative_prompt", "expanded_prompt", "source_prompt")
# What requests name of the operator's files
_NAMED = {
    "lora": "LoRAs of the server's folder, each as `NAME` or `NAME:SCALE`",
    "branch": "Branches of the server's folder that follow `control` and `reference`; the model's own by default",
}
# How JSON names a file
REFERENCE: dict[str, Any] = {
    "oneOf": [
        {"type": "object", "properties": {"image_url": {"type": "string", "pattern": "^data:"}},
         "required": ["image_url"], "additionalProperties": False},
        {"type": "object", "properties": {"file_id": {"type": "string"}}, "required": ["file_id"],
         "additionalProperties": False},
        {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"],
         "additionalProperties": False},
        {"type": "string", "pattern": "^data:"},
        {"type": "string", "pattern": "^job_[0-9a-f]{32}$"},
    ]
}  # fmt: skip
# Diffusers' names of some fields, which other servers use too
DIFFUSERS: dict[str, Any] = {
    "num_inference_steps": Annotated[int | None, Field(default=None, description="The same as `steps`.")],
    "guidance_scale": Annotated[float | None, Field(default=None, description="The same as `guidance`.")],
    "num_frames": Annotated[int | None, Field(default=None, description="`seconds` as a number of frames.")],
}
Sizes = r"^\s*(\d{1,5}\s*[xX×]\s*\d{1,5}|auto)\s*$"


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The plain types that a hint allows, at any depth."""
    return (hint,) if isinstance(hint, type) else tuple(kind for one in get_args(hint) for kind in _kinds(one))


class Asked(BaseModel):
    """What came in a request, checked by type but not yet against a model's card."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers, which pydantic takes for 1 and 0; a form sends texts."""
        if isinstance(value, bool) and bool not in _kinds(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(f"must not be {str(value).lower()}")
        return value


def _declared() -> dict[str, Any]:
    """The fields of ``Request`` and ``RunOptions`` that a request may set."""
    found: dict[str, Any] = {}
    for kind, is_open in ((Request, True), (RunOptions, False)):
        hints = hints_of(kind)
        for f in dataclasses.fields(kind):
            served = f.metadata.get("served")
            if f.name in (*FILES, "conditions", "prompt_at", "model", "prompt", "width", "height") or not (
                is_open if served is None else served
            ):
                continue
            found.setdefault(f.name, _rendered(f, hints.get(f.name)))
    return found


def _rendered(f: dataclasses.Field[Any], hint: Any) -> Any:
    told: dict[str, Any] = {"description": f.metadata.get("about", "")}
    kinds = [kind for kind in get_args(hint) or (hint,) if kind in (int, float, bool)]
    if f.name in _NAMED:
        told["description"] = _NAMED[f.name]
        item = Annotated[str, Field(max_length=200, pattern=r"^[^/\\\x00-\x1f]{1,200}$")]
        return Annotated[list[item] | None, Field(default=None, max_length=8, **told)]
    if kinds == [bool]:
        return Annotated[bool, Field(default=False, **told)]
    if kinds and str in get_args(hint):  # a time
        number, text = Annotated[float, Field(ge=0)], Annotated[str, Field(max_length=20)]
        return Annotated[number | text | None, Field(default=None, **told)]
    if kinds:
        if f.name == "seed":
            told |= {"ge": 0, "lt": SEED_LIMIT}
        elif f.name == "steps":
            told |= {"ge": 1}
        elif f.name != "shift":
            told |= {"ge": 0} if f.metadata.get("most") is None else {"ge": 0, "le": f.metadata["most"]}
        return Annotated[kinds[0] | None, Field(default=None, **told)]
    most = LONGEST_PROMPT * (2 if f.name == "expanded_prompt" else 1) if f.name in _TEXTS else 200
    return Annotated[str | None, Field(default=None, max_length=most, **told)]


COMMON: dict[str, Any] = {
    "prompt": Annotated[str, Field(default="", max_length=LONGEST_PROMPT, description="What the result shows.")],
    "model": Annotated[
        str | None,
        Field(default=None, max_length=200, description="One of `/v1/models`; default: the server's first that fits."),
    ],
    "priority": Annotated[
        int, Field(default=0, ge=-PRIORITY, le=PRIORITY, description="Higher runs first; a key bounds it.")
    ],
    "user": Annotated[str | None, Field(default=None, max_length=200, description="Taken and not used.")],
    "safety_identifier": Annotated[str | None, Field(default=None, max_length=200, description="Taken and not used.")],
}
_SIZE: dict[str, Any] = {
    "size": Annotated[
        str | None, Field(default=None, pattern=Sizes, max_length=20, description="`WIDTHxHEIGHT`, or `auto`.")
    ],
    "width": Annotated[int | None, Field(default=None, ge=1, description="Width in pixels, with `height`.")],
    "height": Annotated[int | None, Field(default=None, ge=1, description="Height in pixels, with `width`.")],
}


def _form(default: str, *others: str) -> Any:
    return Annotated[
        Literal[(default, *others)],
        Field(default=default, description="Format of the result."),
    ]


def _model(name: str, fields: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> type[Asked]:
    made: dict[str, Any] = {key: (hint, _default(hint)) for key, hint in fields.items() if key not in without}
    return create_model(name, __base__=Asked, **made)


def _default(hint: Any) -> Any:
    return next(one.default for one in hint.__metadata__ if hasattr(one, "default"))


def _condition(name: str, about: str, **others: dict[str, Any]) -> dict[str, Any]:
    """The schema of one kind of condition."""
    of_form = {"type": "string", "minLength": 1, "maxLength": 200, "description": "Name of a file field of this form."}
    file = {"anyOf": [*REFERENCE["oneOf"], of_form]}
    shown = {key: file if told == {} else told for key, told in others.items()}
    return {"type": "object", "description": about, "properties": {name: file, **shown}, "required": [name],
            "additionalProperties": False}  # fmt: skip


_PART = {
    "type": "string",
    "pattern": r"^[^:\[\]]*:[^:\[\]]*$",
    "description": "`START:STOP`, in frames, or in seconds as `1.5s`.",
}
_OF_BRANCH: dict[str, Any] = {
    "branch": {"type": "string", "maxLength": 200, "description": "Its name in the server's folder."},
    "strength": {"type": "number", "minimum": 0, "maximum": MOST_STRENGTH},
    "steps": {"type": "string", "description": "Share of the steps at which it works, such as `0:0.6`."},
}
_PLACED = [{"type": "integer"}, {"type": "string", "pattern": r"^(end|-?\d{1,9}|-?\d{1,6}(\.\d{1,9})?s)$"}]
_LISTED: dict[str, Any] = {
    "type": "array",
    "maxItems": MOST_CONDITIONS,
    "items": {
        "anyOf": [
            _condition(
                "frames", "Known frames: an image, or a clip.", cut=_PART,
                at={"anyOf": _PLACED, "default": 0, "description": "Their first frame, such as `12` or `1.5s`; `end`."},
            ),
            _condition(
                "source", "A clip that is changed.", mask={}, span=_PART, cut=_PART, prompt={"type": "string"},
                strength={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                place={"type": "string", "pattern": r"^\d{1,6}x\d{1,6}[+-]\d{1,6}[+-]\d{1,6}$"},
                grow={"type": "integer", "minimum": 0, "maximum": 256},
            ),
            _condition(
                "control", "A clip or an image that the result follows, through a control branch.", cut=_PART,
                signal={"type": "string", "maxLength": 40}, is_map={"type": "boolean"}, **_OF_BRANCH,
            ),
            _condition(
                "reference", "An image whose subject the result shows, through a reference branch.", **_OF_BRANCH
            ),
            {"type": "string", "description": "Known frames as `NAME[START:STOP]@PLACE`."},
        ]
    },
}  # fmt: skip
_CONDITIONS: dict[str, Any] = {
    "conditions": Annotated[
        list[Any] | None,
        Field(default=None, max_length=MOST_CONDITIONS),
        WithJsonSchema({
            "anyOf": [_LISTED, {"type": "null"}],
            "description": "What else is known of the result: frames, and a clip that is changed. Files are finished "
            "jobs, `data:` URLs, or further file fields of the form, by their names.",
        }),
    ],
}  # fmt: skip
_TIME: dict[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^(\d{1,9}|\d{1,6}(\.\d{1,9})?s)$"}],
    "description": "Seconds, or text such as `5s` or, in frames, `60`.",
}
_SAID = {"type": "string", "minLength": 1, "maxLength": LONGEST_PROMPT}
_PROMPTS: dict[str, Any] = {
    "type": "array",
    "maxItems": MOST_PROMPTS,
    "items": {
        "anyOf": [
            {"type": "array", "prefixItems": [_SAID, _TIME, _TIME], "items": False, "minItems": 2, "maxItems": 3},
            {"type": "object", "properties": {"prompt": _SAID, "at": _TIME, "until": _TIME},
             "required": ["prompt", "at"], "additionalProperties": False},
            {"type": "string", "description": "`5s a cat`, or `5s:8s a cat`."},
        ]
    },
}  # fmt: skip
# Of clips alone, whose time passes.
_OF_TIME = ("prompt_at", "fade", "overlap", "loop")
_OF_BRANCHES = ("control_strength", "control_steps", "reference_strength", "branch")
_PROMPT_AT: dict[str, Any] = {
    "prompt_at": Annotated[
        list[Any] | None,
        Field(default=None, max_length=MOST_PROMPTS),
        WithJsonSchema(
            {
                "anyOf": [_PROMPTS, {"type": "null"}],
                "description": "Prompts for parts of a clip, each with the second it begins at, and perhaps one it "
                "ends at; the prompt itself holds elsewhere.",
            }
        ),
    ],
}
_OPTIONS = {**_declared(), **_PROMPT_AT, **DIFFUSERS, **_CONDITIONS}
_SOUND = {"sound": Annotated[bool, Field(default=False, description="Also generate audio for the clip.")]}
VideoFields = _model(
    "VideoRequest",
    {
        **COMMON, **_SIZE, **_OPTIONS, **_SOUND,
        "format": _form("mp4", "webm", "gif", "webp"),
    },
)  # fmt: skip
RemixFields = _model("RemixRequest", {**COMMON, **_SIZE, **_OPTIONS, **_SOUND}, without=("model",))
ImageFields = _model(
    "ImageRequest",
    {
        **COMMON, **_SIZE, **_OPTIONS,
        "n": Annotated[int | None, Field(default=1, ge=1, le=MOST_IMAGES, description="Number of images.")],
        "response_format": Annotated[Literal["b64_json", "url"] | None, Field(default=None)],
        "output_format": Annotated[Literal["png", "jpeg", "webp"] | None, Field(default=None)],
        "output_compression": Annotated[int | None, Field(default=None, ge=0, le=100, description="Not used.")],
        "quality": Annotated[str | None, Field(default=None, max_length=20, description="Taken and not used.")],
        "moderation": Annotated[str | None, Field(default=None, max_length=20, description="Taken and not used.")],
        "style": Annotated[str | None, Field(default=None, max_length=20, description="Taken and not used.")],
        "background": Annotated[Literal["auto", "opaque"] | None, Field(default=None)],
        "input_fidelity": Annotated[str | None, Field(default=None, max_length=20, description="Not used.")],
        "stream": Annotated[bool | None, Field(default=None, description="Answer with server-sent events.")],
        "partial_images": Annotated[int | None, Field(default=None, ge=0, le=3)],
    },
    without=("seconds", "num_frames", *_OF_TIME, *_OF_BRANCHES),
)  # fmt: skip
AudioFields = _model(
    "AudioRequest",
    {
        **COMMON,
        **{name: _OPTIONS[name] for name in ("negative_prompt", "seconds", "steps", "guidance", "seed")},
        "format": _form("mp4", "webm", "wav", "flac"),
    },
)  # fmt: skip


@dataclass(slots=True)
class Body:
    """A request's body.

    Attributes:
        values: Plain values.
        files: Uploaded files.
    """

    values: dict[str, Any]
    files: dict[str, list[UploadFile]]
    form: FormData | None = None

    async def close(self) -> None:
        if self.form is not None:
            await self.form.close()


async def read_body(request: HttpRequest, *, largest: int) -> Body:
    """Read JSON, a multipart form (with names such as `a[b]` and `a[]`), or a plain form.

    Raises:
        ApiError: It is none of these, or damaged, or too deep.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("application/json", ""):
        data = await request.body()
        return Body(_json(data), {})
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise ApiError(415, f"`{kind[:60]}` is not read here: send JSON or a multipart form", code="bad_content_type")
    form = await request.form(max_files=16, max_fields=MOST_FIELDS, max_part_size=largest)
    body = Body({}, {}, form)
    for name, value in form.multi_items():
        _put(body, name, value)
    return body


def _json(data: bytes) -> dict[str, Any]:
    def refused(_: str) -> Any:
        raise ValueError("NaN and Infinity are no JSON")

    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MOST_MARKS:  # before memory is taken for each value
        raise ApiError(400, f"the body holds more than {MOST_MARKS} values", code="invalid_json")
    try:
        values = json.loads(data or b"{}", parse_constant=refused)
    except (ValueError, RecursionError) as error:
        reason = str(error) if not isinstance(error, UnicodeDecodeError) else "it is not UTF-8"
        raise ApiError(400, f"the body is not JSON: {reason}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    _check_depth(values, 0)
    return values


def _check_depth(value: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ApiError(400, f"the body is nested deeper than {DEEPEST} levels", code="invalid_json")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, depth + 1)


def _put(body: Body, name: str, value: UploadFile | str) -> None:
    """Store one part of a form: `a`, `a[]` or `a[b]`."""
    found = _BRACKETS.fullmatch(name)
    if found is None:
        raise ApiError(400, f"`{name[:60]}` is not the name of a field", code="unknown_parameter")
    base, inner = found[1], re.findall(r"\[([^\[\]]*)\]", found[2])
    if isinstance(value, UploadFile):
        if any(inner):
            raise ApiError(400, f"`{name[:60]}`: a file belongs into `{base}`", code="invalid_value", param=base)
        body.files.setdefault(base, []).append(value)
        return
    if len(inner) > 1:
        raise ApiError(400, f"`{name[:60]}` is nested too deep", code="invalid_value", param=base)
    known = body.values.get(base)
    if not inner:
        body.values[base] = value if known is None else [*(known if isinstance(known, list) else [known]), value]
    elif inner == [""]:
        body.values[base] = [*(known if isinstance(known, list) else [] if known is None else [known]), value]
    else:
        if known is not None and not isinstance(known, dict):
            raise ApiError(400, f"`{base}` was given twice", code="invalid_value", param=base)
        body.values[base] = {**(known or {}), inner[0]: value}


def listed(name: str, value: Any) -> list[Any]:
    """A list that a form's fields spell as JSON, or as texts, one for each entry.

    Args:
        name: The field.
        value: What came; anything but text is left as it is.

    Returns:
        The entries, not yet checked.

    Raises:
        ApiError: Text that begins as JSON is none.
    """
    found: list[Any] = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str) or one.lstrip()[:1] not in ("[", "{"):
            found.append(one)
            continue
        if sum(map(one.count, ",[{")) > MOST_MARKS:  # before memory is taken for each value
            raise ApiError(400, f"`{name}`: the list holds more than {MOST_MARKS} values", code="invalid_value",
                           param=name)  # fmt: skip
        try:
            told = json.loads(one)
        except (ValueError, RecursionError):
            raise ApiError(400, f"`{name}`: the list is not JSON", code="invalid_value", param=name) from None
        found += told if isinstance(told, list) else [told]
    return found


def timed(value: Any) -> list[dict[str, Any]]:
    """Prompts by time, as plain values.

    Args:
        value: What came as `prompt_at`.

    Raises:
        ApiError: One has another form, or is too long.
    """
    try:
        prompts = prompts_at(listed("prompt_at", value))
    except RequestError as error:
        raise ApiError(400, str(error), code="invalid_value", param="prompt_at") from None
    if any(len(one.prompt) > LONGEST_PROMPT for one in prompts):
        raise ApiError(400, f"`prompt_at`: a prompt has at most {LONGEST_PROMPT} characters", code="invalid_value",
                       param="prompt_at")  # fmt: skip
    return [one.plain() for one in prompts]


def checked(kind: type[Asked], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check values by type.

    Args:
        kind: One of the models above.
        values: What was given.

    Returns:
        What was given, with numbers as numbers; what was not given, and None, is left out.

    Raises:
        ApiError: A name is unknown, or a value is of another type.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name not in kind.model_fields:
            raise ApiError(400, str(unknown(name, kind.model_fields, "field")), code="unknown_parameter", param=name)
    for name in _NAMED:
        if isinstance(given.get(name), str):
            given[name] = listed(name, given[name])
    try:
        found = kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        raise ApiError(400, f"`{param}`: {first['msg']}", code="invalid_value", param=param) from None
    values = found.model_dump()
    return {name: values[name] for name in kind.model_fields if name in given}


@functools.cache
def schema(kind: type[Asked]) -> dict[str, Any]:
    """The JSON schema of a model, without what OpenAPI 3.1 does not need."""
    made = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    made.pop("title", None)
    made["description"] = "Further fields are refused by name."
    seconds = made["properties"].get("seconds")
    if seconds is not None:  # OpenAI's clients send it as text
        seconds["anyOf"] = [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\d{1,4}(\.\d{1,3})?$"},
                            {"type": "null"}]  # fmt: skip
    return made


def request_body(kind: type[Asked], files: Mapping[str, str], *, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The part of OpenAPI that describes a body of JSON or a form.

    Args:
        kind: The fields.
        files: What uploads mean, by field.
        needs: Fields that are required.

    Returns:
        `requestBody`, for ``openapi_extra``.
    """
    own = schema(kind)
    as_json = {**own, "properties": {**own["properties"]}}
    as_form = {**own, "properties": {**own["properties"]}}
    for name, about in files.items():
        as_json["properties"][name] = {**REFERENCE, "description": about}
        as_form["properties"][name] = {"type": "string", "format": "binary", "description": about}
    if "conditions" in as_form["properties"]:
        about = "A file that `conditions` name by the name of its field."
        as_form["additionalProperties"] = {"type": "string", "format": "binary", "description": about}
    if needs:
        as_json["required"] = as_form["required"] = list(needs)
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": as_json}, "multipart/form-data": {"schema": as_form}},
        }
    }
