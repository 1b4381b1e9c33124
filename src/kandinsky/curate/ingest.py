"""Source files: from folders, lists, tables of captions and WebDataset shards, or from a raw table in Parquet."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kandinsky.curate import tables
from kandinsky.curate.stages import WORK, Row, Rows, digest
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.printing import escaped
from kandinsky.train.data.captions import Caption
from kandinsky.train.data.folders import captions_in
from kandinsky.train.data.shards import is_shards
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
        a raw table all its columns under `given`. And what cannot be used.

    Raises:
        RequestError: The source does not exist or holds no files.
    """
    path = local_path(source, "source")
    if path.suffix.lower() == TABLE:
        examples, faults = _from_table(path)
    else:
        examples, faults = [], []
        for folder, prefix in _folders(path):
            try:
                prefix.encode()
                found = find(folder, captions="optional", faults="skip")
            except UnicodeEncodeError:
                faults.append(Fault(escaped(prefix), "the folder's name is not valid UTF-8: rename it"))
                continue
            except RequestError as error:
                if folder == path:
                    raise
                faults.append(Fault(prefix, str(error)))  # the other folders are read
                continue
            examples += [(prefix, one, {}) for one in found]
            faults += [replace(fault, name=prefix + fault.name) for fault in found.faults]
    rows: Rows = []
    for prefix, example, given in examples:
        try:
            changed_ns = example.path.stat().st_mtime_ns  # a digest of parts does not see all changes
            seen = f"{replace(example, captions=()).digest()}-{changed_ns:x}"
        except (OSError, RequestError) as error:
            faults.append(Fault(prefix + example.name, str(error)))
            continue
        name = prefix + example.name
        rows.append(
            {
                "key": name,
                "lineage": seen,
                "digest": seen,
                "id": str(given["id"]) if given.get("id") is not None else digest(name),
                "dataset_name": str(given.get("dataset_name") or dataset_name or path.name),
                "obs_endpoint": str(given.get("obs_endpoint") or ""),
                "obs_path": str(given.get("obs_path") or name),
                "file": str(example.path),
                "offset": example.offset,
                "bytes": example.bytes,
                "captions": [{"text": c.text, "language": c.language, "length": c.length} for c in example.captions],
                "given": given,
            }
        )
    if not rows:
        why = f": {faults[0].reason}" if faults else ""
        raise RequestError(f"source `{escaped(source)}` holds no files that can be used{why}")
    if len({row["id"] for row in rows}) < len(rows):
        raise RequestError(f"source `{escaped(source)}`: two rows have one `id`: give each its own")
    return rows, faults


def example_of(row: Row) -> Example:
    """The file of a row, to be opened."""
    return Example(row["key"], Path(row["file"]), row["bytes"], offset=row["offset"])


def _folders(path: Path) -> Iterator[tuple[Path, str]]:
    """A source itself, or for a folder of files all folders below it that hold some, with the prefix of their names."""
    is_table = path.is_dir() and any((path / name).is_file() for name in ("metadata.jsonl", "metadata.csv"))
    if not path.is_dir() or is_table or is_shards(path):
        yield path, ""
        return
    here = [path, *sorted(one for one in path.rglob("*") if one.is_dir())]
    hidden = {one for one in here if any(part.startswith(".") for part in one.relative_to(path).parts)}
    # data sets that were made here before, such as the one that is being made
    made = {one for one in here[1:] if (one / WORK).is_dir()}
    found = False
    for folder in here:
        if folder not in hidden and made.isdisjoint((folder, *folder.parents)) and _holds_media(folder):
            found = True
            relative = folder.relative_to(path).as_posix()
            yield folder, "" if relative == "." else f"{relative}/"
    if not found:
        yield path, ""  # which says what is missing


def _holds_media(folder: Path) -> bool:
    try:
        return any(_is_media(one) for one in folder.iterdir())
    except OSError as error:
        log.warning("folder `%s` cannot be read: %s", folder, error.strerror)
        return False


def _is_media(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() in ENDINGS


def _from_table(path: Path) -> tuple[list[tuple[str, Example, dict[str, Any]]], list[Fault]]:
    table = tables.read(path)
    if "obs_path" not in table.column_names:
        raise RequestError(f"table `{escaped(path)}` has no column `obs_path`: it names the files")
    examples: dict[str, tuple[str, Example, dict[str, Any]]] = {}
    faults = []
    for row in table.to_pylist():
        name = "/".join(str(row[part]).rstrip("/") for part in _PLACE if row.get(part))
        if not row.get("obs_path") or "://" in name:
            faults.append(Fault(name, f"`{escaped(name)}` is no file of this machine: mount or copy what it names"))
            continue
        file = path.parent / name  # an absolute name stays as it is
        try:
            size = file.stat().st_size
            if not file.is_file():
                raise RequestError(f"`{escaped(name)}` is not a file")
            captions = tuple(_captions(row, name))
        except (OSError, ValueError) as error:  # also names with a NUL, and captions that are none
            why = getattr(error, "strerror", None) or str(error)
            faults.append(Fault(name, f"`{escaped(name)}` cannot be used: {why}"))
            continue
        if name in examples:
            faults.append(Fault(name, f"`{escaped(name)}` stands in two rows: the first is used"))
        examples.setdefault(name, ("", Example(name, file, size, captions), row))
    return list(examples.values()), faults


def _captions(row: dict[str, Any], name: str) -> Iterable[Caption]:
    known = row.get("captions")
    if isinstance(known, list):
        yield from (
            Caption(one["text"], one.get("language") or "", one.get("length") or "")
            for one in known
            if isinstance(one, dict) and one.get("text")
        )
    yield from captions_in({column: row[column] for column in row if column != "captions"}, f"`{escaped(name)}`")
