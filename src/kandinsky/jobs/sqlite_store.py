"""Durable jobs in a SQLite file: WAL, one connection a thread, every change in an immediate transaction. No torch.

A write that a client was told of survives the loss of power (`synchronous=FULL` for new, finished and changed jobs);
progress survives the death of processes. The folder must lie on a local disk, since WAL needs shared memory.
"""

from __future__ import annotations

import builtins
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.jobs import job_files
from kandinsky.jobs.records import (
    NO_LIMITS,
    TRANSITIONS,
    Action,
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
from kandinsky.jobs.store import NoRoom
from kandinsky.printing import escaped

FILE = "jobs.sqlite3"
VERSION = 1
BUSY_S = 20.0
RETENTION_S = 30 * 86400.0
EVENTS_KEPT_S = 3600.0  # of steps and previews after they were told; state changes stay as long as their job
HELD_S = 60.0  # a held job whose process is silent for so long is interrupted
RECENT = 20  # finished jobs that an estimate looks at
SAMPLING = 0.9  # of a job, in estimates
MOST_LISTED = 1000
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL, model TEXT NOT NULL, orders TEXT NOT NULL, prompt TEXT NOT NULL,
    owner TEXT NOT NULL, source TEXT NOT NULL, priority INTEGER NOT NULL, batch TEXT NOT NULL, work REAL NOT NULL,
    max_attempts INTEGER NOT NULL, idempotency_key TEXT, body_hash TEXT NOT NULL, parent TEXT, holder TEXT NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, begun INTEGER NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, started REAL, finished REAL, expires REAL, lease REAL, wished REAL,
    worker TEXT NOT NULL DEFAULT '', phase TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0,
    run_s REAL, result TEXT, error TEXT, bytes INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_in_queue ON jobs (state, priority DESC, number);
CREATE INDEX jobs_by_owner ON jobs (owner, number);
CREATE INDEX jobs_by_model ON jobs (model, state, finished);
CREATE INDEX jobs_by_expiry ON jobs (expires) WHERE expires IS NOT NULL;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL, owner TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, at REAL NOT NULL
);
CREATE INDEX events_by_job ON events (job, id);
CREATE INDEX events_by_time ON events (at);
CREATE TABLE workers (
    name TEXT PRIMARY KEY, pid INTEGER NOT NULL, beat REAL NOT NULL, state TEXT NOT NULL, facts TEXT NOT NULL
);
CREATE TABLE doomed (id TEXT PRIMARY KEY);
"""
_COLUMNS = (
    "number, id, kind, model, orders, prompt, owner, source, priority, batch, work, max_attempts, parent, holder, "
    "state, attempts, cancelling, created, started, finished, expires, worker, phase, step, steps, run_s, "
    "result, error, bytes"
)


@dataclass(frozen=True, slots=True)
class _Running:
    """A job that runs, as estimates look at it."""

    worker: str
    model: str
    work: float
    taken_s: float
    step: int
    steps: int

    @property
    def expected_s(self) -> float | None:
        """Seconds of the whole job, from the steps that are done; sampling is the first nine tenths."""
        return self.taken_s * self.steps / (SAMPLING * self.step) if self.step else None

    def left_s(self, pace: float | None) -> float | None:
        """Seconds until it ends: by its own steps, else by what such jobs lately took."""
        whole = self.expected_s or (None if pace is None else pace * self.work)
        return None if whole is None else max(0.0, whole - self.taken_s)


def default_folder() -> Path:
    """Where jobs are kept unless a folder is named; nothing is created."""
    base = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return base / "kandinsky" / "jobs"


def open_store(folder: str | Path | None = None, *, retention_s: float = RETENTION_S) -> SqliteStore:
    """Open the store in a folder, creating it if need be.

    Args:
        folder: Where it lies; None for ``default_folder``.
        retention_s: Seconds that a finished job is kept.

    Returns:
        The store.

    Raises:
        RequestError: The folder cannot be used, or a newer version of this library wrote it.
    """
    return SqliteStore(default_folder() if folder is None else local_path(folder, "store"), retention_s=retention_s)


class SqliteStore:
    """A ``JobStore`` in one file of SQLite.

    Args:
        folder: Where the file and the jobs' files lie.
        retention_s: Seconds that a finished job is kept.
        clock: Tells the time, in seconds since 1970.
    """

    def __init__(
        self, folder: Path, *, retention_s: float = RETENTION_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = Path(os.path.realpath(folder))
        self.retention_s = retention_s
        self.clock = clock
        self._local = threading.local()
        try:
            job_files.prepare(self._folder)
            self._create()
        except (OSError, sqlite3.Error) as error:
            raise RequestError(f"store `{escaped(folder)}` cannot be used: {error}") from error

    @property
    def folder(self) -> Path:
        return self._folder

    # -- connections -------------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        path = self._folder / FILE
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        made = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        made.row_factory = sqlite3.Row
        made.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1000)}")
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("PRAGMA synchronous=NORMAL")
        made.execute("PRAGMA foreign_keys=ON")
        return made

    @property
    def _connection(self) -> sqlite3.Connection:
        # a connection must not cross a fork: SQLite's locks belong to the process
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.connection, self._local.pid, self._local.version = self._connect(), os.getpid(), -1
        connection: sqlite3.Connection = self._local.connection
        return connection

    @contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its beginning, so that it never fails half-way."""
        connection = self._connection
        if durable:
            connection.execute("PRAGMA synchronous=FULL")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        finally:
            if durable:
                connection.execute("PRAGMA synchronous=NORMAL")

    def _create(self) -> None:
        with self._writing(durable=True) as at:
            (found,) = at.execute("PRAGMA user_version").fetchone()
            if found == VERSION:
                return
            if found != 0:
                raise RequestError(f"store `{self._folder}` was written by another version: choose another folder")
            for statement in _SCHEMA.split(";"):
                if statement.strip():
                    at.execute(statement)
            at.execute(f"PRAGMA user_version={VERSION}")

    def close(self) -> None:
        """Close this thread's connection."""
        if getattr(self._local, "pid", None) == os.getpid():
            self._local.connection.close()
            self._local.pid = None

    # -- for those who ask -------------------------------------------------------------------------------------------

    def add(self, new: NewJob, limits: Limits = NO_LIMITS) -> tuple[JobRecord, bool]:
        """See ``JobStore``."""
        name = new.job_id or new_id()
        job_files.folder_of(self._folder, name)
        with self._writing(durable=True) as at:
            if new.idempotency_key is not None:
                row = at.execute(
                    f"SELECT {_COLUMNS}, body_hash FROM jobs WHERE owner=? AND idempotency_key=?",
                    (new.owner, new.idempotency_key),
                ).fetchone()
                if row is not None:
                    if row["body_hash"] != new.body_hash:
                        raise RequestError("this idempotency key belongs to another request: use a new one")
                    return _record(row), False
            self.check_room(new.owner, limits)
            now = self.clock()
            lease = now + HELD_S if new.holder else None
            at.execute(
                "INSERT INTO jobs (id, kind, model, orders, prompt, owner, source, priority, batch, work, max_attempts,"
                " idempotency_key, body_hash, parent, holder, state, created, lease, worker)"
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    name, new.kind, new.model, _text(new.order), new.prompt, new.owner, new.source, new.priority,
                    new.batch, new.work, new.max_attempts, new.idempotency_key, new.body_hash, new.parent, new.holder,
                    State.QUEUED, now, lease, new.holder,
                ),
            )  # fmt: skip
            self._tell(at, name, new.owner, State.QUEUED, {"created": now})
            return self._row(at, name), True

    def check_room(self, owner: str, limits: Limits) -> None:
        """See ``JobStore``."""
        if limits.waiting is not None and (waiting := self.waiting()) >= limits.waiting:
            raise NoRoom("waiting", f"{waiting} jobs wait already, which is the most here")
        if limits.active is not None:
            mine = self.counts(owner=owner)
            active = mine[State.QUEUED] + mine[State.RUNNING]
            if active >= limits.active:
                raise NoRoom("active", f"{active} jobs of this key wait or run, which is its limit")
        if limits.storage is not None and self.bytes_of(owner) >= limits.storage:
            raise NoRoom("storage", "the files of this key take all the room it has: delete some")

    def get(self, job_id: str, *, owner: str | None = None) -> JobRecord | None:
        """See ``JobStore``."""
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE id=? AND (?2 IS NULL OR owner=?2)", (job_id, owner)
        ).fetchone()
        return None if row is None else _record(row)

    def by_key(self, owner: str, idempotency_key: str) -> JobRecord | None:
        """See ``JobStore``."""
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE owner=? AND idempotency_key=?", (owner, idempotency_key)
        ).fetchone()
        return None if row is None else _record(row)

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
        """See ``JobStore``."""
        limit = max(1, min(limit, MOST_LISTED))
        asked: builtins.list[Any] = []
        where = ["1"]
        if owner is not None:
            where.append("owner=?")
            asked.append(owner)
        for column, values in (("kind", kinds), ("state", states), ("source", [source] if source else [])):
            if values:
                where.append(f"{column} IN ({','.join('?' * len(values))})")
                asked += values
        if after is not None:
            last = self.get(after, owner=owner)
            if last is None:
                raise RequestError(f"`{escaped(after[:80])}` is not the name of a job: pass `after` as a list gave it")
            where.append("number<?" if newest_first else "number>?")
            asked.append(last.number)
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE {' AND '.join(where)} "
            f"ORDER BY number {'DESC' if newest_first else 'ASC'} LIMIT ?",
            (*asked, limit + 1),
        ).fetchall()
        return Page(tuple(map(_record, rows[:limit])), len(rows) > limit)

    def cancel(self, job_id: str, *, owner: str | None = None) -> JobRecord | None:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            job = self._find(at, job_id, owner)
            if job is None:
                return None
            if job.state == State.QUEUED:
                self._move(at, job, "cancel", {"while": "queued"})
            elif job.state == State.RUNNING:
                at.execute(
                    "UPDATE jobs SET cancelling=1, wished=COALESCE(wished, ?) WHERE id=?", (self.clock(), job.id)
                )
            return self._row(at, job.id)

    def retry(self, job_id: str, *, owner: str | None = None) -> JobRecord | None:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            job = self._find(at, job_id, owner)
            if job is None:
                return None
            if job.source == "cli":
                raise RequestError(f"`{job.id}` belongs to a prompt file: the same command makes what is missing")
            if "retry" not in TRANSITIONS[job.state]:
                raise RequestError(f"`{job.id}` is {job.state}: only failed and cancelled jobs are tried again")
            at.execute(
                "UPDATE jobs SET attempts=0, cancelling=0, wished=NULL, error=NULL, result=NULL, finished=NULL, "
                "expires=NULL, phase='', step=0 WHERE id=?",
                (job.id,),
            )
            # whoever follows it waits for the end of what comes, not of what was
            at.execute("DELETE FROM events WHERE job=?", (job.id,))
            self._move(at, job, "retry", {})
            return self._row(at, job.id)

    def delete(self, job_id: str, *, owner: str | None = None) -> bool:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            job = self._find(at, job_id, owner)
            if job is None or not job.state.is_final:
                return False
            self._doom(at, job.id, job.owner)
        self._bury_files()
        return True

    def place(self, job_id: str) -> Place | None:
        """See ``JobStore``."""
        at = self._connection
        row = at.execute("SELECT number, priority, model, work, state FROM jobs WHERE id=?", (job_id,)).fetchone()
        if row is None or row["state"] != State.QUEUED:
            return None
        ahead = at.execute(
            "SELECT model, SUM(work) AS work, COUNT(*) AS count FROM jobs WHERE state='queued' AND holder='' AND "
            "(priority>? OR (priority=? AND number<?)) GROUP BY model",
            (row["priority"], row["priority"], row["number"]),
        ).fetchall()
        now = self.clock()
        running = [
            _Running(one["worker"], one["model"], one["work"], now - (one["started"] or now), one["step"], one["steps"])
            for one in at.execute(
                "SELECT worker, model, work, started, step, steps FROM jobs WHERE state='running' AND holder=''"
            ).fetchall()
        ]
        paces = {model: self.pace(model) for model in {row["model"], *(one["model"] for one in ahead)}}
        for one in running:  # what is being made now is experience, too
            if paces.setdefault(one.model, self.pace(one.model)) is None and one.expected_s is not None and one.work:
                paces[one.model] = one.expected_s / one.work
        pace = paces[row["model"]]
        own = None if pace is None else pace * row["work"]
        wait: float | None = 0.0
        for one in ahead:
            known = paces[one["model"]]
            wait = None if wait is None or known is None else wait + known * one["work"]
        left_s: dict[str, float] = {}  # of each worker: the jobs of a batch run together
        for one in running:
            left = one.left_s(paces[one.model])
            wait = None if left is None else wait
            left_s[one.worker] = max(left_s.get(one.worker, 0.0), left or 0.0)
        wait = None if wait is None else wait + sum(left_s.values())
        if wait is not None:
            wait /= max(1, len(self.workers()))
        return Place(1 + sum(one["count"] for one in ahead), wait, own)

    def pace(self, model: str) -> float | None:
        """See ``JobStore``."""
        row = self._connection.execute(
            "SELECT SUM(run_s) AS taken, SUM(work) AS work FROM (SELECT run_s, work FROM jobs WHERE model=? AND "
            "state='completed' AND run_s IS NOT NULL AND work>0 ORDER BY finished DESC LIMIT ?)",
            (model, RECENT),
        ).fetchone()
        return row["taken"] / row["work"] if row["work"] else None

    def counts(self, *, owner: str | None = None) -> Mapping[State, int]:
        """See ``JobStore``."""
        rows = self._connection.execute(
            "SELECT state, COUNT(*) FROM jobs WHERE (?1 IS NULL OR owner=?1) GROUP BY state", (owner,)
        ).fetchall()
        found = {State(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in State}

    def bytes_of(self, owner: str) -> int:
        """See ``JobStore``."""
        (total,) = self._connection.execute("SELECT SUM(bytes) FROM jobs WHERE owner=?", (owner,)).fetchone()
        return int(total or 0)

    def events(
        self, after: int, *, owner: str | None = None, job_id: str | None = None, limit: int = 500
    ) -> Sequence[StoredEvent]:
        """See ``JobStore``."""
        rows = self._connection.execute(
            "SELECT id, job, owner, kind, data, at FROM events WHERE id>?1 AND (?2 IS NULL OR owner=?2) AND "
            "(?3 IS NULL OR job=?3) ORDER BY id LIMIT ?4",
            (after, owner, job_id, limit),
        ).fetchall()
        return [StoredEvent(r["id"], r["job"], r["owner"], r["kind"], json.loads(r["data"]), r["at"]) for r in rows]

    def last_event(self) -> int:
        """See ``JobStore``."""
        row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name='events'").fetchone()
        return 0 if row is None else int(row[0])

    def has_changed(self) -> bool:
        """See ``JobStore``."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        changed = version != self._local.version
        self._local.version = version
        return bool(changed)

    # -- for those who work ------------------------------------------------------------------------------------------

    def waiting(self, models: Sequence[str] = ()) -> int:
        """See ``JobStore``."""
        among = f"AND model IN ({','.join('?' * len(models))})" if models else ""
        (count,) = self._connection.execute(
            f"SELECT COUNT(*) FROM jobs WHERE state='queued' AND holder='' {among}", tuple(models)
        ).fetchone()
        return int(count)

    def claim(
        self, worker: str, *, lease_s: float, at_once: int = 1, models: Sequence[str] = ()
    ) -> builtins.list[Claim]:
        """See ``JobStore``."""
        among = f"AND model IN ({','.join('?' * len(models))})" if models else ""
        query = f"SELECT {_COLUMNS} FROM jobs WHERE state='queued' AND holder='' {among}"
        ordered = "ORDER BY priority DESC, number LIMIT"
        if self._connection.execute(f"{query} {ordered} 1", tuple(models)).fetchone() is None:
            return []  # without the write lock: an idle worker disturbs nobody
        with self._writing() as at:
            first = at.execute(f"{query} {ordered} 1", tuple(models)).fetchone()
            if first is None:
                return []
            rows = [first]
            if first["batch"] and (most := min(at_once, int(first["batch"].partition(" ")[0]))) > 1:
                rows = at.execute(f"{query} AND batch=? {ordered} ?", (*models, first["batch"], most)).fetchall()
            now = self.clock()
            claims = []
            for row in rows:
                job = _record(row)
                at.execute(
                    "UPDATE jobs SET worker=?, lease=?, started=?, attempts=attempts+1, begun=begun+1, phase='', "
                    "step=0, cancelling=0, wished=NULL WHERE id=?",
                    (worker, now + lease_s, now, job.id),
                )
                begun = at.execute("SELECT begun FROM jobs WHERE id=?", (job.id,)).fetchone()[0]
                self._move(at, job, "claim", {"attempt": job.attempts + 1, "waited_s": round(now - job.created, 3)})
                claims.append(Claim(self._row(at, job.id), worker, begun))
            return claims

    def renew(self, claims: Sequence[Claim], *, lease_s: float) -> tuple[set[str], set[str]]:
        """See ``JobStore``."""
        if not claims:
            return set(), set()
        cancelled, lost = set(), set()
        with self._writing() as at:
            for claim in claims:
                row = at.execute(
                    "UPDATE jobs SET lease=? WHERE id=? AND worker=? AND begun=? AND state='running' "
                    "RETURNING cancelling",
                    (self.clock() + lease_s, claim.job.id, claim.worker, claim.attempt),
                ).fetchone()
                if row is None:
                    lost.add(claim.job.id)
                elif row["cancelling"]:
                    cancelled.add(claim.job.id)
        return cancelled, lost

    def standing(self, claims: Sequence[Claim]) -> tuple[set[str], set[str]]:
        """As ``renew``, but only read: the jobs to be cancelled, and those that are lost."""
        cancelled, lost = set(), set()
        for claim in claims:
            row = self._connection.execute(
                "SELECT cancelling FROM jobs WHERE id=? AND worker=? AND begun=? AND state='running'",
                (claim.job.id, claim.worker, claim.attempt),
            ).fetchone()
            if row is None:
                lost.add(claim.job.id)
            elif row["cancelling"]:
                cancelled.add(claim.job.id)
        return cancelled, lost

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
        """See ``JobStore``."""
        with self._writing() as at:
            row = at.execute(
                "UPDATE jobs SET phase=COALESCE(?,phase), step=COALESCE(?,step), steps=COALESCE(?,steps) "
                "WHERE id=? AND worker=? AND begun=? AND state='running' RETURNING owner",
                (phase, step, steps, claim.job.id, claim.worker, claim.attempt),
            ).fetchone()
            if row is None:
                return False
            self._tell(at, claim.job.id, row["owner"], kind, data)
            return True

    def complete(self, claim: Claim, result: Mapping[str, Any], *, run_s: float, size: int) -> State | None:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            job = self._claimed(at, claim)
            if job is None:
                return None
            if job.cancelling:
                self._move(at, job, "cancel", {"while": "finishing"})
                return State.CANCELLED
            at.execute(
                "UPDATE jobs SET result=?, run_s=?, bytes=?, step=steps WHERE id=?",
                (_text(result), run_s, size, job.id),
            )
            self._move(at, job, "complete", {"run_s": round(run_s, 3)})
            return State.COMPLETED

    def fail(self, claim: Claim, error: Mapping[str, Any]) -> bool:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            job = self._claimed(at, claim)
            if job is None:
                return False
            at.execute("UPDATE jobs SET error=? WHERE id=?", (_text(error), job.id))
            self._move(at, job, "fail", {"error": dict(error)})
            return True

    def confirm_cancel(self, claim: Claim) -> bool:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            job = self._claimed(at, claim)
            if job is None:
                return False
            self._move(at, job, "cancel", {"while": job.phase or "starting", "step": job.step})
            return True

    def release(self, claim: Claim) -> bool:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            job = self._claimed(at, claim)
            if job is None:
                return False
            self._given_back(at, job)
            return True

    def hold(self, holder: str) -> None:
        """Renew the leases of the jobs that a process runs itself (``NewJob.holder``)."""
        with self._writing() as at:
            at.execute(
                "UPDATE jobs SET lease=? WHERE holder=? AND state IN ('queued','running')",
                (self.clock() + HELD_S, holder),
            )

    def begin(self, job_id: str) -> None:
        """Store that a held job is being run."""
        with self._writing() as at:
            job = self._find(at, job_id, None)
            if job is not None and job.holder and job.state == State.QUEUED:
                at.execute("UPDATE jobs SET started=?, attempts=1 WHERE id=?", (self.clock(), job_id))
                self._move(at, job, "claim", {"attempt": 1})

    def settle(
        self,
        job_id: str,
        *,
        result: Mapping[str, Any] | None,
        error: Mapping[str, Any] | None,
        run_s: float | None,
        size: int = 0,
    ) -> None:
        """Store how a held job ended, and the bytes of its files that lie in the store."""
        with self._writing(durable=True) as at:
            job = self._find(at, job_id, None)
            if job is None or not job.holder or job.state.is_final:
                return
            at.execute(
                "UPDATE jobs SET result=?, error=?, run_s=?, bytes=?, attempts=MAX(1, attempts) WHERE id=?",
                (
                    None if result is None else _text(result), None if error is None else _text(error), run_s, size,
                    job_id,
                ),
            )  # fmt: skip
            self._move(at, job, "complete" if error is None else "fail", {})

    def beat(self, worker: str, *, pid: int, state: str, facts: Mapping[str, Any]) -> None:
        """See ``JobStore``."""
        with self._writing() as at:
            at.execute(
                "INSERT INTO workers (name, pid, beat, state, facts) VALUES (?,?,?,?,?) ON CONFLICT (name) DO UPDATE "
                "SET pid=excluded.pid, beat=excluded.beat, state=excluded.state, facts=excluded.facts",
                (worker, pid, self.clock(), state, _text(facts)),
            )

    def workers(self, *, within_s: float = 30.0) -> Sequence[WorkerRecord]:
        """See ``JobStore``."""
        rows = self._connection.execute(
            "SELECT name, pid, beat, state, facts FROM workers WHERE beat>? AND state<>'ended' ORDER BY name",
            (self.clock() - within_s,),
        ).fetchall()
        return [WorkerRecord(r["name"], r["pid"], r["beat"], r["state"], json.loads(r["facts"])) for r in rows]

    def bury(self, worker: str, *, on_purpose: bool = False) -> builtins.list[str]:
        """See ``JobStore``."""
        with self._writing(durable=True) as at:
            at.execute("DELETE FROM workers WHERE name=?", (worker,))
            rows = at.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE state='running' AND worker=? AND holder=''", (worker,)
            ).fetchall()
            jobs = [_record(row) for row in rows]
            if on_purpose:
                ended = [self._given_back(at, job) for job in jobs]
            else:
                ended = [self._lost(at, job, "its worker died") for job in jobs]
            last = at.execute(
                "SELECT id FROM jobs WHERE state='completed' AND worker=? AND holder='' ORDER BY finished DESC LIMIT 1",
                (worker,),
            ).fetchone()
        if last is not None:  # it may have died between storing the result and removing what led to it
            job_files.remove_steps(self._folder, last["id"])
        return ended

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def expire(self) -> builtins.list[str]:
        """See ``JobStore``."""
        now = self.clock()
        overdue = "(state='running' OR (state='queued' AND holder<>'')) AND lease<?"
        if self._connection.execute(f"SELECT 1 FROM jobs WHERE {overdue} LIMIT 1", (now,)).fetchone() is None:
            return []
        with self._writing(durable=True) as at:
            rows = at.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {overdue}", (now,)).fetchall()
            return [self._lost(at, _record(row), "its worker was not heard of any more") for row in rows]

    def prune(self, *, finished_before: float | None = None, owner: str | None = None) -> builtins.list[str]:
        """See ``JobStore``."""
        now = self.clock()
        if finished_before is None:
            where, asked = "expires IS NOT NULL AND expires<?", now
        else:
            where, asked = "finished IS NOT NULL AND finished<?", finished_before
        with self._writing(durable=True) as at:
            rows = at.execute(
                f"SELECT id, owner FROM jobs WHERE state IN ('completed','failed','cancelled') AND {where} "
                "AND (?2 IS NULL OR owner=?2)",
                (asked, owner),
            ).fetchall()
            for row in rows:
                self._doom(at, row["id"], row["owner"])
            at.execute(
                "DELETE FROM events WHERE at<? AND kind IN ('step','preview','decoding','phase','loading','deleted')",
                (now - EVENTS_KEPT_S,),
            )
            at.execute("DELETE FROM workers WHERE beat<?", (now - 3600.0,))
        self._bury_files()
        return [row["id"] for row in rows]

    # -- within a transaction ----------------------------------------------------------------------------------------

    def _row(self, at: sqlite3.Connection, job_id: str) -> JobRecord:
        return _record(at.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id=?", (job_id,)).fetchone())

    def _find(self, at: sqlite3.Connection, job_id: str, owner: str | None) -> JobRecord | None:
        row = at.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE id=? AND (?2 IS NULL OR owner=?2)", (job_id, owner)
        ).fetchone()
        return None if row is None else _record(row)

    def _claimed(self, at: sqlite3.Connection, claim: Claim) -> JobRecord | None:
        row = at.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE id=? AND worker=? AND begun=? AND state='running'",
            (claim.job.id, claim.worker, claim.attempt),
        ).fetchone()
        return None if row is None else _record(row)

    def _move(self, at: sqlite3.Connection, job: JobRecord, action: Action, data: Mapping[str, Any]) -> None:
        """Carry out a transition and tell it; the caller has checked that it is one."""
        state = TRANSITIONS[job.state][action]
        now = self.clock()
        if state == State.CANCELLED:
            (wished,) = at.execute("SELECT wished FROM jobs WHERE id=?", (job.id,)).fetchone()
            data = {**data, "after_s": 0.0 if wished is None else round(now - wished, 4)}
        at.execute("UPDATE jobs SET state=? WHERE id=?", (state, job.id))
        if state.is_final:
            at.execute(
                "UPDATE jobs SET finished=?, expires=?, lease=NULL WHERE id=?", (now, now + self.retention_s, job.id)
            )
            if state != State.COMPLETED:  # what stays of it takes its owner's room, too
                size = job_files.size_left(self._folder, job.id)
                at.execute("UPDATE jobs SET bytes=? WHERE id=?", (size, job.id))
        elif state == State.QUEUED:
            at.execute("UPDATE jobs SET lease=NULL, phase='', step=0 WHERE id=?", (job.id,))
        told = "started" if state == State.RUNNING else str(state)
        self._tell(at, job.id, job.owner, told, data)

    def _given_back(self, at: sqlite3.Connection, job: JobRecord) -> str:
        """A running job that somebody stops for reasons of theirs: begin again, as if it had not begun."""
        if job.cancelling:
            self._move(at, job, "cancel", {"while": job.phase})
        else:
            at.execute("UPDATE jobs SET attempts=MAX(0, attempts-1), worker='' WHERE id=?", (job.id,))
            self._move(at, job, "release", {"again": True})
        return job.id

    def _lost(self, at: sqlite3.Connection, job: JobRecord, why: str) -> str:
        """A running job whose worker is gone: begin again, or give up."""
        if job.cancelling:
            self._move(at, job, "cancel", {"while": "lost"})
        elif job.holder:
            error = {"code": "interrupted", "message": "the command that made it was interrupted", "hint": ""}
            at.execute("UPDATE jobs SET error=? WHERE id=?", (_text(error), job.id))
            self._move(at, job, "fail", {"error": error})
        elif job.attempts >= job.max_attempts:
            error = {"code": "worker_died", "message": f"{why} in each of {job.attempts} attempts", "hint": ""}
            at.execute("UPDATE jobs SET error=? WHERE id=?", (_text(error), job.id))
            self._move(at, job, "fail", {"error": error})
        else:
            self._move(at, job, "expire", {"again": True, "why": why})
        return job.id

    def _tell(self, at: sqlite3.Connection, job_id: str, owner: str, kind: str, data: Mapping[str, Any]) -> None:
        at.execute(
            "INSERT INTO events (job, owner, kind, data, at) VALUES (?,?,?,?,?)",
            (job_id, owner, kind, _text(data), self.clock()),
        )

    def _doom(self, at: sqlite3.Connection, job_id: str, owner: str) -> None:
        """Take a job out of all lists, and tell it; its files go afterwards, and again after a crash in between."""
        at.execute("INSERT OR IGNORE INTO doomed (id) VALUES (?)", (job_id,))
        at.execute("DELETE FROM events WHERE job=?", (job_id,))
        (source,) = at.execute("DELETE FROM jobs WHERE id=? RETURNING source", (job_id,)).fetchone()
        self._tell(at, job_id, owner, "deleted", {} if source == "http" else {"source": source})

    def _bury_files(self) -> None:
        for (job_id,) in self._connection.execute("SELECT id FROM doomed").fetchall():
            job_files.remove_all(self._folder, job_id)
            with self._writing() as at:
                at.execute("DELETE FROM doomed WHERE id=?", (job_id,))


def new_id() -> str:
    """A name that nobody can guess."""
    return f"job_{secrets.token_hex(16)}"


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=True, allow_nan=False)


def _record(row: sqlite3.Row) -> JobRecord:
    values = {name: row[name] for name in _COLUMNS.split(", ") if name != "orders"}
    values |= {
        "order": json.loads(row["orders"]),
        "state": State(row["state"]),
        "cancelling": bool(row["cancelling"]),
        "result": None if row["result"] is None else json.loads(row["result"]),
        "error": None if row["error"] is None else json.loads(row["error"]),
    }
    return JobRecord(**values)
