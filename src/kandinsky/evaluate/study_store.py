"""Studies, annotators and votes in tables of their own, in the SQLite file of the server's jobs."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.evaluate.clips import damaged
from kandinsky.evaluate.studies import DAMAGED, Study
from kandinsky.evaluate.votes import Vote, latest
from kandinsky.files import remove, replacing
from kandinsky.jobs.sqlite_store import BUSY_S, FILE
from kandinsky.media.bare import copy_bare
from kandinsky.media.video import read_video, write_video
from kandinsky.printing import escaped

CLIPS = "study-clips"  # folder of copies, beside the tables
_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, facts TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS study_clips (
    token TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies(id) ON DELETE CASCADE,
    prompt TEXT NOT NULL, model TEXT NOT NULL, path TEXT NOT NULL, UNIQUE (study, prompt, model)
);
CREATE TABLE IF NOT EXISTS study_annotators (
    study TEXT NOT NULL REFERENCES studies(id) ON DELETE CASCADE, name TEXT NOT NULL, seat INTEGER NOT NULL,
    PRIMARY KEY (study, name), UNIQUE (study, seat)
);
CREATE TABLE IF NOT EXISTS study_answers (
    study TEXT NOT NULL REFERENCES studies(id) ON DELETE CASCADE, annotator TEXT NOT NULL, place INTEGER NOT NULL,
    phase TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (study, annotator, place, phase)
);
CREATE TABLE IF NOT EXISTS study_votes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, study TEXT NOT NULL REFERENCES studies(id) ON DELETE CASCADE,
    place INTEGER, phase TEXT, annotator TEXT NOT NULL, prompt TEXT NOT NULL, lefts TEXT NOT NULL,
    rights TEXT NOT NULL, criterion TEXT NOT NULL, choice TEXT NOT NULL, seconds REAL
);
CREATE INDEX IF NOT EXISTS study_votes_by_study ON study_votes (study, number);
"""


class StudyStore:
    """Studies in a folder of jobs; each thread has its own connection.

    Args:
        folder: The folder of the server's store.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._clips = folder.resolve() / CLIPS
        self._local = threading.local()
        try:
            with self._writing() as at:
                for statement in _SCHEMA.split(";"):
                    if statement.strip():
                        at.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise RequestError(f"store `{escaped(folder)}` cannot be used: {error}") from error

    @property
    def _connection(self) -> sqlite3.Connection:
        # a connection must not cross a fork: SQLite's locks belong to the process
        if getattr(self._local, "pid", None) != os.getpid():
            if not self._path.exists():
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            made = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            made.row_factory = sqlite3.Row
            made.execute("PRAGMA journal_mode=WAL")
            made.execute("PRAGMA synchronous=FULL")  # a vote that somebody was thanked for is not lost
            made.execute("PRAGMA foreign_keys=ON")
            self._local.connection, self._local.pid = made, os.getpid()
        connection: sqlite3.Connection = self._local.connection
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def add(self, study: Study, clips: Mapping[tuple[str, str], Path]) -> None:
        """Store a study.

        Args:
            study: The study.
            clips: Clip by prompt and model. They are copied beside the store without their recipes, tags and dates,
                which would tell an annotator the model.

        Raises:
            RequestError: A clip cannot be read, or copies cannot be written.
        """
        facts = {
            "name": study.name, "questions": study.questions, "models": study.models, "prompts": study.prompts,
            "texts": study.texts, "overlap": study.overlap, "seats": study.seats, "seed": study.seed,
            "created": study.created, "pairs": study.count,
            "checks": study.checks,
        }  # fmt: skip
        folder = self._clips / study.id
        coarse = {(prompt, DAMAGED): clips[prompt, study.models[0]] for prompt in study.checks}
        tokens = {key: secrets.token_urlsafe(16) for key in (*clips, *coarse)}
        names = {key: f"{tokens[key]}{path.suffix.lower()}" for key, path in {**clips, **coarse}.items()}
        self._clips.mkdir(mode=0o700, exist_ok=True)  # as everything in a store
        with replacing(folder, folder=True) as part:
            for key, path in clips.items():
                copy_bare(path, part / names[key])
            for key, path in coarse.items():
                whole = part / f"coarse-{names[key]}"
                write_video(damaged(read_video(path)), whole)
                copy_bare(whole, part / names[key])
                remove(whole)
        try:
            self._insert_study(study, facts, {key: (tokens[key], folder / name) for key, name in names.items()})
        except BaseException:
            remove(folder)
            raise

    def _insert_study(
        self, study: Study, facts: Mapping[str, Any], copies: Mapping[tuple[str, str], tuple[str, Path]]
    ) -> None:
        with self._writing() as at:
            at.execute(
                "INSERT INTO studies (id, owner, facts) VALUES (?,?,?)",
                (study.id, study.owner, json.dumps(facts, ensure_ascii=False)),
            )
            at.executemany(
                "INSERT INTO study_clips (token, study, prompt, model, path) VALUES (?,?,?,?,?)",
                [(token, study.id, prompt, model, str(path)) for (prompt, model), (token, path) in copies.items()],
            )

    def get(self, study_id: str) -> Study | None:
        """The study of this name."""
        row = self._connection.execute("SELECT * FROM studies WHERE id=?", (study_id,)).fetchone()
        return None if row is None else _study(row)

    def all(self) -> list[Study]:
        """All studies, the newest first."""
        return [_study(row) for row in self._connection.execute("SELECT * FROM studies ORDER BY number DESC")]

    def delete(self, study_id: str) -> bool:
        """Remove a study with its votes and its copies of the clips."""
        with self._writing() as at:
            is_there = at.execute("DELETE FROM studies WHERE id=?", (study_id,)).rowcount > 0
        if is_there:
            remove(self._clips / study_id)
        return is_there

    def join(self, study_id: str, annotator: str) -> int:
        """The place of an annotator, from 0; a new one gets the next."""
        with self._writing() as at:
            at.execute(
                "INSERT INTO study_annotators (study, name, seat) "
                "SELECT ?1, ?2, COALESCE(MAX(seat) + 1, 0) FROM study_annotators WHERE study=?1 "
                "ON CONFLICT (study, name) DO NOTHING",
                (study_id, annotator),
            )
            (seat,) = at.execute(
                "SELECT seat FROM study_annotators WHERE study=? AND name=?", (study_id, annotator)
            ).fetchone()
            return int(seat)

    def seat(self, study_id: str, annotator: str) -> int | None:
        """The place of an annotator who has joined."""
        row = self._connection.execute(
            "SELECT seat FROM study_annotators WHERE study=? AND name=?", (study_id, annotator)
        ).fetchone()
        return None if row is None else int(row[0])

    def answered(self, study_id: str, annotator: str) -> set[tuple[int, str]]:
        """Places and phases that an annotator is done with."""
        rows = self._connection.execute(
            "SELECT place, phase FROM study_answers WHERE study=? AND annotator=?", (study_id, annotator)
        )
        return {(int(row[0]), str(row[1])) for row in rows}

    def answer(self, study_id: str, annotator: str, place: int, phase: str, votes: Sequence[Vote]) -> None:
        """Store an annotator's answers to one pair in one phase, in place of earlier ones."""
        with self._writing() as at:
            at.execute(
                "DELETE FROM study_votes WHERE study=? AND annotator=? AND place=? AND phase=?",
                (study_id, annotator, place, phase),
            )
            for one in votes:  # an answer takes the place of an imported one
                at.execute(
                    "DELETE FROM study_votes WHERE study=? AND annotator=? AND prompt=? AND criterion=? "
                    "AND place IS NULL AND ? IN (lefts, rights) AND ? IN (lefts, rights)",
                    (study_id, annotator, one.prompt, one.criterion, one.left, one.right),
                )
            _insert(at, study_id, votes, place, phase)
            at.execute(
                "INSERT OR REPLACE INTO study_answers (study, annotator, place, phase, at) VALUES (?,?,?,?,?)",
                (study_id, annotator, place, phase, time.time()),
            )

    def add_votes(self, study_id: str, votes: Sequence[Vote]) -> int:
        """Store votes that were cast elsewhere, all or none; an answer that is there already stays as it is.

        Returns:
            How many were taken.
        """
        with self._writing() as at:
            rows = at.execute(
                "SELECT prompt, lefts, rights, annotator, criterion FROM study_votes WHERE study=?", (study_id,)
            )
            known = {(row[0], frozenset((row[1], row[2])), row[3], row[4]) for row in rows}
            new = [one for one in latest(votes) if one.subject not in known]
            _insert(at, study_id, new, None, None)
        return len(new)

    def votes(self, study_id: str) -> list[Vote]:
        """All votes, in the order in which they came."""
        rows = self._connection.execute("SELECT * FROM study_votes WHERE study=? ORDER BY number", (study_id,))
        return [
            Vote(
                row["prompt"], row["lefts"], row["rights"], row["annotator"], row["criterion"], row["choice"],
                row["seconds"],
            )
            for row in rows
        ]  # fmt: skip

    def counts(self, study_id: str) -> tuple[int, int]:
        """Number of annotators and of votes."""
        at = self._connection
        (people,) = at.execute("SELECT COUNT(*) FROM study_annotators WHERE study=?", (study_id,)).fetchone()
        (votes,) = at.execute("SELECT COUNT(*) FROM study_votes WHERE study=?", (study_id,)).fetchone()
        return int(people), int(votes)

    def token(self, study_id: str, prompt: str, model: str) -> str:
        """The name of a clip that says nothing about its model."""
        row = self._connection.execute(
            "SELECT token FROM study_clips WHERE study=? AND prompt=? AND model=?", (study_id, prompt, model)
        ).fetchone()
        return str(row[0])

    def clip(self, study_id: str, token: str) -> Path | None:
        """The file of a clip."""
        row = self._connection.execute(
            "SELECT path FROM study_clips WHERE study=? AND token=?", (study_id, token)
        ).fetchone()
        return None if row is None else Path(row[0])

    def close(self) -> None:
        """Close this thread's connection."""
        if getattr(self._local, "pid", None) == os.getpid():
            self._local.connection.close()
            self._local.pid = None


def new_id() -> str:
    """A name for a study."""
    return f"study_{secrets.token_hex(8)}"


def _insert(at: sqlite3.Connection, study_id: str, votes: Sequence[Vote], place: int | None, phase: str | None) -> None:
    at.executemany(
        "INSERT INTO study_votes (study, place, phase, annotator, prompt, lefts, rights, criterion, choice, seconds) "
        "VALUES (?,?,?,?,?,?,?,?,?,?)",
        [
            (study_id, place, phase, one.annotator, one.prompt, one.left, one.right, one.criterion, one.choice,
             one.seconds)
            for one in votes
        ],
    )  # fmt: skip


def _study(row: sqlite3.Row) -> Study:
    facts: dict[str, Any] = json.loads(row["facts"])
    return Study(
        row["id"], facts["name"], facts["questions"], tuple(facts["models"]), tuple(facts["prompts"]), facts["texts"],
        facts["overlap"], facts["seats"], facts["seed"], row["owner"], facts["created"], facts["pairs"],
        tuple(facts.get("checks", ())),
    )  # fmt: skip
