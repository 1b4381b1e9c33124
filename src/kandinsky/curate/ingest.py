"""Source files: from folders, lists, tables of captions and WebDataset shards, or from a raw table in Parquet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kandinsky.curate import tables
from kandinsky.curate.stages import WORK, Row, Rows, digest
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.printing import escaped
from kandinsky.train.data.captions import Caption
from kandinsky.train.data.folders import TABLES, Found, captions_in
from kandinsky.train.data.folders import read as read_folder
from kandinsky.train.data.shards import ENDING as TAR
from kandinsky.train.data.shards import read as read_shards
from kandinsky.train.data.sources import ENDINGS, Example, Fault, find

log = logging.getLogger(__name__)
TABLE = ".parquet"
_PLACE = ("obs_endpoint", "obs_path")


def ingest(source: str | Path, *, dataset_name: str = "") -> tuple[Rows, list[Fault]]:
    """A row for each file of a source; nothing is decoded.

    Args:
        source: What ``train.data.sources.find`` opens, a folder with folders in it, or a raw table (`.parquet`) whose
            `obs_path` names files, below `obs_endpoint` where that is a folder.
        dataset_name: For rows that name none; the name of the source by default.

    Returns:
        Rows with `key`, `lineage` (a hash of a sample of the bytes), `id`, the place of the file, its captions, and for
        a raw table all its columns under `given`; rows of a raw table whose files are not there say why under
        `unusable`. And what cannot be used.

    Raises:
        RequestError: The source does not exist or holds no files.
    """
    path = local_path(source, "source").absolute()
    if path.suffix.lower() == TABLE:
        examples, rows, faults = _from_table(path)
    else:
        examples, rows, faults = [], [], []
        for prefix, read in _parts(path):
            try:
                prefix.encode()
                found, wrong = read()
            except UnicodeEncodeError:
                faults.append(Fault(escaped(prefix), "the folder's name is not valid UTF-8: rename it"))
                continue
            except RequestError as error:
                if not prefix:
                    raise
                faults.append(Fault(prefix.rstrip("/"), str(error)))  # the others are read
                continue
            examples += [(prefix, one, {}) for one in found]
            faults += [replace(fault, name=prefix + fault.name) for fault in wrong]
    place = str(path if path.is_dir() else path.parent)
    for prefix, example, given in examples:
        try:
            changed_ns = example.path.stat().st_mtime_ns  # a digest of parts does not see all changes
            seen = f"{replace(example, captions=()).digest()}-{changed_ns:x}"
        except (OSError, RequestError) as error:
            faults.append(Fault(prefix + example.name, str(error)))
            continue
        row = _row(prefix + example.name, given, dataset_name or path.name, "" if given else place)
        captions = [{"text": c.text, "language": c.language, "length": c.length} for c in example.captions]
        where = {"file": str(example.path), "offset": example.offset, "bytes": example.bytes}
        rows.append(row | where | {"lineage": seen, "digest": seen, "captions": captions})
    if all(row["unusable"] for row in rows):
        why = f": {(faults or [Fault('', rows[0]['unusable'])])[0].reason}" if faults or rows else ""
        raise RequestError(f"source `{escaped(source)}` holds no files that can be used{why}")
    if len({row["id"] for row in rows}) < len(rows):
        raise RequestError(f"source `{escaped(source)}`: two rows have one `id`: give each its own")
    return rows, faults


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
        "given": given,
        "unusable": unusable,
    }


def example_of(row: Row) -> Example:
    """The file of a row, to be opened."""
    return Example(row["key"], Path(row["file"]), row["bytes"], offset=row["offset"])


def _parts(path: Path) -> Iterator[tuple[str, Callable[[], Found]]]:
    """The parts of a source, each with the prefix of its names and how it is read.

    A folder is its videos, its shards, and all folders below it; one with a table is what the table names.
    """
    if not path.is_dir() or _has_table(path):
        yield "", lambda: _opened(path)
        return
    here = [path, *sorted(one for one in path.rglob("*") if one.is_dir())]
    hidden = {one for one in here if any(part.startswith(".") for part in one.relative_to(path).parts)}
    # data sets that were made here before, such as the one that is being made
    made = {one for one in here[1:] if (one / WORK).is_dir()}
    found: list[tuple[str, Callable[[], Found]]] = []
    for folder in here:
        if folder in hidden or not made.isdisjoint((folder, *folder.parents)):
            continue
        relative = folder.relative_to(path).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        there = _files(folder)
        if any(one.suffix.lower() in ENDINGS for one in there):
            read = partial(_opened if _has_table(folder) else _media, folder)
            found.append((prefix, read))
        if not _has_table(folder):
            tars = [one for one in there if one.suffix.lower() == TAR]
            found += [(prefix, partial(_shard, one, is_alone=len(tars) == len(there))) for one in tars]
    yield from found or [("", lambda: _opened(path))]  # which says what is missing


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


def _from_table(path: Path) -> tuple[list[tuple[str, Example, dict[str, Any]]], Rows, list[Fault]]:
    """Files of a raw table; its rows whose files are not there; and faults that are no row's."""
    table = tables.read(path)
    if "obs_path" not in table.column_names:
        raise RequestError(f"table `{escaped(path)}` has no column `obs_path`: it names the files")
    examples: dict[str, tuple[str, Example, dict[str, Any]]] = {}
    absent: dict[str, Row] = {}
    faults = []
    for number, row in enumerate(table.to_pylist()):
        name = "/".join(str(row[part]).rstrip("/") for part in _PLACE if row.get(part))
        if name in examples or name in absent:
            faults.append(Fault(name, f"`{escaped(name)}` stands in two rows: the first is used"))
            continue
        try:
            if not row.get("obs_path"):
                raise RequestError(f"row {number + 1} names no file: fill its `obs_path`")
            if "://" in name:
                raise RequestError(f"`{escaped(name)}` is no file of this machine: mount or copy what it names")
            file = path.parent / name  # an absolute name stays as it is
            size = file.stat().st_size
            if not file.is_file():
                raise RequestError(f"`{escaped(name)}` is not a file")
            captions = tuple(_captions(row, name))
        except (OSError, ValueError) as error:  # also names with a NUL, and captions that are none
            told = getattr(error, "strerror", None) or str(error)
            why = str(error) if isinstance(error, RequestError) else f"`{escaped(name)}` cannot be used: {told}"
            key = name if row.get("obs_path") else f"{name}#{number + 1}"
            absent[key] = _row(key, row, path.name, "", why)
        else:
            examples[name] = "", Example(name, file, size, captions), row
    return list(examples.values()), list(absent.values()), faults


def _captions(row: dict[str, Any], name: str) -> Iterable[Caption]:
    known = row.get("captions")
    if isinstance(known, list):
        yield from (
            Caption(one["text"], one.get("language") or "", one.get("length") or "")
            for one in known
            if isinstance(one, dict) and one.get("text")
        )
    yield from captions_in({column: row[column] for column in row if column != "captions"}, f"`{escaped(name)}`")
