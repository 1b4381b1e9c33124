"""Prompt sets of benchmarks as values: MovieGen's table, VBench's list of dimensions, EvalCrafter's, files of your own.

The files are the user's: most of these sets have licences of their own (MovieGen's is CC BY-NC 4.0), so none is part of
this package. A file that is not what its reader expects is refused as a whole, by the line that is wrong: a benchmark
with some of its prompts is another benchmark.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.printing import escaped, shortened

EXPANDED, PLAIN = "expanded_prompt", "prompt"
MOVIEGEN_COLUMNS = (PLAIN, EXPANDED, "ru_prompt", "ru_expanded_prompt")
TAGS = ("concept", "motion_level")
CLIPS, FLICKER_CLIPS = 5, 25  # of one prompt in VBench; 25 where flickering is measured
LONGEST_NAME = 255 - len("-24.mp4")  # bytes of a prompt that is a file's name


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a set.

    Attributes:
        key: What tells it from the others of its set; votes and results name it.
        text: What the model is given.
        line: Its line or entry in the file, from 1.
        name: Stem of its clips' files, before the number of the clip.
        clips: How many clips are made of it.
        tags: Words by kind, such as `motion_level`: results are also told by them.
        dimensions: What VBench measures on it; empty for all.
        facts: What a dimension needs to know, such as the colour that is asked for.
    """

    key: str
    text: str
    line: int
    name: str
    clips: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)
    dimensions: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def files(self) -> list[str]:
        """Stems of its clips, in the order of their seeds."""
        return [f"{self.name}-{index}" for index in range(self.clips)] if self.clips > 1 else [self.name]


def read_own(path: str | Path, column: str | None = None) -> list[Prompt]:
    """Read a set of your own: a text file with a prompt a line, `.csv` with a header, `.jsonl`, or a `.json` array.

    Args:
        path: The file.
        column: Which column is the prompt; default: `prompt`. Columns `concept` and `motion_level` become tags, and a
            column `id` the key.

    Returns:
        The prompts.

    Raises:
        RequestError: The file cannot be read or is empty, a row has no such column, or a key is given twice.
    """
    rows = _rows(Path(path))
    wanted = column or PLAIN
    made = []
    for number, (line, row) in enumerate(rows, 1):
        where = f"prompts `{path}`, line {line}"
        key = _key(row["id"], where) if row.get("id") not in (None, "") else f"{number:04d}"
        made.append(Prompt(key, _text(row, wanted, where), line, f"{number:04d}", tags=_tags(row)))
    return _distinct(made, path)


def read_moviegen(path: str | Path, column: str | None = None) -> list[Prompt]:
    """Read MovieGen Video Bench: the plain list, its table, or Kandinsky 5's table of six columns.

    Args:
        path: A text file, or a `.csv` with the column `prompt`.
        column: `prompt`, `expanded_prompt`, `ru_prompt` or `ru_expanded_prompt`; default: `expanded_prompt` where the
            file has it, as in the published comparisons.

    Returns:
        The prompts; several may be equal, as in the original.

    Raises:
        RequestError: The file cannot be read, is empty, or has no such column.
    """
    if column is not None and column not in MOVIEGEN_COLUMNS:
        raise RequestError(
            f"column `{escaped(column)}` is none of MovieGen's: use {', '.join(f'`{one}`' for one in MOVIEGEN_COLUMNS)}"
        )
    rows = _rows(Path(path))
    wanted = column or (EXPANDED if EXPANDED in rows[0][1] else PLAIN)
    return [
        Prompt(
            f"{number:04d}", _text(row, wanted, f"prompts `{path}`, line {line}"), line, f"{number:04d}",
            tags=_tags(row),
        )
        for number, (line, row) in enumerate(rows, 1)
    ]  # fmt: skip


def read_vbench(path: str | Path, column: str | None = None) -> list[Prompt]:
    """Read VBench's list of prompts with their dimensions (`VBench_full_info.json`).

    Clips are named by the prompt, as the official tool expects: `{prompt}-{index}.mp4`. Five are made of each prompt,
    25 where temporal flickering is measured. A prompt that is listed twice is one prompt of both lists' dimensions.

    Args:
        path: The JSON file.
        column: Key of the text that the model is given, for augmented prompts; default: `prompt_en`. Files are named
            by `prompt_en` all the same.

    Returns:
        The prompts.

    Raises:
        RequestError: The file is none, or an entry has no prompt, no dimension, or one that VBench does not have.
    """
    from kandinsky.evaluate.vbench import DIMENSIONS

    values = _json(Path(path))
    if not isinstance(values, list) or not values:
        raise RequestError(f"prompts `{path}` are not VBench's: use its list of objects with `prompt_en`, `dimension`")
    found: dict[str, Prompt] = {}
    for number, entry in enumerate(values, 1):
        where = f"prompts `{path}`, entry {number}"
        if not isinstance(entry, dict):
            raise RequestError(f"{where} is no object with `prompt_en` and `dimension`")
        name = _text(entry, "prompt_en", where)
        text = _text(entry, column or "prompt_en", where)
        listed = entry.get("dimension")
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not listed:
            raise RequestError(f"{where}: `dimension` is missing: it is a list of names")
        dimensions = tuple(str(one).replace("_", " ") for one in listed)
        if unknown := [one for one in dimensions if one not in DIMENSIONS]:
            raise RequestError(f"{where}: dimension `{shortened(unknown[0])}` is none of VBench's")
        if "/" in name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            raise RequestError(
                f"{where}: `{shortened(name)}` cannot name a file: use {LONGEST_NAME} bytes or fewer, and no `/`"
            )
        given = entry.get("auxiliary_info")
        facts = dict(given) if isinstance(given, dict) else {}
        clips = FLICKER_CLIPS if "temporal flickering" in dimensions else CLIPS
        if (known := found.get(name)) is not None:
            dimensions = (*known.dimensions, *(one for one in dimensions if one not in known.dimensions))
            clips, facts, number, text = max(clips, known.clips), {**known.facts, **facts}, known.line, known.text
        found[name] = Prompt(name, text, number, name, clips, dimensions=dimensions, facts=facts)
    return list(found.values())


def read_evalcrafter(path: str | Path, column: str | None = None) -> list[Prompt]:
    """Read EvalCrafter's prompts: a text file with one a line, or JSON, a list or an object by number.

    Clips are named as its tool expects, by the number of the prompt from 0: `0000.mp4`.

    Args:
        path: The file.
        column: Key of the prompt in a JSON object; default: `prompt`.

    Returns:
        The prompts; texts beside the prompt become tags.

    Raises:
        RequestError: The file cannot be read, is empty, or an entry has no prompt.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        values = _json(path)
        entries = list(values.values()) if isinstance(values, dict) else values
        if not isinstance(entries, list) or not entries:
            raise RequestError(f"prompts `{path}` hold no prompt: use a list, or an object with a prompt by number")
        rows = [
            (number, _lowered(entry) if isinstance(entry, dict) else {PLAIN: entry})
            for number, entry in enumerate(entries, 1)
        ]
    else:
        rows = _rows(path)
    made = []
    for number, (line, row) in enumerate(rows):
        text = _text(row, column or PLAIN, f"prompts `{path}`, entry {line}")
        tags = {
            key: shortened(value) for key, value in row.items() if key != (column or PLAIN) and isinstance(value, str)
        }
        made.append(Prompt(f"{number:04d}", text, line, f"{number:04d}", tags=tags))
    return made


def with_clips(prompts: Iterable[Prompt], clips: int) -> list[Prompt]:
    """The same prompts with another number of clips each."""
    return [dataclasses.replace(one, clips=clips) for one in prompts]


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Lines and named values of a file, by its ending; a plain line is a `prompt`."""
    kind = path.suffix.lower()
    if kind == ".json":
        values = _json(path)
        if not isinstance(values, list):
            raise RequestError(f"prompts `{path}` must be a JSON array of texts or objects")
        rows = [(i, _entry(value, f"prompts `{path}`, entry {i}")) for i, value in enumerate(values, 1)]
    elif kind == ".csv":
        rows = _table(_read(path), path)
    elif kind == ".jsonl":
        rows = []
        for i, line in enumerate(_read(path).split("\n"), 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise RequestError(f"prompts `{path}`, line {i} is not valid JSON") from error
                rows.append((i, _entry(value, f"prompts `{path}`, line {i}")))
    else:
        lines = _read(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        rows = [(i, {PLAIN: line.strip()}) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise RequestError(f"prompts `{path}` hold no prompt: write one a line")
    return rows


def _table(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        header = [_plain(name) for name in next(reader, [])]
        if len(set(header)) < len(header):
            raise RequestError(f"prompts `{path}`, line 1: a column is named twice")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise RequestError(
                    f"prompts `{path}`, line {reader.line_num}: {len(cells)} cells for {len(header)} columns: put "
                    "texts with a comma in quotes"
                )
            rows.append((reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}))
    except csv.Error as error:
        raise RequestError(f"prompts `{path}`, line {reader.line_num}: {error}") from error
    return rows


def _entry(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {PLAIN: value.strip()}
    if not isinstance(value, dict):
        raise RequestError(f'{where} is neither a text nor an object, such as {{"prompt": "a panda"}}')
    return _lowered(value)


def _lowered(row: Mapping[str, Any]) -> dict[str, Any]:
    return {_plain(str(key)): value for key, value in row.items()}


def _plain(name: str) -> str:
    """A column's name as we write it: MovieGen's own table has `Motion level`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        known = ", ".join(f"`{escaped(name)}`" for name in row)
        raise RequestError(f"{where}: there is no column `{escaped(column)}`: it has {known or 'none'}")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{where}: `{escaped(column)}` is empty: each prompt is a text")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RequestError(f"{where}: `{escaped(column)}` is not valid UTF-8 text")
    return value.strip()


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(row[name]).strip() for name in TAGS if str(row.get(name) or "").strip()}


def _key(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or escaped(str(value)) != str(value):
        raise RequestError(f"{where}: `id` is `{shortened(value)}`: use a plain text or a number")
    return str(value)


def _distinct(prompts: Sequence[Prompt], path: str | Path) -> list[Prompt]:
    lines: dict[str, int] = {}
    for one in prompts:
        if one.key in lines:
            raise RequestError(
                f"prompts `{path}`, line {one.line}: `id` {shortened(one.key)} is that of line {lines[one.key]} too"
            )
        lines[one.key] = one.line
    return list(prompts)


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"prompts `{path}` are not valid JSON") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"prompts `{path}` cannot be read: they are not UTF-8 text") from error
    except (OSError, ValueError) as error:
        reason = (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else None) or error
        raise RequestError(f"prompts `{path}` cannot be read: {reason}") from error
