"""Source files: from folders, lists, tables of captions and WebDataset shards, or from a raw table in Parquet.

Lists and tables may name http(s) addresses; what fetches them is given to ``ingest``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kandinsky.curate import tables
from kandinsky.curate.stages import WORK, Row, Rows, digest
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.printing import escaped
from kandinsky.train.data.arrow import arrow
from kandinsky.train.data.captions import Caption, column
from kandinsky.train.data.folders import MARK, TABLES, URL, Found, addresses_in, captions_in
from kandinsky.train.data.folders import read as read_folder
from kandinsky.train.data.shards import ENDING as TAR
from kandinsky.train.data.shards import read as read_shards
from kandinsky.train.data.sources import ENDINGS, Example, Fault, find
from kandinsky.weights.untrusted import first_line

log = logging.getLogger(__name__)
TABLE = ".parquet"
_PLACE = ("obs_endpoint", "obs_path")
_GIVEN = ("id", "dataset_name", *_PLACE, "aesthetic_score")  # columns of a raw table that are used
Fetch = Callable[[Sequence[str]], Mapping[str, Path | str]]
_Named = tuple[str, Example, dict[str, Any]]  # the key of a file, the file, and its row of a raw table


@dataclass(frozen=True, slots=True)
class Ingested:
    """A source.

    Attributes:
        rows: One for each file, with `key`, `lineage` (a hash of a sample of the bytes), `id`, the place of the file
            and its captions. Of a raw table also, under `given`, what of its row is used, and `given_row`, the row of
            ``extra``; rows whose files are not there say why under `unusable`.
        faults: What cannot be used.
        extra: The columns of raw tables that this library does not know, as Arrow has them; None where there are none.
    """

    rows: Rows
    faults: list[Fault]
    extra: Any = None


def ingest(source: str | Path, *, dataset_name: str = "", fetch: Fetch | None = None) -> Ingested:
    """A row for each file of a source; nothing is decoded.

    Args:
        source: What ``train.data.sources.find`` opens, a folder with folders in it, or a raw table (`.parquet`) whose
            `obs_path` names files, below `obs_endpoint` where that is a folder. Raw tables in folders are read too; a
            file beside them that one of them names is taken once, from there.
        dataset_name: For rows that name none; the name of the source by default.
        fetch: Gives the file of each address that is named, or says why there is none; without it none is used.

    Raises:
        RequestError: The source does not exist or holds no files, or a column has several types in several tables.
    """
    path = local_path(source, "source").absolute()
    called = dataset_name or path.name
    rows, examples, faults, extra = Rows(), list[_Named](), list[Fault](), list[Any]()
    known, named = set[str](), set[Path]()
    for prefix, file in (raw_tables := _raw_tables(path)):
        try:
            table = tables.read(file)
            found, absent, wrong = _from_table(
                table, file, prefix, called, known, sum(len(one) for one in extra), fetch
            )
        except RequestError as error:
            if file == path:
                raise
            faults.append(Fault(f"{prefix}{file.name}", str(error)))  # the others are read
            continue
        extra.append(_unknown(table))
        examples += found
        rows += absent
        faults += wrong
        named |= {one.path for _, one, _ in found}
    lists = _lists(path)
    for listed, wrong in lists.values():
        faults += wrong
        there = {} if fetch is None else fetch([url for url in listed if url not in known])
        for url, captions in listed.items():
            if url in known:
                faults.append(Fault(url, f"`{escaped(url)}` is named twice: the first is used"))
                continue
            known.add(url)
            if isinstance(made := there.get(url, _not_fetched(url)), str):
                rows.append(_row(url, {}, called, "", made))
            else:
                examples.append((url, Example(url, made, made.stat().st_size, tuple(captions)), {}))
    for prefix, read in _parts(path, lists, bool(raw_tables) or bool(lists)):
        try:
            prefix.encode()
            here, wrong = read()
        except UnicodeEncodeError:
            faults.append(Fault(escaped(prefix), "the folder's name is not valid UTF-8: rename it"))
            continue
        except RequestError as error:
            if not prefix:
                raise
            faults.append(Fault(prefix.rstrip("/"), str(error)))  # the others are read
            continue
        examples += [(prefix + one.name, one, {}) for one in here if one.offset is not None or one.path not in named]
        faults += [replace(fault, name=prefix + fault.name) for fault in wrong]
    place = str(path if path.is_dir() else path.parent)
    for key, example, given in examples:
        try:
            changed_ns = example.path.stat().st_mtime_ns  # a digest of parts does not see all changes
            seen = f"{replace(example, captions=()).digest()}-{changed_ns:x}"
        except (OSError, RequestError) as error:
            faults.append(Fault(key, str(error)))
            continue
        row = _row(key, given, called, "" if given or MARK in key else place)
        texts = [{"text": c.text, "language": c.language, "length": c.length} for c in example.captions]
        where = {"file": str(example.path), "offset": example.offset, "bytes": example.bytes}
        rows.append(row | where | {"lineage": seen, "digest": seen, "captions": texts})
    if all(row["unusable"] for row in rows):
        whys = [*(row["unusable"] for row in rows), *(fault.reason for fault in faults)]
        why = f": {whys[0]}" + (f" (and {len(whys) - 1} more)" if len(whys) > 1 else "") if whys else ""
        raise RequestError(f"source `{escaped(source)}` holds no files that can be used{why}")
    if len({row["id"] for row in rows}) < len(rows):
        raise RequestError(f"source `{escaped(source)}`: two rows have one `id`: give each its own")
    return Ingested(rows, faults, _joined(extra))


def _unknown(table: Any) -> Any:
    """The columns of a raw table that this library does not know; with an empty one, which keeps the number of rows."""
    pa, _ = arrow()
    names = [name for name in table.column_names if name not in tables.RAW_COLUMNS]
    return pa.table({**{name: table[name] for name in names}, "obs_path": pa.nulls(len(table))})


def _joined(extra: Sequence[Any]) -> Any:
    """Columns of several tables as those of one, null where a table has not got them."""
    pa, _ = arrow()
    if all(one.column_names == ["obs_path"] for one in extra):
        return None
    try:
        return pa.concat_tables(extra, promote_options="default")
    except pa.ArrowException as error:
        raise RequestError(
            f"raw tables do not fit together: {first_line(error)}", hint="give a column the same type in all of them"
        ) from error


def _row(name: str, given: dict[str, Any], dataset_name: str, place: str, unusable: str | None = None) -> Row:
    """A row without its file; ``unusable`` says why there is none."""
    return {
        "key": name,
        "lineage": "",
        "digest": None,
        "id": str(given["id"]) if given.get("id") is not None else digest(name),
        "dataset_name": str(given.get("dataset_name") or dataset_name),
        "obs_endpoint": str(given.get("obs_endpoint") or place),
        "obs_path": str(given.get("obs_path") or name),
        "file": None,
        "offset": None,
        "bytes": None,
        "captions": [],
        "given": {name: given[name] for name in _GIVEN if name in given},
        "given_row": given.get("given_row"),
        "unusable": unusable,
    }


def example_of(row: Row) -> Example:
    """The file of a row, to be opened."""
    return Example(row["key"], Path(row["file"]), row["bytes"], offset=row["offset"])


def _lists(path: Path) -> dict[Path, tuple[dict[str, list[Caption]], list[Fault]]]:
    """What names addresses, by its place: the source, or folders in it whose table does; and what they name."""
    if not path.is_dir():
        tables = {path: path} if path.is_file() and path.suffix.lower() in (".txt", ".csv", ".jsonl") else {}
    else:
        folders = [path] if _has_table(path) else [folder for _, folder in _folders(path)]
        named = ((folder, [folder / name for name in TABLES if (folder / name).is_file()]) for folder in folders)
        tables = {folder: there[0] for folder, there in named if there}
    found = {}
    for place, table in tables.items():
        try:
            listed, faults = addresses_in(table)
        except RequestError:
            continue  # which is told where it is read as a list of files
        if listed:
            found[place] = listed, faults
    return found


def _not_fetched(url: str) -> str:
    return f"`{escaped(url)}` is no file of this machine: mount or copy what it names"


def _parts(path: Path, done: Collection[Path], has_more: bool) -> Iterator[tuple[str, Callable[[], Found]]]:
    """The parts of a source, each with the prefix of its names and how it is read.

    A folder is its videos, its shards, and all folders below it; one with a table is what the table names.

    Args:
        path: The source.
        done: Places whose tables name addresses, and no files.
        has_more: Whether there are raw tables, or such places, besides.
    """
    if path.suffix.lower() == TABLE or path in done:
        return
    if not path.is_dir() or _has_table(path):
        yield "", lambda: _opened(path)
        return
    found: list[tuple[str, Callable[[], Found]]] = []
    for prefix, folder in _folders(path):
        if folder in done:
            continue
        there = _files(folder)
        if any(one.suffix.lower() in ENDINGS for one in there):
            read = partial(_opened if _has_table(folder) else _media, folder)
            found.append((prefix, read))
        if not _has_table(folder):
            tars = [one for one in there if one.suffix.lower() == TAR]
            found += [(prefix, partial(_shard, one, is_alone=len(tars) == len(there))) for one in tars]
    if found or not has_more:
        yield from found or [("", lambda: _opened(path))]  # which says what is missing


def _folders(path: Path) -> Iterator[tuple[str, Path]]:
    """A folder and those below it, with the prefix of names in it, but for hidden ones and curated data sets."""
    here = [path, *sorted(one for one in path.rglob("*") if one.is_dir())]
    hidden = {one for one in here if any(part.startswith(".") for part in one.relative_to(path).parts)}
    # data sets that were made here before, such as the one that is being made
    made = {one for one in here[1:] if (one / WORK).is_dir()}
    for folder in here:
        if folder in hidden or not made.isdisjoint((folder, *folder.parents)):
            continue
        relative = folder.relative_to(path).as_posix()
        yield "" if relative == "." else f"{relative}/", folder


def _raw_tables(path: Path) -> list[tuple[str, Path]]:
    """Raw tables of a source, with the prefix of their names."""
    if not path.is_dir():
        return [("", path)] if path.suffix.lower() == TABLE else []
    if _has_table(path):
        return []
    return [
        (prefix, file)
        for prefix, folder in _folders(path)
        if not _has_table(folder)
        for file in _files(folder)
        if file.suffix.lower() == TABLE
    ]


def _has_table(path: Path) -> bool:
    return any((path / name).is_file() for name in TABLES)


def _opened(path: Path) -> Found:
    found = find(path, captions="optional", faults="skip")
    return list(found), list(found.faults)


def _media(folder: Path) -> Found:
    return read_folder(folder, needs_captions=False)


def _shard(path: Path, *, is_alone: bool) -> Found:
    """A shard; one that is none is told, and hides nothing beside it."""
    try:
        examples, faults = read_shards([path], needs_captions=False)
    except RequestError as error:
        if is_alone:
            raise
        return [], [Fault(path.name, str(error))]
    return examples, faults if examples or faults else [Fault(path.name, "it holds no images or videos")]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_file() and not one.name.startswith("."))
    except OSError as error:
        log.warning("folder `%s` cannot be read: %s", folder, error.strerror)
        return []


def _from_table(
    table: Any, path: Path, prefix: str, dataset_name: str, known: set[str], rows_before: int, fetch: Fetch | None
) -> tuple[list[_Named], Rows, list[Fault]]:
    """Files of a raw table; its rows whose files are not there; and faults that are no row's.

    Args:
        table: The table.
        path: Its file.
        prefix: Of the names.
        dataset_name: For rows that name none.
        known: Names that other tables have, to which those of this one are added.
        rows_before: Of other tables.
        fetch: See ``ingest``.
    """
    if "obs_path" not in table.column_names and URL in table.column_names:
        table = table.rename_columns(["obs_path" if name == URL else name for name in table.column_names])
    if "obs_path" not in table.column_names:
        raise RequestError(f"table `{escaped(path)}` has no column `obs_path`, or `url`: it names the files")
    if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise RequestError(f"table `{escaped(path)}` has two columns `{escaped(twice[0])}`: rename one of them")
    examples: list[_Named] = []
    absent: Rows = []
    faults = []
    # of columns of any type, those alone that are used become values of Python
    used = [name for name in table.column_names if name in (*_GIVEN, "captions") or column(name) is not None]
    given = table.select(used).to_pylist()
    names = ["/".join(str(row[part]).rstrip("/") for part in _PLACE if row.get(part)) for row in given]
    there = {} if fetch is None else fetch([one for one in names if MARK in one and one not in known])
    for number, (row, name) in enumerate(zip(given, names, strict=True)):
        row["given_row"] = rows_before + number
        key = name if Path(name).is_absolute() or MARK in name else prefix + name
        if row.get("obs_path") and key in known:
            faults.append(Fault(key, f"`{escaped(key)}` stands in two rows: the first is used"))
            continue
        known.add(key)
        try:
            if not row.get("obs_path"):
                raise RequestError(f"row {number + 1} names no file: fill its `obs_path`")
            file = path.parent / name  # an absolute name stays as it is
            if MARK in name:
                if isinstance(fetched := there.get(name, _not_fetched(name)), str):
                    raise RequestError(fetched)
                file = fetched
            size = file.stat().st_size
            if not file.is_file():
                raise RequestError(f"`{escaped(name)}` is not a file")
            captions = tuple(_captions(row, name))
        except (OSError, ValueError) as error:  # also names with a NUL, and captions that are none
            told = getattr(error, "strerror", None) or str(error)
            why = str(error) if isinstance(error, RequestError) else f"`{escaped(name)}` cannot be used: {told}"
            if not row.get("obs_path"):
                key = f"{key}#{number + 1}" if rows_before == 0 else f"{prefix}{path.name}#{number + 1}"
            absent.append(_row(key, row, dataset_name, "", why))
        else:
            examples.append((key, Example(key, file, size, captions), row))
    return examples, absent, faults


def _captions(row: dict[str, Any], name: str) -> Iterable[Caption]:
    known = row.get("captions")
    if isinstance(known, list):
        yield from (
            Caption(one["text"], one.get("language") or "", one.get("length") or "")
            for one in known
            if isinstance(one, dict) and one.get("text")
        )
    yield from captions_in({column: row[column] for column in row if column != "captions"}, f"`{escaped(name)}`")
