"""Stages: pure functions from rows to rows. What each of them has done is remembered by ``store``.

A row of a stage carries a key (the file or the scene) and a lineage: a hash of the stage's name, revision and settings,
and of the lineages of the rows it was made from. A row whose key and lineage are in the store is never made again, so
a run goes on where it was stopped, a second run does nothing, and whatever changes is redone with all that follows from
it and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kandinsky.curate import tables
from kandinsky.errors import KandinskyError
from kandinsky.weights.untrusted import first_line

Row = dict[str, Any]
Rows = list[Row]
BATCH = 16  # files between two writes
FLUSH_S = 20.0  # seconds between two writes, where files take long

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
        bulky: Columns that grow with the length of a file: they are never held for more than one file.
        is_of_scenes: Whether its keys are those of scenes, which begin with their file's name.
    """

    name: str
    revision: str
    needs: tuple[str, ...]
    gives: Mapping[str, str]
    run: Callable[[Rows], Rows]
    settings: Mapping[str, Any] = field(default_factory=dict)
    bulky: tuple[str, ...] = ()
    is_of_scenes: bool = False

    def lineage(self, *before: str) -> str:
        """The lineage of a row made from rows with these lineages."""
        return digest(self.name, self.revision, dict(self.settings), *before)

    def table(self, rows: Sequence[Row]) -> Any:
        """Rows as a table of its columns."""
        return tables.table_of(rows, {"key": "string", "lineage": "string", **self.gives})

    def made(self, key: str, lineage: str, given: Row) -> Row:
        """The row of one key, just as it will be read again, so that a run which goes on gets the very same."""
        (found,) = self.run([given])
        (row,) = self.table([{"key": key, "lineage": lineage, **found}]).to_pylist()
        return dict(row)


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
