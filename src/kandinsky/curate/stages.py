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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky.curate import tables
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import remove, sweep
from kandinsky.weights.untrusted import first_line

Row = dict[str, Any]
Rows = list[Row]
BATCH = 16  # files between two writes
FLUSH_S = 20.0  # seconds between two writes, where files take long
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
        bulky: Columns that grow with the length of a file: they are never held for more than one file.
    """

    name: str
    revision: str
    needs: tuple[str, ...]
    gives: Mapping[str, str]
    run: Callable[[Rows], Rows]
    settings: Mapping[str, Any] = field(default_factory=dict)
    bulky: tuple[str, ...] = ()

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


class Store:
    """Results of stages in a folder. Columns that are bulky stay on the disk until one row of them is asked for.

    Args:
        folder: Created when the first results are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, dict[str, tuple[Path, int]]] = {}
        self._next: dict[str, int] = {}

    def rows(self, stage: Stage) -> dict[str, Row]:
        """The last row of each key, without bulky columns; parts that are damaged count as absent."""
        found: dict[str, Row] = {}
        places = self._places[stage.name] = {}
        for part in self._parts(stage.name):
            try:
                columns = tables.names(part)
                table = tables.read(part, [name for name in columns if name not in stage.bulky])
            except RequestError:
                remove(part)
                continue
            if columns == ["key", "lineage", *stage.gives]:
                for number, row in enumerate(table.to_pylist()):
                    found[row["key"]] = row
                    if stage.bulky:
                        places[row["key"]] = part, number
        return found

    def bulky(self, stage: Stage, key: str) -> Row:
        """The bulky columns of the last row of a key.

        Raises:
            RequestError: They cannot be read.
        """
        return tables.read_row(*self._places[stage.name][key], stage.bulky)

    def put(self, stage: Stage, rows: Sequence[Row]) -> None:
        """Add rows; each has `key`, `lineage` and the columns that the stage gives."""
        number = self._next.get(stage.name)
        if number is None:
            parts = self._parts(stage.name)
            number = int(parts[-1].stem) + 1 if parts else 0
        self._next[stage.name] = number + 1
        part = self.folder / stage.name / f"{number:08d}.parquet"
        tables.write(stage.table(rows), part, group=1 if stage.bulky else None)
        if stage.bulky:
            self._places.setdefault(stage.name, {}).update({row["key"]: (part, n) for n, row in enumerate(rows)})

    def tidy(self, stage: Stage, living: set[str]) -> None:
        """Write many parts as one, without rows of keys that are gone; bulky parts of such rows alone are removed."""
        parts = self._parts(stage.name)
        if len(parts) < _PARTS:
            return
        rows = self.rows(stage)
        if stage.bulky:  # in one file of many groups, each row would take longer to find
            places = self._places[stage.name]
            used = {places[key][0] for key in rows if key in living}
        else:
            self._next[stage.name] = int(parts[-1].stem) + 1
            self.put(stage, [row for key, row in rows.items() if key in living])
            used = set()
        for part in parts:
            if part not in used:
                remove(part)

    def _parts(self, name: str) -> list[Path]:
        folder = self.folder / name
        if not folder.is_dir():
            return []
        sweep(folder)
        return sorted(folder.glob("[0-9]*.parquet"))


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
