"""Stages: pure functions from rows to rows, and the store that remembers what each of them has done.

A row of a stage carries a key (the file or the scene) and a lineage: a hash of the stage's name, revision and settings,
and of the lineages of the rows it was made from. A row whose key and lineage are in the store is never made again, so
a run goes on where it was stopped, a second run does nothing, and whatever changes is redone with all that follows from
it and nothing else. Results are written in parts, each beside its place and renamed, as soon as a batch is done.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky.curate import tables
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import remove, sweep
from kandinsky.weights.untrusted import first_line

Row = dict[str, Any]
Rows = list[Row]
BATCH = 16  # rows between two writes
_PARTS = 32  # of a stage, before they are written as one

WORK = ".work"  # of a data set: what its stages found


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of curation.

    Attributes:
        name: Also of its folder in the store.
        revision: Another one whenever its results change.
        needs: Columns that it reads.
        gives: Columns that it adds, with their types as ``tables.kind`` reads them.
        run: A row for each row of a batch, in the same order, with the columns of ``gives``. It raises for nothing that
            is wrong with a file: that is told in a column.
        settings: What else its results depend on.
    """

    name: str
    revision: str
    needs: tuple[str, ...]
    gives: Mapping[str, str]
    run: Callable[[Rows], Rows]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def lineage(self, *before: str) -> str:
        """The lineage of a row made from rows with these lineages."""
        return digest(self.name, self.revision, dict(self.settings), *before)


def digest(*values: Any) -> str:
    """16 hexadecimal digits that depend on values JSON can hold."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Tally:
    """What a stage did in a run.

    Attributes:
        name: Of the stage.
        new: Rows that were made.
        known: Rows that were there.
        passed: Rows that go on to the next stage.
    """

    name: str
    new: int = 0
    known: int = 0
    passed: int = 0


class Store:
    """Results of stages in a folder.

    Args:
        folder: Created when the first results are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, stage: Stage) -> dict[str, Row]:
        """The last row of each key; parts that are damaged count as absent."""
        found: dict[str, Row] = {}
        for part in self._parts(stage.name):
            try:
                table = tables.read(part)
            except RequestError:
                remove(part)
                continue
            if table.column_names == ["key", "lineage", *stage.gives]:
                found |= {row["key"]: row for row in table.to_pylist()}
        return found

    def put(self, stage: Stage, rows: Iterable[Row]) -> Rows:
        """Add rows; each has `key`, `lineage` and the columns that the stage gives.

        Returns:
            The rows as they will be read again, so that a run which goes on gets the very same.
        """
        parts = self._parts(stage.name)
        number = int(parts[-1].stem) + 1 if parts else 0
        return self._write(stage, rows, number)

    def tidy(self, stage: Stage, living: set[str]) -> None:
        """Write many parts as one; rows of keys that are gone are dropped."""
        parts = self._parts(stage.name)
        if len(parts) < _PARTS:
            return
        rows = [row for key, row in self.rows(stage).items() if key in living]
        self._write(stage, rows, int(parts[-1].stem) + 1)
        for part in parts:
            remove(part)

    def _write(self, stage: Stage, rows: Iterable[Row], number: int) -> Rows:
        columns = {"key": "string", "lineage": "string", **stage.gives}
        table = tables.table_of(list(rows), columns)
        tables.write(table, self.folder / stage.name / f"{number:08d}.parquet")
        made: Rows = table.to_pylist()
        return made

    def _parts(self, name: str) -> list[Path]:
        folder = self.folder / name
        if not folder.is_dir():
            return []
        sweep(folder)
        return sorted(folder.glob("[0-9]*.parquet"))


def apply(
    stage: Stage,
    rows: Sequence[Row],
    store: Store,
    tally: Tally,
    is_there: Callable[[Row], bool] = lambda _: True,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Rows:
    """Rows with the columns of a stage; those in the store are taken from there.

    Args:
        stage: The stage.
        rows: With `key`, `lineage` and the columns that the stage needs.
        store: Where results are kept.
        tally: Counts what is done.
        is_there: Whether what a stored row tells of still exists.
        on_progress: Called with the number of rows that are done, after each batch.

    Returns:
        The rows, with the stage's columns and its lineage.
    """
    known = store.rows(stage)
    wanted = {row["key"]: stage.lineage(row["lineage"]) for row in rows}
    todo = [row for row in rows if not _is_done(known.get(row["key"]), wanted[row["key"]], is_there)]
    done = len(rows) - len(todo)
    for batch in batches(todo):
        given = [{name: row[name] for name in stage.needs} for row in batch]
        made = [
            {"key": row["key"], "lineage": wanted[row["key"]], **result}
            for row, result in zip(batch, stage.run(given), strict=True)
        ]
        known |= {row["key"]: row for row in store.put(stage, made)}
        done += len(made)
        on_progress(done)
    tally.new += len(todo)
    tally.known += len(rows) - len(todo)
    if todo:
        store.tidy(stage, set(wanted))
    return [{**row, **known[row["key"]]} for row in rows]


def _is_done(row: Row | None, lineage: str, is_there: Callable[[Row], bool]) -> bool:
    return row is not None and row["lineage"] == lineage and is_there(row)


def batches(rows: Sequence[Row], size: int = BATCH) -> Iterator[Sequence[Row]]:
    """Rows in groups."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def check_lasting(error: Exception) -> None:
    """Let through what is no fault of a file: a full disk or memory, too many open files.

    Raises:
        Exception: The error itself, so that nothing is remembered of the file.
    """
    known = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in known):
            raise error
        cause = cause.__cause__


def reason(error: Exception) -> str:
    """An error as a table tells it, on one line."""
    return str(error) if isinstance(error, KandinskyError) else f"{type(error).__name__}: {first_line(error)}"
