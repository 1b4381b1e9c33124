"""All scenes of a run: their rows on the disk, and in memory some bytes of each, for what was decided of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky.curate import buckets, measures, scenes, tables
from kandinsky.curate.clip_work import ENDING
from kandinsky.curate.duplicates import FRAMES, duplicates
from kandinsky.curate.export import CLIPS
from kandinsky.curate.judging import AMONG, Judge
from kandinsky.curate.rules import Rules
from kandinsky.curate.spool import Spool
from kandinsky.curate.stages import Row, Rows
from kandinsky.train.data.arrow import arrow

EXPORT = "export"  # what drops a scene that cannot be cut
_DECIDED = ("path", "clip_fault", "duplicate_of", "kept", "dropped_by")  # after the rows were written


class SceneRows:
    """The scenes of a run, in the order of their files.

    Args:
        path: A file for their rows, which is overwritten.
        rules: That they are judged by.

    Attributes:
        kept: Which ones pass all filters and can be cut; bool, one for each scene, once they are decided.
        clip_bytes: Sizes of their clips; -1 where there is none.
        clip_faults: By number of a scene, its id, and why it could not be cut or what is wrong with its clip's sound.
        in_folder: Whether clips lie in a folder of the data set.
    """

    def __init__(self, path: Path, rules: Rules) -> None:
        self.rules, self.in_folder = rules, True
        self._gives = {name: "double" for one in measures.chosen(rules.measures) for name in one.gives}
        own = {name: kind for name, kind in tables.SCENE_COLUMNS.items() if name not in (*_DECIDED, "lineage")}
        self._spool = Spool(path, own | self._gives | scenes.INNER | {"dropped_by": "list<string>"})
        self._first: Counter[str] = Counter()
        self.kept = self.not_cut = np.zeros(0, bool)
        self.clip_bytes = np.zeros(0, np.int64)
        self.clip_faults: dict[int, tuple[str, str]] = {}
        self._failed: dict[str, np.ndarray] = {}
        self._repeats = np.zeros(0, np.int64)
        self._kept_ids: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._spool)

    def add(self, found: Rows) -> None:
        """Add the scenes of a file, judged by themselves, with their buckets."""
        if not found:
            return
        names = [one["id"] for one in found]
        width, height, duration = (np.array([one[name] for one in found], float) for name in _SIZES)
        sizes, lengths = buckets.plan(
            names, width, height, duration, sizes=self.rules.sizes, lengths=self.rules.seconds
        )
        for scene, size, length in zip(found, sizes.tolist(), lengths.tolist(), strict=True):
            scene["bucket"], scene["bucket_seconds"] = size, None if length != length else length
            if scene["dropped_by"]:
                self._first[scene["dropped_by"][0]] += 1
        self._spool.add([one | {"steps": sorted(one["steps"].items())} for one in found])

    def done(self) -> None:
        """Say that no more scenes come."""
        self._spool.done()
        count = len(self)
        self.not_cut = np.zeros(count, bool)
        self.clip_bytes = np.full(count, -1, np.int64)
        self._repeats = np.full(count, -1, np.int64)

    def decide(self, judge: Judge, bits: float) -> dict[str, int]:
        """Judge scenes by what depends on others: those that repeat another go first, then shares are of what is left.

        Only scenes that no other filter dropped are compared.

        Args:
            judge: By the rules.
            bits: See ``duplicates``.

        Returns:
            Scenes that each filter was the first to drop.
        """
        left = self._undropped()
        self._find_repeats(left, bits)
        for level in AMONG:
            dropped = np.zeros(len(self), bool)
            if wanted := judge.reads(level):
                places = np.flatnonzero(left)
                for name, failed in judge.failed(self.columns(wanted, left), level).items():
                    self._failed[name] = whole = np.zeros(len(self), bool)
                    whole[places] = failed
                    self._first[name] += int((whole & ~dropped).sum())
                    dropped |= whole
            left = left & ~dropped
        self.kept = left
        return {name: self._first[name] for name in self.rules.filters if self._first[name]}

    def _undropped(self) -> np.ndarray:
        import pyarrow.compute as pc

        found = np.zeros(len(self), bool)
        at = 0
        for table in self._spool.tables(["dropped_by"]):
            counts = pc.fill_null(pc.list_value_length(table["dropped_by"]), 0)
            found[at : at + len(table)] = counts.to_numpy() == 0
            at += len(table)
        return found

    def _find_repeats(self, left: np.ndarray, bits: float) -> None:
        import pyarrow.compute as pc

        wanted = ["hashes", "duration", "width", "height"]
        places, hashes, seconds, pixels, at = [], [], [], [], 0
        for table in self._spool.tables(wanted):
            here = left[at : at + len(table)]
            here = here & (pc.fill_null(pc.list_value_length(table["hashes"]), 0).to_numpy() == FRAMES)
            if here.any():
                pa, _ = arrow()
                some = table.filter(pa.array(here))
                flat = some["hashes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                places.append(at + np.flatnonzero(here))
                hashes.append(flat.astype(np.uint64).reshape(-1, FRAMES))
                seconds.append(some["duration"].to_numpy())
                pixels.append(some["width"].to_numpy().astype(np.int64) * some["height"].to_numpy())
            at += len(table)
        if not places:
            return
        numbers = np.concatenate(places)
        kept = duplicates(np.concatenate(hashes), np.concatenate(seconds), np.concatenate(pixels), bits)
        repeats = kept >= 0
        self._repeats[numbers[repeats]] = numbers[kept[repeats]]
        named = np.zeros(len(self), bool)
        named[self._repeats[self._repeats >= 0]] = True
        self._kept_ids = {row["number"]: row["id"] for row in self._spool.rows(named, ["id"])}

    def columns(self, names: Sequence[str], where: np.ndarray) -> dict[str, np.ndarray]:
        """What filters can name, of some scenes: numbers, truth values and texts."""
        pa, _ = arrow()
        made: dict[str, list[np.ndarray]] = {name: [] for name in names}
        held = [name for name in names if name not in ("duplicate", *scenes.COUNTED)]
        read = list(dict.fromkeys([*held, *(scenes.COUNTED[name] for name in names if name in scenes.COUNTED)]))
        at = 0
        for table in self._spool.tables(read or ["id"]):
            here = slice(at, at + len(table))
            at += len(table)
            if not where[here].any():
                continue
            some = table.filter(pa.array(where[here]))
            for name in names:
                if name == "duplicate":
                    made[name].append(self._repeats[here][where[here]] >= 0)
                else:
                    made[name].append(scenes.column_in(some, name))
        return {name: np.concatenate(parts) if parts else scenes.no_column(name) for name, parts in made.items()}

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The rows as ``scenes.parquet`` has them, and what else is known, some thousand at a time.

        Args:
            columns: Of those that were written before anything was decided; all by default.
        """
        pa, _ = arrow()
        known = self._spool.columns
        read = None if columns is None else [name for name in known if name in (*columns, "id", "dropped_by")]
        at = 0
        for table in self._spool.tables(read):
            numbers = range(at, at + len(table))
            here = slice(at, at + len(table))
            at += len(table)
            kept = self.kept[here].tolist()
            ids = table["id"].to_pylist()
            dropped = [list(one or ()) for one in table["dropped_by"].to_pylist()]
            for name, failed in self._in_order():
                for place in np.flatnonzero(failed[here]).tolist():
                    dropped[place].append(name)
            for place in np.flatnonzero(self.not_cut[here]).tolist():
                dropped[place] = [EXPORT]
            found = {
                "path": [f"{CLIPS}/{one}{ENDING}" if is_kept and self.in_folder else None
                         for one, is_kept in zip(ids, kept, strict=True)],
                "clip_fault": [self.clip_faults.get(number, (None, None))[1] for number in numbers],
                "duplicate_of": [self._kept_ids.get(int(one)) for one in self._repeats[here]],
                "kept": kept,
                "dropped_by": dropped,
                "duplicate": (self._repeats[here] >= 0).tolist(),
            }  # fmt: skip
            for name, values in found.items():
                kind = tables.kind("bool" if name == "duplicate" else tables.SCENE_COLUMNS[name])
                column = pa.array(values, type=kind)
                if name in table.column_names:
                    table = table.set_column(table.column_names.index(name), name, column)
                else:
                    table = table.append_column(name, column)
            yield table

    def _in_order(self) -> list[tuple[str, np.ndarray]]:
        return [(name, self._failed[name]) for name in self.rules.filters if name in self._failed]

    def table_parts(self) -> Iterator[Any]:
        """The parts of ``scenes.parquet``."""
        for table in self.tables():
            names = ["lineage" if name == "steps" else name for name in table.column_names]
            yield table.rename_columns(names).select(
                [*tables.SCENE_COLUMNS, *(name for name in self._gives if name not in tables.SCENE_COLUMNS)]
            )

    @property
    def schema(self) -> Any:
        """Of ``scenes.parquet``."""
        return tables.table_of([], dict(tables.SCENE_COLUMNS) | self._gives).schema

    def rows(self, where: np.ndarray | None = None) -> Iterator[Row]:
        """Scenes one after the other, with their `number` and the size of their clip.

        Args:
            where: Which ones, bool; those that are kept by default.
        """
        for row in self._spool.rows(self.kept if where is None else where):
            row["clip_bytes"] = int(self.clip_bytes[row["number"]])
            yield row

    def decided(self, where: np.ndarray) -> Iterator[Row]:
        """Some scenes one after the other, with their `number` and all that was decided of them."""
        pa, _ = arrow()
        at = 0
        for table in self.tables():
            numbers = at + np.flatnonzero(where[at : at + len(table)])
            at += len(table)
            if numbers.size:
                some = table.filter(pa.array(where[at - len(table) : at])).to_pylist()
                for number, row in zip(numbers.tolist(), some, strict=True):
                    yield row | {"number": number, "steps": dict(row["steps"])}

    def ids(self) -> Iterator[str]:
        """The id of every scene."""
        return self._spool.texts("id")

    def faults(self) -> Iterator[tuple[str, str]]:
        """Ids of scenes of which a measure went wrong, and why."""
        for table in self._spool.tables(["id", "measure_faults"]):
            for one, told in zip(table["id"].to_pylist(), table["measure_faults"].to_pylist(), strict=True):
                for fault in told or ():
                    yield one, fault


_SIZES = ("width", "height", "duration")
