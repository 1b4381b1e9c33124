"""The two tables of a curated data set, as Parquet: raw files, and the scenes that were found in them.

``raw.parquet`` has a row for each source file, with the columns of the table that the models' makers worked from
(``dataset_name`` to ``process_node``), then what was found out. ``scenes.parquet`` has a row for each scene: where it
lies in its file, its prompt, its measures, and whether it is kept. Any reader of Parquet reads both, such as DuckDB:

    select dropped_by, count(*) from 'dataset/scenes.parquet' group by all
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.files import replaced, replacing
from kandinsky.printing import escaped
from kandinsky.train.data.arrow import arrow
from kandinsky.weights.untrusted import first_line

if TYPE_CHECKING:
    import pyarrow as pa

RAW, SCENES = "raw.parquet", "scenes.parquet"
GROUP = 16384  # rows of a group
CAPTION = "list<struct<text: string, language: string, length: string>>"
# the first eleven are the columns of the makers' own table
RAW_COLUMNS: Mapping[str, str] = {
    "dataset_name": "string",
    "obs_endpoint": "string",
    "obs_path": "string",
    "status": "string",
    "process_start": "time",
    "width": "int32",
    "height": "int32",
    "duration": "string",
    "fps": "double",
    "id": "string",
    "process_node": "string",
    "duration_s": "double",
    "frames": "int64",
    "container": "string",
    "video_codec": "string",
    "has_audio": "bool",
    "sample_aspect": "double",
    "bytes": "int64",
    "digest": "string",
    "fault": "string",
    "captions": CAPTION,
}
SCENE_COLUMNS: Mapping[str, str] = {
    "id": "string",
    "raw_id": "string",
    "obs_endpoint": "string",
    "path": "string",
    "prompt": "string",
    "width": "int32",
    "height": "int32",
    "duration": "double",
    "dynamicity": "double",
    "aesthetic_score": "double",
    "source": "string",
    "start_s": "double",
    "end_s": "double",
    "start_frame": "int64",
    "end_frame": "int64",
    "fps": "double",
    "begins_with": "string",
    "ends_with": "string",
    "captions": CAPTION,
    "caption_flags": "list<string>",
    "measure_faults": "list<string>",
    "clip_fault": "string",
    "hashes": "list<uint64>",
    "duplicate_of": "string",
    "bucket": "string",
    "bucket_seconds": "double",
    "kept": "bool",
    "dropped_by": "list<string>",
    "lineage": "map<string, string>",
}
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


def kind(name: str) -> pa.DataType:
    """A column's type by the words that ``RAW_COLUMNS`` uses."""
    pa, _ = arrow()
    if name == CAPTION:
        return pa.list_(pa.struct([("text", pa.string()), ("language", pa.string()), ("length", pa.string())]))
    known = {
        "time": pa.timestamp("us", tz="UTC"),
        "list<string>": pa.list_(pa.string()),
        "list<uint64>": pa.list_(pa.uint64()),
        "list<float>": pa.list_(pa.float32()),
        "list<double>": pa.list_(pa.float64()),
        "map<string, string>": pa.map_(pa.string(), pa.string()),
        "bool": pa.bool_(),
        "double": pa.float64(),
    }
    return known.get(name) or pa.type_for_alias(name)


def table_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    """Rows as a table of exactly these columns; what a row lacks is null."""
    pa, _ = arrow()
    schema = pa.schema([(name, kind(word)) for name, word in columns.items()])
    return pa.Table.from_pylist(list(rows), schema=schema)


def write(table: pa.Table, path: Path, *, group: int | None = None) -> bool:
    """Write a table beside its place and move it there; a file that holds the same already is left alone.

    Args:
        table: The table.
        path: The file.
        group: Rows that are read at once; many by default.

    Returns:
        Whether it was written.

    Raises:
        RequestError: The file cannot be written.
    """
    _, parquet = arrow()
    if path.is_file() and _is_same(table, path):
        return False
    with replacing(path) as part:
        parquet.write_table(table, part, compression="zstd", row_group_size=group)
    return True


def write_parts(path: Path, parts: Iterable[pa.Table], *, schema: pa.Schema | None = None, group: int = GROUP) -> bool:
    """Write a table of which no more than a few groups of rows are in memory; the same file is left alone.

    Args:
        path: The file.
        parts: Tables of one schema, one after the other.
        schema: Theirs, for where there may be none.
        group: Rows that are read at once.

    Returns:
        Whether it was written.

    Raises:
        RequestError: The file cannot be written.
    """
    pa, parquet = arrow()

    def write(part: Path) -> None:
        writer: Any = None
        waiting: list[Any] = []
        try:
            for table in parts:
                writer = writer or parquet.ParquetWriter(part, table.schema, compression="zstd")
                waiting.append(table)
                if sum(len(one) for one in waiting) >= group:
                    whole = pa.concat_tables(waiting)
                    full = len(whole) - len(whole) % group
                    writer.write_table(whole.slice(0, full), row_group_size=group)
                    waiting = [whole.slice(full)]
            if writer is None:
                writer = parquet.ParquetWriter(part, schema, compression="zstd")
            elif sum(len(one) for one in waiting):
                writer.write_table(pa.concat_tables(waiting), row_group_size=group)
        finally:
            if writer is not None:
                writer.close()

    return replaced(path, write)


def _is_same(table: pa.Table, path: Path) -> bool:
    try:
        return bool(read(path).equals(table))
    except RequestError:
        return False  # it is damaged, and written anew


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """The library that reads tables; what it cannot read is said of the table."""
    pa, parquet = arrow()
    try:
        yield parquet
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"table `{escaped(path)}` cannot be read: {first_line(error)}") from error


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table.

    Args:
        path: The file.
        columns: Those to read; all by default.

    Raises:
        RequestError: It does not exist, or is no Parquet file.
    """
    with _reading(path) as parquet:
        return parquet.read_table(path, columns=None if columns is None else list(columns))


def names(path: Path) -> list[str]:
    """The columns of a table.

    Raises:
        RequestError: It cannot be read.
    """
    with _reading(path) as parquet:
        return list(parquet.read_schema(path).names)


def groups(path: Path) -> list[int]:
    """The numbers of the rows behind each group of rows of a table.

    Raises:
        RequestError: It cannot be read.
    """
    with _reading(path) as parquet:
        told = parquet.read_metadata(path)
        counts = [told.row_group(number).num_rows for number in range(told.num_row_groups)]
    return list(itertools.accumulate(counts))


def read_group(path: Path, number: int, columns: Sequence[str]) -> pa.Table:
    """One group of rows of a table.

    Raises:
        RequestError: It cannot be read.
    """
    with _reading(path) as parquet, parquet.ParquetFile(path) as file:
        return file.read_row_group(number, list(columns))


def batches(path: Path, columns: Sequence[str] | None = None, *, rows: int = GROUP) -> Iterator[pa.Table]:
    """A table, so many rows at a time.

    Raises:
        RequestError: It cannot be read.
    """
    pa, parquet = arrow()
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=None if columns is None else list(columns)):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"table `{escaped(path)}` cannot be read: {first_line(error)}") from error


def read_row(path: Path, number: int, columns: Sequence[str]) -> dict[str, Any]:
    """One row of a table, without reading the other groups of rows.

    Raises:
        RequestError: The file cannot be read, or has no such row.
    """
    pa, parquet = arrow()
    try:
        with parquet.ParquetFile(path) as file:
            for group in range(file.metadata.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if number < count:
                    row: dict[str, Any] = file.read_row_group(group, list(columns)).slice(number, 1).to_pylist()[0]
                    return row
                number -= count
    except (OSError, pa.ArrowException) as error:
        raise RequestError(f"table `{escaped(path)}` cannot be read: {first_line(error)}") from error
    raise RequestError(f"table `{escaped(path)}` has fewer rows than it had")


def clock(seconds: float) -> str:
    """A duration as the raw table writes it: `00:01:11`, with milliseconds where it has any."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    text = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{text}.{ms:03d}" if ms else text


def seconds_of(text: str) -> float:
    """The opposite of ``clock``.

    Raises:
        RequestError: It is no duration.
    """
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        raise RequestError(f"duration `{escaped(text)}`: write hours, minutes and seconds, such as `00:01:11`")
    return 3600 * int(found[1] or 0) + 60 * int(found[2]) + float(found[3])
