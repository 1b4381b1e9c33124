"""Rows that are gone through several times and are too many for memory: they lie on the disk, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky.curate import tables
from kandinsky.curate.stages import Row, Rows
from kandinsky.train.data.arrow import arrow

HELD = 4096  # rows


class Spool:
    """Rows on the disk.

    Args:
        path: A file, which is overwritten.
        columns: With their types as ``tables.kind`` reads them; what else a row holds is left out.
    """

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        _, parquet = arrow()
        self.path, self.columns = path, dict(columns)
        self._maps = [name for name, kind in columns.items() if kind.startswith("map<")]
        self._waiting: Rows = []
        self._count = 0
        self._schema = tables.table_of([], columns).schema
        self._writer: Any = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows behind those that are there."""
        self._waiting += rows
        self._count += len(rows)
        if len(self._waiting) >= HELD:
            self._flush()

    def done(self) -> None:
        """Say that no more rows come."""
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(tables.table_of(self._waiting, self.columns))
            self._waiting = []

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Tables of some thousand rows, one after the other.

        Args:
            columns: Those to read; all by default.
        """
        if self._count:
            yield from tables.batches(self.path, columns, rows=HELD)

    def rows(self, where: np.ndarray | None = None, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Rows one after the other, with their `number`.

        Args:
            where: Which ones, bool; all by default.
            columns: Those to read; all by default.
        """
        pa, _ = arrow()
        at = 0
        for table in self.tables(columns):
            numbers = np.arange(at, at + len(table))
            at += len(table)
            if where is not None:
                chosen = where[numbers]
                if not chosen.any():
                    continue
                numbers, table = numbers[chosen], table.filter(pa.array(chosen))
            for number, row in zip(numbers.tolist(), table.to_pylist(), strict=True):
                for name in self._maps:
                    if row.get(name) is not None:
                        row[name] = dict(row[name])
                row["number"] = number
                yield row

    def texts(self, column: str) -> Iterator[str]:
        """The values of a column of texts."""
        for table in self.tables([column]):
            yield from table[column].to_pylist()
