"""What a store of jobs can do; ``jobs/sqlite_store.py`` is one. No torch.

Every method is one transaction, and safe from any thread and process. What a worker reports about a job counts only
while its ``Claim`` is valid: after the lease has expired and another attempt began, nothing it says is stored. Owners
(``owner``) see and change their own jobs only; None stands for the operator, who sees all.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kandinsky.errors import RequestError
from kandinsky.jobs.records import (
    NO_LIMITS,
    Claim,
    JobRecord,
    Limits,
    NewJob,
    Page,
    Place,
    State,
    StoredEvent,
    WorkerRecord,
)


class StoreGone(Exception):  # noqa: N818 - as the built-in ``Exception`` names of this kind
    """A store behind a connection does not answer: what a worker of it does is told to nobody any more."""


class NoRoom(RequestError):  # noqa: N818 - as above
    """A limit is reached: the job is not stored.

    Attributes:
        limit: Which one, by its name in ``Limits``.
    """

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


class WorkStore(Protocol):
    """What a worker needs of a store, wherever the store is."""

    @property
    def folder(self) -> Path:
        """Where the files of jobs lie; see ``jobs/job_files.py``."""
        ...

    def has_changed(self) -> bool:
        """Whether anything was stored since this thread last asked; cheap enough to ask often."""
        ...

    def claim(
        self, worker: str, *, lease_s: float, at_once: int = 1, models: Sequence[str] = ()
    ) -> builtins.list[Claim]:
        """Take the next job, and those of the same batch key that may run together with it.

        Args:
            worker: Who takes it.
            lease_s: Seconds until it is taken for lost, unless the lease is renewed.
            at_once: Most jobs of a batch; the number in front of a batch key bounds it too.
            models: Only jobs of these models; empty = all.

        Returns:
            The claims; empty if nothing is queued.
        """
        ...

    def renew(self, claims: Sequence[Claim], *, lease_s: float) -> tuple[set[str], set[str]]:
        """Renew leases.

        Returns:
            Names of the jobs that are to be cancelled, and of those that are lost to this worker.
        """
        ...

    def standing(self, claims: Sequence[Claim]) -> tuple[set[str], set[str]]:
        """As ``renew``, but only read: the jobs to be cancelled, and those that are lost."""
        ...

    def report(
        self,
        claim: Claim,
        kind: str,
        data: Mapping[str, Any],
        *,
        phase: str | None = None,
        step: int | None = None,
        steps: int | None = None,
    ) -> bool:
        """Tell an event of a job, and keep its progress; False if the claim is not valid any more."""
        ...

    def complete(self, claim: Claim, result: Mapping[str, Any], *, run_s: float, size: int) -> State | None:
        """Store the result of a job.

        Returns:
            `completed`; `cancelled` if that was asked for meanwhile; None if the claim is not valid any more. In the
            last two cases the files that were made are to be removed.
        """
        ...

    def fail(self, claim: Claim, error: Mapping[str, Any]) -> bool:
        """Store why a job has no result; False if the claim is not valid any more."""
        ...

    def confirm_cancel(self, claim: Claim) -> bool:
        """Store that a job stopped because that was asked for; False if the claim is not valid any more."""
        ...

    def release(self, claim: Claim) -> bool:
        """Give a job back unfinished; the attempt does not count. False if the claim is not valid any more."""
        ...

    def beat(self, worker: str, *, pid: int, state: str, facts: Mapping[str, Any]) -> None:
        """Report that a worker lives."""
        ...

    def close(self) -> None:
        """Close this thread's connection."""
        ...


class JobStore(WorkStore, Protocol):
    """Durable jobs and their events."""

    # -- for those who ask -------------------------------------------------------------------------------------------

    def add(self, new: NewJob, limits: Limits = NO_LIMITS) -> tuple[JobRecord, bool]:
        """Store a job, which is then durable.

        Args:
            new: The job.
            limits: Checked together with the storing, so that no two jobs share the last place.

        Returns:
            The job, and whether it is new; False for one that was stored before with the same idempotency key, which
            no limit concerns.

        Raises:
            NoRoom: A limit is reached.
            RequestError: The idempotency key belongs to another request.
        """
        ...

    def check_room(self, owner: str, limits: Limits) -> None:
        """Check limits before the work of preparing a job; ``add`` has the last word.

        Raises:
            NoRoom: A limit is reached.
        """
        ...

    def get(self, job_id: str, *, owner: str | None = None) -> JobRecord | None:
        """A job; None if there is none of this name, or it is another owner's."""
        ...

    def by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """The job that was stored with an idempotency key."""
        ...

    def list(
        self,
        *,
        owner: str | None = None,
        kinds: Sequence[str] = (),
        states: Sequence[State] = (),
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
        source: str | None = None,
    ) -> Page:
        """Jobs in order of arrival; ``after`` is the name of the last one of the page before.

        ``source`` chooses those that came through one door.
        """
        ...

    def cancel(self, job_id: str, *, owner: str | None = None) -> JobRecord | None:
        """Cancel a job: at once if it is queued, else as soon as its worker sees it. Finished jobs stay as they are."""
        ...

    def retry(self, job_id: str, *, owner: str | None = None) -> JobRecord | None:
        """Queue a failed or cancelled job again, with as many attempts as a new one.

        Raises:
            RequestError: It is queued, running or completed, or is not run by workers.
        """
        ...

    def delete(self, job_id: str, *, owner: str | None = None) -> bool:
        """Remove a finished job, its events and files; False if there is no finished job of this name."""
        ...

    def place(self, job_id: str) -> Place | None:
        """Where a queued job stands; None if it is not queued."""
        ...

    def pace(self, model: str) -> float | None:
        """Seconds that a model lately took for one unit of work; None without experience."""
        ...

    def counts(self, *, owner: str | None = None) -> Mapping[State, int]:
        """Number of jobs in each state."""
        ...

    def bytes_of(self, owner: str) -> int:
        """Size of an owner's files."""
        ...

    def events(
        self, after: int, *, owner: str | None = None, job_id: str | None = None, limit: int = 500
    ) -> Sequence[StoredEvent]:
        """Events with a number above ``after``, in order."""
        ...

    def last_event(self) -> int:
        """Number of the latest event; 0 if there was none."""
        ...

    # -- for those who start workers ---------------------------------------------------------------------------------

    def waiting(self, models: Sequence[str] = ()) -> int:
        """Number of jobs that ``claim`` could take, of these models; empty = all."""
        ...

    def workers(self, *, within_s: float = 30.0) -> Sequence[WorkerRecord]:
        """Workers that reported lately."""
        ...

    def bury(self, worker: str, *, on_purpose: bool = False) -> builtins.list[str]:
        """A worker is dead: its jobs begin again, or fail after their last attempt.

        Args:
            worker: Its name.
            on_purpose: It was ended from outside, so that the attempts do not count against its jobs.

        Returns:
            The names of its jobs.
        """
        ...

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def expire(self) -> builtins.list[str]:
        """Give jobs whose lease has expired back to the queue; those out of attempts fail. Returns their names."""
        ...

    def prune(self, *, finished_before: float | None = None, owner: str | None = None) -> builtins.list[str]:
        """Remove jobs whose time is over, or that finished before a moment, with their files. Returns their names."""
        ...
