"""What a job is: its states and the ways between them, its record, the events it tells. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class State(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


Action = Literal["claim", "complete", "fail", "cancel", "release", "expire", "retry"]
# From each state, where an action leads; an action that is not listed is refused.
TRANSITIONS: Mapping[State, Mapping[Action, State]] = {
    State.QUEUED: {
        "claim": State.RUNNING,
        "cancel": State.CANCELLED,
        "complete": State.COMPLETED,  # this and the next by a process that holds the job itself
        "fail": State.FAILED,
    },
    State.RUNNING: {
        "complete": State.COMPLETED,
        "fail": State.FAILED,
        "cancel": State.CANCELLED,  # confirmed by the worker
        "release": State.QUEUED,  # given back by a worker that stops
        "expire": State.QUEUED,  # or failed, after the last attempt
    },
    State.COMPLETED: {},
    State.FAILED: {"retry": State.QUEUED},
    State.CANCELLED: {"retry": State.QUEUED},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job before it is stored.

    Attributes:
        kind: What it makes: `video`, `image` or `audio`; `load` only loads a model.
        model: The model's name.
        order: Everything a worker needs, as plain values; see ``jobs/order.py``.
        prompt: The prompt, for lists.
        owner: Whose it is; empty where nobody has a key.
        source: The door it came through: `http`, `cli`.
        priority: Higher runs first; jobs of one priority run in the order they came.
        batch: Jobs of one such key may run as one batch: a number, how many at most, and what they have in common;
            empty = alone.
        work: How much it is, in the unit of ``jobs/order.work_of``, for estimates.
        max_attempts: How often it is begun before it is given up.
        idempotency_key: A second job with the same key and owner is not stored.
        body_hash: Digest of what was asked for, to tell a repetition from another request with the same key.
        parent: The job it was derived from.
        holder: A process that runs it itself, so that no worker takes it: the command of a prompt file.
        job_id: Its name, if it is known before, because files were written under it.
    """

    kind: str
    model: str
    order: Mapping[str, Any]
    prompt: str = ""
    owner: str = ""
    source: str = "http"
    priority: int = 0
    batch: str = ""
    work: float = 0.0
    max_attempts: int = 3
    idempotency_key: str | None = None
    body_hash: str = ""
    parent: str | None = None
    holder: str = ""
    job_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What must not be reached already when a job is stored; None = no limit.

    Attributes:
        waiting: Jobs that wait, whosever they are.
        active: Jobs of the same owner that wait or run.
        storage: Bytes of the same owner's files.
    """

    waiting: int | None = None
    active: int | None = None
    storage: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A stored job. Times are seconds since 1970.

    Attributes:
        number: Its place in the order of arrival.
        id: Its name: `job_` and 32 hexadecimal digits that nobody can guess.
        state: Where it is.
        attempts: How often it was begun.
        cancelling: Whether it is to stop.
        created: When it arrived.
        started: When its last attempt began.
        finished: When it ended.
        expires: When it and its files are removed.
        worker: Who runs it, or ran it last.
        phase: What is being done: `loading`, `encode`, `sample`, `decode`, …
        step: Steps of the sampler that are done.
        steps: All of them.
        run_s: Seconds its last attempt took.
        result: Names and facts of its files; see ``jobs/order.Result``.
        error: `code`, `message` and `hint` of a failure.
        bytes: Size of its files.

    Further attributes are those of ``NewJob``.
    """

    number: int
    id: str
    kind: str
    model: str
    order: Mapping[str, Any]
    prompt: str
    owner: str
    source: str
    priority: int
    batch: str
    work: float
    max_attempts: int
    parent: str | None
    holder: str
    state: State
    attempts: int
    cancelling: bool
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    worker: str
    phase: str
    step: int
    steps: int
    run_s: float | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    bytes: int

    @property
    def progress(self) -> int:
        """Percent: sampling is the first nine tenths, decoding and writing the last."""
        if self.state == State.COMPLETED:
            return 100
        if self.state != State.RUNNING or not self.steps:
            return 0
        return min(99, round(90 * self.step / self.steps) + (5 if self.phase in ("decode", "write") else 0))


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job: valid as long as the store says the same worker and attempt."""

    job: JobRecord
    worker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Something that happened to a job; ``id`` grows from event to event over all jobs.

    Attributes:
        id: Its number.
        job: The job.
        owner: Whose.
        kind: `queued`, `started`, `loading`, `phase`, `step`, `preview`, `decoding`, `completed`, `failed` or
            `cancelled`, and `deleted` when it is gone.
        data: What is told.
        at: When, in seconds since 1970.
    """

    id: int
    job: str
    owner: str
    kind: str
    data: Mapping[str, Any]
    at: float


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; ``more`` says whether there is more after it."""

    jobs: tuple[JobRecord, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a queued job stands.

    Attributes:
        place: 1 = the next to begin.
        wait_s: Estimated seconds until it begins; None without experience of these models.
        run_s: Estimated seconds that it takes then.
    """

    place: int
    wait_s: float | None
    run_s: float | None


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as it last reported.

    Attributes:
        name: Its name.
        pid: Its process.
        beat: When it last reported.
        state: `starting`, `ready`, `busy`; one that has `ended` is not listed.
        facts: Device, memory, loaded models.
    """

    name: str
    pid: int
    beat: float
    state: str
    facts: Mapping[str, Any] = field(default_factory=dict)
