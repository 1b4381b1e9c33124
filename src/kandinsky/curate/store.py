"""What stages found out, remembered in a folder: Parquet parts, and an index that says where the rows of a file lie.

Parts are written beside their place and renamed. Of many million rows only the index is in memory, 20 bytes for each
file and stage; rows are read in groups, some of which are held.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky.curate import tables
from kandinsky.curate.stages import Row, Stage
from kandinsky.errors import RequestError
from kandinsky.files import remove, sweep
from kandinsky.train.data.arrow import arrow

GROUP = 1024  # rows that are read at once
PARTS = 32  # of a stage, before they are written as one
_HELD = 48  # groups
_RECENT = 4096  # entries that are not sorted yet
_ENTRY = np.dtype([("name", "u8"), ("part", "u4"), ("start", "u4"), ("count", "u4")])


def hash_of(text: str) -> int:
    """64 bits that stand for a text; equal ones are compared by the text itself where it matters."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """``hash_of`` each text, uint64."""
    return np.fromiter((hash_of(one) for one in texts), np.uint64)


def file_of(stage: Stage, key: str) -> str:
    """The name of the file that a row of a stage is of."""
    return key.rpartition("-")[0] if stage.is_of_scenes else key


class _Index:
    """Where the rows of a stage lie.

    Args:
        stage: The stage.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.parts: list[tuple[Path, np.ndarray]] = []  # with the numbers of the rows behind each group
        self._sorted, self._recent = np.empty(0, _ENTRY), np.empty(0, _ENTRY)

    def add(self, path: Path, keys: Any, ends: Sequence[int]) -> None:
        """Note a part: its keys as a column of Arrow, and where its groups end."""
        import pyarrow.compute as pc

        number = len(self.parts)
        self.parts.append((path, np.asarray(ends, np.int64)))
        if not len(keys):
            return
        names = pc.replace_substring_regex(keys, r"-[0-9]+$", "") if self.stage.is_of_scenes else keys
        runs = pc.run_end_encode(names.combine_chunks())
        stops = runs.run_ends.to_numpy()
        made = np.empty(len(stops), _ENTRY)
        made["name"], made["part"] = hashes_of(runs.values.to_pylist()), number
        made["count"] = np.diff(stops, prepend=0)
        made["start"] = stops - made["count"]
        self._recent = np.concatenate((self._recent, made))
        if len(self._recent) > _RECENT:
            every = np.concatenate((self._sorted, self._recent))
            self._sorted = every[np.argsort(every["name"], kind="stable")]
            self._recent = self._recent[:0]

    def of(self, name: str) -> list[tuple[int, int, int]]:
        """Part, first row and number of rows of each place of a file, the oldest first."""
        wanted = np.uint64(hash_of(name))
        names = self._sorted["name"]
        first, last = (int(np.searchsorted(names, wanted, side)) for side in ("left", "right"))
        found = (*self._sorted[first:last], *self._recent[self._recent["name"] == wanted])
        return [(int(one["part"]), int(one["start"]), int(one["count"])) for one in found]


class Store:
    """Results of stages in a folder. Columns that are bulky stay on the disk until one row of them is asked for.

    Args:
        folder: Created when the first results are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._indices: dict[str, _Index] = {}
        self._next: dict[str, int] = {}
        self._held: OrderedDict[tuple[str, int, int], list[Row]] = OrderedDict()

    def of(self, stage: Stage, name: str) -> dict[str, Row]:
        """The last row of each key of a file, without bulky columns; what is damaged counts as absent.

        Args:
            stage: The stage.
            name: Of the file: its key, or what the keys of its scenes begin with.
        """
        index, found = self._index(stage), dict[str, Row]()
        for part, start, count in index.of(name):
            for row in self._rows(index, part, start, count):
                if file_of(stage, row["key"]) == name:
                    found[row["key"]] = row
        return found

    def bulky(self, stage: Stage, key: str) -> Row:
        """The bulky columns of the last row of a key.

        Raises:
            RequestError: They cannot be read.
        """
        index = self._index(stage)
        for part, start, count in reversed(index.of(file_of(stage, key))):
            row = tables.read_row(index.parts[part][0], start + count - 1, ("key", *stage.bulky))
            if row.pop("key") == key:
                return row
        raise RequestError(f"nothing is known of `{key}`")

    def put(self, stage: Stage, rows: Sequence[Row]) -> None:
        """Add rows; each has `key`, `lineage` and the columns that the stage gives."""
        index = self._index(stage)
        number = self._next.get(stage.name)
        if number is None:
            parts = self._parts(stage.name)
            number = int(parts[-1].stem) + 1 if parts else 0
        self._next[stage.name] = number + 1
        part = self.folder / stage.name / f"{number:08d}.parquet"
        table, group = stage.table(rows), 1 if stage.bulky else GROUP
        tables.write(table, part, group=group)
        index.add(part, table["key"], [*range(group, len(rows), group), len(rows)])

    def tidy(self, stage: Stage, living: Iterable[str]) -> None:
        """Write many parts as one, without rows of keys that are gone; bulky parts of such rows alone are removed.

        Args:
            stage: The stage.
            living: All keys that there are.
        """
        parts = self._parts(stage.name)
        if len(parts) < PARTS:
            return
        self._indices.pop(stage.name, None)
        self._held.clear()
        usable = [(part, keys) for part in parts if (keys := self._keys(stage, part)) is not None]
        every = np.concatenate([hashes_of(keys.to_pylist()) for _, keys in usable] or [np.empty(0, np.uint64)])
        there = np.zeros(len(every), bool)
        _, last = np.unique(every[::-1], return_index=True)
        there[len(every) - 1 - last] = True
        there &= np.isin(every, hashes_of(living))
        stops = np.cumsum([len(keys) for _, keys in usable])
        masks = np.split(there, stops[:-1]) if usable else []
        kept = set[Path]()
        if stage.bulky:  # in one file of many groups, each row would take longer to find
            kept = {part for (part, _), mask in zip(usable, masks, strict=True) if mask.any()}
        elif there.any():
            self._next[stage.name] = int(parts[-1].stem) + 2
            whole = self.folder / stage.name / f"{int(parts[-1].stem) + 1:08d}.parquet"
            chosen = (self._left(part, mask) for (part, _), mask in zip(usable, masks, strict=True))
            tables.write_parts(whole, (one for one in chosen if one is not None), group=GROUP)
        for part in parts:
            if part not in kept:
                remove(part)

    def _left(self, part: Path, mask: np.ndarray) -> Any:
        pa, _ = arrow()
        try:
            return tables.read(part).filter(pa.array(mask))
        except RequestError:  # it is found out again
            return None

    def _index(self, stage: Stage) -> _Index:
        index = self._indices.get(stage.name)
        if index is None:
            index = self._indices[stage.name] = _Index(stage)
            for part in self._parts(stage.name):
                if (keys := self._keys(stage, part)) is not None:
                    index.add(part, keys, tables.groups(part))
        return index

    def _keys(self, stage: Stage, part: Path) -> Any:
        """The column of keys of a part; None where it is of another revision, or damaged, and removed then."""
        try:
            if tables.names(part) != ["key", "lineage", *stage.gives]:
                return None
            return tables.read(part, ["key"])["key"]
        except RequestError:
            remove(part)
            return None

    def _rows(self, index: _Index, part: int, start: int, count: int) -> Iterator[Row]:
        """Rows of a part, by their numbers."""
        stage, (path, ends) = index.stage, index.parts[part]
        at = start
        while at < start + count:
            number = 0 if stage.bulky else int(np.searchsorted(ends, at, "right"))
            begin = 0 if number == 0 else int(ends[number - 1])
            place = (stage.name, part, number)
            if (rows := self._held.get(place)) is None:
                columns = [one for one in ("key", "lineage", *stage.gives) if one not in stage.bulky]
                try:
                    table = tables.read(path, columns) if stage.bulky else tables.read_group(path, number, columns)
                    rows = table.to_pylist()
                except RequestError:
                    rows = []
                self._held[place] = rows
                if len(self._held) > _HELD:
                    self._held.popitem(last=False)
            else:
                self._held.move_to_end(place)
            yield from rows[at - begin : start + count - begin]
            if stage.bulky:
                return
            at = int(ends[number])

    def _parts(self, name: str) -> list[Path]:
        folder = self.folder / name
        if not folder.is_dir():
            return []
        sweep(folder)
        return sorted(folder.glob("[0-9]*.parquet"))
