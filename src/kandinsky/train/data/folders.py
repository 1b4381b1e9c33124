"""Sources that are files: a folder with captions beside the clips, a table of names and captions, a list of names."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.files import relative_parts
from kandinsky.printing import escaped
from kandinsky.train.data import captions
from kandinsky.train.data.captions import LONGEST, Caption
from kandinsky.train.data.sources import ENDINGS, Example, Fault
from kandinsky.weights.untrusted import shown

log = logging.getLogger(__name__)
TABLES = ("metadata.jsonl", "metadata.csv")
NAMES = ("file_name", "file", "path", "video", "image")
URL = "url"  # a column of addresses
MARK = "://"  # what tells an address from a path
LARGEST = 1 << 30  # bytes of a table
Found = tuple[list[Example], list[Fault]]


def read(path: Path, *, needs_captions: bool) -> Found:
    """The examples of a folder, a table or a list, and what of it cannot be used.

    Args:
        path: A folder (subfolders are not looked into, and hidden files are left out), a `.jsonl` or `.csv` table, or
            a list of files, one a line.
        needs_captions: Whether an example without one is a fault.

    Raises:
        RequestError: It does not exist, cannot be read, or is no table or list.
    """
    if path.is_dir():
        for name in TABLES:
            if (path / name).is_file():
                return _table(path / name, needs_captions)
        return _folder(path, needs_captions)
    if not path.exists():
        raise RequestError(f"data folder `{escaped(path)}` does not exist: give one with images or videos")
    if path.suffix.lower() in (".jsonl", ".csv"):
        return _table(path, needs_captions)
    if path.suffix.lower() == ".txt":
        return _list(path, needs_captions)
    raise RequestError(
        f"data `{escaped(path)}` is neither a folder nor a .jsonl or .csv table, a .txt list of files or a .tar shard"
    )


def checked_name(name: str) -> str:
    """A file name that everybody can read.

    Raises:
        RequestError: It is not UTF-8.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"the file name `{shown(name)}` is not UTF-8: rename the file") from error
    return name


def captions_in(values: Mapping[str, object], where: str) -> list[Caption]:
    """The captions among the columns of a row, or the keys of an object; a list of texts is several.

    Raises:
        RequestError: One of them is no text, is not UTF-8, is too long or is empty.
    """
    found = []
    for name, value in values.items():
        kind = captions.column(name) if isinstance(name, str) else None
        if kind is None or value is None or value == "":
            continue
        for text in value if isinstance(value, list) else [value]:
            found.append(Caption(captions.checked(text, f"{where}: caption `{shown(name)}`"), *kind))
    return found


def addresses_in(path: Path) -> tuple[dict[str, list[Caption]], list[Fault]]:
    """The addresses that a list or table names, each with its captions, and what of it is none.

    Args:
        path: A `.txt` list, or a `.jsonl` or `.csv` table whose names stand in a column `url` or in one for files.

    Returns:
        Nothing of a list that names no addresses at all. In one that does, names of files are faults.

    Raises:
        RequestError: It cannot be read.
    """
    found: dict[str, list[Caption]] = {}
    faults, others = list[Fault](), list[Fault]()
    for line, name, values in _named(path):
        where = f"data `{escaped(path.name)}`, line {line}"
        try:
            if isinstance(name, RequestError):
                raise name
            if MARK not in name:
                others.append(
                    Fault(shown(name), f"{where}: `{shown(name)}` is no address: give files a list of their own")
                )
                continue
            known = found.setdefault(checked_name(name), [])
            known += [one for one in captions_in(values, where) if one not in known]
        except RequestError as error:
            faults.append(Fault(f"line {line}", str(error) if where in str(error) else f"{where}: {error}"))
    return (found, [*faults, *others]) if found else ({}, [])


def _named(path: Path) -> Iterator[tuple[int, str | RequestError, Mapping[str, Any]]]:
    """Lines of a list or table: their number, what they name, and the other columns."""
    if path.suffix.lower() == ".txt":
        for number, line in enumerate(_lines_of(path).split("\n"), 1):
            if (name := line.strip()) and not name.startswith("#"):
                yield number, name, {}
        return
    rows = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    for number, values in rows(_lines_of(path), path):
        if isinstance(values, RequestError):
            yield number, values, {}
            continue
        given = next((values[one] for one in (URL, *NAMES) if values.get(one)), None)
        yield number, given if isinstance(given, str) else RequestError("it names no file and no address"), values


def _folder(folder: Path, needs_captions: bool) -> Found:
    try:
        there = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise RequestError(f"data folder `{escaped(folder)}` cannot be read: {error.strerror or error}") from error
    media = [path for path in there if path.suffix.lower() in ENDINGS]
    stems = {path.with_suffix("") for path in media}
    beside: dict[Path, list[tuple[Path, tuple[str, str]]]] = {}
    faults = []
    for path in there:
        if path.suffix.lower() == ".txt":
            if (stem := _stem(path, stems)) is None:
                faults.append(Fault(path.name, f"caption `{escaped(path)}` belongs to no image or video"))
            else:
                beside.setdefault(stem[0], []).append((path, stem[1]))
    if not media:
        raise RequestError(
            f"data folder `{escaped(folder)}` holds no images or videos: {', '.join(ENDINGS)} are read, "
            "and subfolders are not looked into"
        )
    examples = []
    for path in media:
        try:
            texts = [
                Caption(_text(file), *kind)
                for file, kind in sorted(beside.get(path.with_suffix(""), []), key=lambda one: (one[1], one[0]))
            ]
            examples.append(_example(path.name, path, texts, needs_captions))
        except RequestError as error:
            faults.append(Fault(path.name, str(error)))
    return examples, faults


def _stem(path: Path, stems: set[Path]) -> tuple[Path, tuple[str, str]] | None:
    """The clip whose caption lies in a file, and which caption it is: `panda.ru.short.txt` is one of `panda.mp4`."""
    parts = path.with_suffix("").name.split(".")
    for count in range(len(parts), 0, -1):
        stem = path.with_name(".".join(parts[:count]))
        if stem in stems and (kind := captions.variant(parts[count:])) is not None:
            return stem, kind
    return None


def _table(path: Path, needs_captions: bool) -> Found:
    rows = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    examples: dict[str, Example] = {}
    faults = []
    ignored: dict[str, None] = {}
    for line, values in rows(_lines_of(path), path):
        where = f"data `{escaped(path.name)}`, line {line}"
        if isinstance(values, RequestError):
            faults.append(Fault(f"line {line}", str(values)))
            continue
        column = next((name for name in (*NAMES, URL) if name in values), None)
        if column is None:
            faults.append(Fault(f"line {line}", f"{where} names no file: give it a column `file_name`"))
            continue
        name = values[column]
        ignored |= dict.fromkeys(key for key in values if key != column and captions.column(str(key)) is None)
        try:
            if not isinstance(name, str):
                raise RequestError(f"`{shown(name)}` is no file name")
            _check_no_address(name)
            file = path.parent.joinpath(*relative_parts(checked_name(name)))
            texts = captions_in(values, where)
            if name in examples:  # several rows may give several captions
                before = examples[name]
                examples[name] = replace(before, captions=tuple(dict.fromkeys((*before.captions, *texts))))
                continue
            examples[name] = _example(name, file, texts, needs_captions)
        except RequestError as error:
            faults.append(Fault(shown(name), str(error) if where in str(error) else f"{where}: {error}"))
    if ignored:
        log.info("data `%s`: columns without captions: %s", path, ", ".join(shown(name) for name in ignored))
    if not examples and not faults:
        raise RequestError(f"data `{escaped(path)}` has no rows")
    return list(examples.values()), faults


def _list(path: Path, needs_captions: bool) -> Found:
    examples: dict[str, Example] = {}
    faults = []
    for number, line in enumerate(_lines_of(path).split("\n"), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        where = f"data `{escaped(path.name)}`, line {number}"
        try:
            _check_no_address(name)
            file = path.parent.joinpath(*relative_parts(checked_name(name)))
            texts = []
            if file.parent.is_dir():
                for text in sorted(file.parent.glob(f"{_quoted(file.stem)}*.txt")):
                    if stem := _stem(text, {file.with_suffix("")}):
                        texts.append((stem[1], Caption(_text(text), *stem[1])))
            examples.setdefault(
                name, _example(name, file, [caption for _, caption in sorted(texts, key=_first)], needs_captions)
            )
        except RequestError as error:
            faults.append(Fault(shown(name), f"{where}: {error}"))
    if not examples and not faults:
        raise RequestError(f"data `{escaped(path)}` names no files: write one a line")
    return list(examples.values()), faults


def _check_no_address(name: str) -> None:
    if MARK in name:
        raise RequestError(f"`{shown(name)}` is an address, which `kandinsky data curate` fetches: name a file here")


def _first(pair: tuple[tuple[str, str], Caption]) -> tuple[str, str]:
    return pair[0]


def _quoted(name: str) -> str:
    """A name as a pattern that matches itself alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _example(name: str, path: Path, texts: Iterable[Caption], needs_captions: bool) -> Example:
    """Raises: RequestError for a file that is absent or no image or video, or lacks a caption."""
    checked_name(name)
    if path.suffix.lower() not in ENDINGS:
        raise RequestError(f"`{shown(name)}` is no image or video: {', '.join(ENDINGS)} are read")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RequestError(f"`{shown(name)}` cannot be read: {error.strerror or error}") from error
    if not path.is_file():
        raise RequestError(f"`{shown(name)}` is not a file")
    known = tuple(dict.fromkeys(texts))
    if needs_captions and not known:
        raise RequestError(
            f"`{escaped(path)}` has no caption: write it into `{escaped(path.with_suffix('.txt').name)}` or into a "
            "column `caption`, or make captions optional"
        )
    return Example(name, path, size, known)


def _text(path: Path) -> str:
    """Raises: RequestError for a caption that cannot be read."""
    try:
        with path.open("rb") as file:
            return captions.checked(file.read(LONGEST + 1), f"caption `{escaped(path)}`")
    except OSError as error:
        raise RequestError(f"caption `{escaped(path)}` cannot be read: {error.strerror or error}") from error


def _lines_of(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise RequestError(f"data `{escaped(path)}` is larger than 1 GB: split it")
        # bytes that are no UTF-8 are their row's fault alone
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return file.read().replace("\r\n", "\n")
    except OSError as error:
        raise RequestError(f"data `{escaped(path)}` cannot be read: {error.strerror or error}") from error


Rows = Iterator[tuple[int, dict[str, Any] | RequestError]]


def _json_rows(text: str, path: Path) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"data `{escaped(path.name)}`, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = "it is nested too deep" if isinstance(error, RecursionError) else shown(error)
            yield number, RequestError(f"{where} is not valid JSON: {why}")
            continue
        if isinstance(values, dict):
            yield number, values
        else:
            yield (
                number,
                RequestError(f'{where} is not a JSON object: write such as {{"file_name": "a.mp4"}}'),
            )


def _csv_rows(text: str, path: Path) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise RequestError(f"data `{escaped(path.name)}`, line 1: {error}") from error
    if not {URL, *NAMES} & set(header) or len(set(header)) < len(header):
        raise RequestError(
            f"data `{escaped(path.name)}`: the first line must name the columns, each once, `file_name` among them"
        )
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            line = reader.line_num
            yield line, RequestError(f"data `{escaped(path.name)}`, line {line}: {error}")
            continue
        if len(cells) > len(header):
            yield (
                reader.line_num,
                RequestError(
                    f"data `{escaped(path.name)}`, line {reader.line_num}: {len(cells)} cells for {len(header)} "
                    "columns: put texts with a comma in quotes"
                ),
            )
        elif any(cell.strip() for cell in cells):
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=False))
