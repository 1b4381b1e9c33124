"""The store of jobs for workers on other machines of a Ray cluster.

SQLite's file belongs to one machine. A ``Desk`` is an actor there, with no work of its own; a ``RemoteStore`` is what
a worker elsewhere sees of the store: the same calls, carried to the desk, with the same answers. Files of jobs are not
carried: their folder is shared by all machines.
"""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kandinsky.errors import BackendError
from kandinsky.jobs.ray_connection import reason_of
from kandinsky.jobs.records import Claim, State
from kandinsky.jobs.sqlite_store import open_store
from kandinsky.jobs.store import StoreGone

CALLS = 8  # that a desk answers at once, each with its own connection
CARRIED = ("claim", "renew", "standing", "report", "complete", "fail", "confirm_cancel", "release", "beat")
_SIGN = "shared-"


class Desk:
    """Answers for a store on the machine where its file is.

    Args:
        folder: The store's.
        retention_s: Seconds that a finished job is kept.
    """

    def __init__(self, folder: str, retention_s: float) -> None:
        self._store = open_store(folder, retention_s=retention_s)

    def ask(self, call: str, values: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Carry out one of the calls of a worker."""
        assert call in CARRIED, call
        return getattr(self._store, call)(*values, **named)


class CarriedStore(ABC):
    """A ``WorkStore`` whose calls somebody else answers.

    Args:
        folder: Folder of the store; only the files of jobs in it are used here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        return self._folder

    @abstractmethod
    def _ask(self, call: str, *values: Any, **named: Any) -> Any:
        """Have one of the calls ``CARRIED`` answered."""

    def has_changed(self) -> bool:
        """Always: asking how the claims stand costs the same as asking for changes."""
        return True

    def claim(self, worker: str, *, lease_s: float, at_once: int = 1, models: Sequence[str] = ()) -> list[Claim]:
        """See ``WorkStore``."""
        taken: list[Claim] = self._ask("claim", worker, lease_s=lease_s, at_once=at_once, models=models)
        return taken

    def renew(self, claims: Sequence[Claim], *, lease_s: float) -> tuple[set[str], set[str]]:
        """See ``WorkStore``."""
        found: tuple[set[str], set[str]] = self._ask("renew", claims, lease_s=lease_s)
        return found

    def standing(self, claims: Sequence[Claim]) -> tuple[set[str], set[str]]:
        """See ``WorkStore``."""
        found: tuple[set[str], set[str]] = self._ask("standing", claims)
        return found

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
        """See ``WorkStore``."""
        return bool(self._ask("report", claim, kind, data, phase=phase, step=step, steps=steps))

    def complete(self, claim: Claim, result: Mapping[str, Any], *, run_s: float, size: int) -> State | None:
        """See ``WorkStore``."""
        state: State | None = self._ask("complete", claim, result, run_s=run_s, size=size)
        return state

    def fail(self, claim: Claim, error: Mapping[str, Any]) -> bool:
        """See ``WorkStore``."""
        return bool(self._ask("fail", claim, error))

    def confirm_cancel(self, claim: Claim) -> bool:
        """See ``WorkStore``."""
        return bool(self._ask("confirm_cancel", claim))

    def release(self, claim: Claim) -> bool:
        """See ``WorkStore``."""
        return bool(self._ask("release", claim))

    def beat(self, worker: str, *, pid: int, state: str, facts: Mapping[str, Any]) -> None:
        """See ``WorkStore``."""
        self._ask("beat", worker, pid=pid, state=state, facts=facts)

    def close(self) -> None:  # noqa: B027 - nothing is open here
        """See ``WorkStore``."""


class RemoteStore(CarriedStore):
    """A store behind a desk.

    Args:
        desk: Handle of the actor.
        folder: See ``CarriedStore``.
    """

    def __init__(self, desk: Any, folder: Path) -> None:
        super().__init__(folder)
        self._desk = desk

    def _ask(self, call: str, *values: Any, **named: Any) -> Any:
        """Have the desk carry out a call.

        Raises:
            StoreGone: The desk, its machine or the server that started it is gone.
        """
        import ray

        try:
            return ray.get(self._desk.ask.remote(call, values, named))
        except ray.exceptions.RayTaskError:  # the store itself refused: as if it were here
            raise
        except ray.exceptions.RayError as error:
            raise StoreGone(f"the server's store does not answer: {reason_of(error)}") from error


class UnheardStore(CarriedStore):
    """The store of a worker that follows another, which takes, and reports, for both."""

    def has_changed(self) -> bool:
        return False

    def _ask(self, call: str, *values: Any, **named: Any) -> Any:
        answers = {"claim": [], "renew": (set(), set()), "standing": (set(), set()), "report": True}
        return State.COMPLETED if call == "complete" else answers.get(call, False)


def mark(folder: Path) -> str:
    """Leave a sign in the folder of jobs' files, by which other machines recognise it.

    Args:
        folder: The store's.

    Returns:
        Name of the sign.
    """
    files = folder / "files"
    for old in files.glob(f"{_SIGN}*"):
        old.unlink(missing_ok=True)
    name = f"{_SIGN}{secrets.token_hex(8)}"
    (files / name).touch(mode=0o600)
    return name


def check_shared(folder: Path, sign: str, *, where: str) -> None:
    """Check that the folder of jobs' files is the server's.

    Args:
        folder: The store's, as the server names it.
        sign: Of ``mark``.
        where: This machine, in words.

    Raises:
        BackendError: It is another folder, or cannot be written.
    """
    files = folder / "files"
    if not (files / sign).is_file():
        raise BackendError(f"`{files}` on {where} is not the server's folder: mount the same shared folder there")
    try:
        probe = files / f"{sign}-{secrets.token_hex(4)}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        raise BackendError(f"`{files}` on {where} cannot be written: {os.strerror(error.errno or 0)}") from error
