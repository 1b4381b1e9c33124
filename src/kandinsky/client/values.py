"""What a server tells, as values; ``data`` always holds the whole answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# What is a file of a request, or says something about one.
_OF_FILES = ("image", "last_image", "mask", "video", "control", "reference", "conditions", "mask_grow", "strength",
             "span", "place", "source_prompt", "resample", "branch", "control_strength", "control_steps",
             "reference_strength")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """A job of the server, as it stood when it was asked for.

    Attributes:
        id: Its name.
        kind: `video`, `image`, `audio` or `load`.
        model: The model.
        status: `queued`, `in_progress`, `completed`, `failed` or `cancelled`.
        progress: Percent.
        data: The whole answer.
    """

    id: str
    kind: str
    model: str
    status: str
    progress: int
    data: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Job:
        return cls(data["id"], data["object"], data["model"], data["status"], data["progress"], data)

    @property
    def is_over(self) -> bool:
        return self.status not in ("queued", "in_progress")

    @property
    def seed(self) -> int | None:
        seed: int | None = self.data.get("seed")
        return seed

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What made the result; empty before it is made."""
        return self.data.get("recipe") or {}

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, to be asked again: ``client.create(**job.settings)``; files are not among it."""
        return {name: value for name, value in self.data["request"].items() if name not in _OF_FILES}


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the server.

    Attributes:
        id: Its name.
        title: Its name for people.
        task: What it does.
        data: The whole answer, with what the model accepts.
    """

    id: str
    title: str
    task: str
    data: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Model:
        return cls(data["id"], data["title"], data["task"], data)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job.

    Attributes:
        kind: `queued`, `started`, `loading`, `phase`, `step`, `preview`, `decoding`, `completed`, `failed` or
            `cancelled`, and `deleted` when it is gone.
        job: The job's name.
        data: What is told.
        id: Its number, after which another stream can go on; None for places in the queue, which are not kept.
    """

    kind: str
    job: str
    data: Mapping[str, Any]
    id: int | None = None


class Lines:
    """Turns the lines of a stream of server-sent events into events."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def take(self, line: str) -> Iterator[Event]:
        """Take one line; yields the event that it ends, if any."""
        if line:
            name, _, value = line.partition(":")
            if name in ("id", "event", "data"):
                self._fields[name] = value.removeprefix(" ")
            return
        given, self._fields = self._fields, {}
        if "data" in given:
            data = json.loads(given["data"])
            number = given.get("id")
            yield Event(given.get("event", ""), data.get("job", ""), data, int(number) if number else None)
