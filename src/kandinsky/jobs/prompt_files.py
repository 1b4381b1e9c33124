"""Files of many prompts: one prompt a line, `.csv` with a header, or `.jsonl`. No torch here.

Published prompt sets carry columns of their own, such as `concept` and `motion_level` of MovieGen: a column that names
no field of a request is ignored, and a note says so. Two kinds of name are refused instead, since ignoring them would
change what is made: one that looks like a misspelt field (`promt`), and `model`, which is one for the whole file.

What is wrong with the file itself (such a column, broken JSON) refuses the whole; what is wrong with one row's values
is that row's failure, when it is turned into a request.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.engine.request import parse_size
from kandinsky.errors import RequestError
from kandinsky.model.values import Request

# the fields of a request with their types; the model is the same for a whole file
_FIELDS = {field.name: str(field.type).split(" ")[0] for field in dataclasses.fields(Request) if field.name != "model"}
COLUMNS = (*_FIELDS, "size", "output")
# A name at least this similar to a field, and at most so many letters longer or shorter, is a misspelling of it.
_SIMILARITY, _LETTERS = 0.75, 2
log = logging.getLogger(__name__)
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a file.

    line:   where it stands, from 1.   values: columns that are not empty.
    """

    line: int
    values: dict[str, Any]

    @property
    def output(self) -> str | None:
        """The file it asks for. Raises: RequestError where that is no text."""
        value = self.values.get("output")
        return None if value is None else str(_typed("output", value))

    @property
    def has_seed(self) -> bool:
        return "seed" in self.values

    def request(self, base: Request) -> Request:
        """``base`` with this row's values. Raises: RequestError for a value of another type than its column has."""
        values = {name: _typed(name, value) for name, value in self.values.items() if name != "output"}
        if (size := values.pop("size", None)) is not None:
            if "width" in values or "height" in values:
                raise RequestError("give either `size` or `width` and `height`, not both")
            values["width"], values["height"] = parse_size(size)
        return base.with_values(**values)


def read(path: Path) -> list[Row]:
    """The rows of a file; the ending says how it is read, `.csv`, `.jsonl` or anything else for one prompt a line.

    Raises: RequestError for a file that cannot be read, holds nothing, or has columns that are not known.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"prompts `{path}` cannot be read: {error}") from error
    reader: Callable[[str, Path], list[Row]] = {".csv": _csv, ".jsonl": _jsonl}.get(path.suffix.lower(), _lines)
    rows = reader(text, path)
    if not rows:
        raise RequestError(f"prompts `{path}` holds no prompt: write one a line")
    return rows


def read_texts(path: Path) -> list[str]:
    """Only the texts of a file: the expanded prompt of a row that has one, else its prompt.

    Raises: as ``read``; RequestError for rows that ask for anything else.
    """
    texts = []
    for row in read(path):
        text = row.values.get("expanded_prompt", row.values.get("prompt"))
        if not set(row.values) <= {"prompt", "expanded_prompt"} or not isinstance(text, str):
            raise RequestError(f"prompts `{path}`, line {row.line}: only prompts are used here: leave the rest out")
        texts.append(text)
    return texts


def _lines(text: str, path: Path) -> list[Row]:
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [Row(number, {"prompt": line}) for number, line in stripped if line and not line.startswith("#")]


def _csv(text: str, path: Path) -> list[Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        ignored = _ignored(header, path, 1)
        if not {"prompt", "image"} & set(header):
            raise RequestError(f"prompts `{path}`: the first line must name the columns, `prompt` among them")
        if len(set(header)) < len(header):
            raise RequestError(f"prompts `{path}`: a column is named twice")
        rows = []
        for cells in reader:
            if len(cells) > len(header):
                raise RequestError(
                    f"prompts `{path}`, line {reader.line_num}: {len(cells)} cells for {len(header)} columns: put "
                    "texts with a comma in quotes"
                )
            values = {
                name: cell.strip()
                for name, cell in zip(header, cells, strict=False)
                if cell.strip() and name not in ignored
            }
            if any(cell.strip() for cell in cells):
                rows.append(Row(reader.line_num, values))
    except csv.Error as error:
        raise RequestError(f"prompts `{path}`, line {reader.line_num}: {error}") from error
    _note(ignored, path)
    return rows


def _jsonl(text: str, path: Path) -> list[Row]:
    rows = []
    ignored: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise RequestError(f"prompts `{path}`, line {number} is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise RequestError(f'prompts `{path}`, line {number} is no JSON object, such as {{"prompt": "a panda"}}')
        ignored |= dict.fromkeys(_ignored(values, path, number))
        kept = {name: value for name, value in values.items() if name in COLUMNS and value is not None}
        rows.append(Row(number, kept))
    _note(ignored, path)
    return rows


def _ignored(names: Iterable[str], path: Path, line: int) -> list[str]:
    """The columns that name no field of a request. Raises: RequestError for `model` and for a misspelt field."""
    unknown = [name for name in names if name not in COLUMNS]
    for name in unknown:
        where = f"prompts `{path}`, line {line}: column `{_shown(name)}`"
        if name == "model":
            raise RequestError(f"{where} is not for rows: the model is one for the whole file", hint="give `--model`")
        near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=_SIMILARITY)
        if near and abs(len(near[0]) - len(name)) <= _LETTERS:
            raise RequestError(f"{where} is unknown: did you mean `{near[0]}`?")
    return unknown


def _note(ignored: Iterable[str], path: Path) -> None:
    if names := ", ".join(f"`{_shown(name)}`" for name in ignored):
        log.warning("prompts `%s`: ignored %s, which no request has", path, names)


def _shown(name: str) -> str:
    """A column's name from a file, with control characters escaped."""
    return repr(name)[1:-1]


def _typed(name: str, value: Any) -> Any:
    """A cell's text as its column's type; JSON brings its types along, and they are only checked."""
    kind = _FIELDS.get(name, "str")
    wrong = RequestError(f"{name.replace('_', ' ')} `{value}` is not {_WANTED.get(kind, 'text')}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in ("int", "float"):
        if isinstance(value, str):
            try:
                return int(value) if kind == "int" else float(value)
            except ValueError:
                raise wrong from None
        if not is_number or (kind == "int" and not isinstance(value, int)):
            raise wrong
        return value
    if kind == "bool":
        found = value if isinstance(value, bool) else _TRUTH.get(str(value).lower())
        if found is None:
            raise wrong
        return found
    if not isinstance(value, str):
        raise wrong
    return value


_WANTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}
