"""Files of many prompts: one prompt a line, `.csv` with a header, `.jsonl`, or `.json` with one array. No torch here.

Published prompt sets have columns of their own, such as `concept` and `motion_level` of MovieGen: a column that names
no field of a request is ignored, and a note says so. Two kinds of name are refused instead, since ignoring them would
change the result: one that looks like a misspelt field (`promt`), and `model`, which is the same for the whole file.

An error in the file itself (such a column, no header) refuses the whole file; an error in one row, broken JSON or a
value, is that row's failure, when it is turned into a request.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.engine.request import parse_size
from kandinsky.errors import RequestError
from kandinsky.model.values import Request
from kandinsky.printing import escaped, shortened

# the fields of a request with their types; the model is the same for a whole file
_FIELDS = {field.name: str(field.type).split(" ")[0] for field in dataclasses.fields(Request) if field.name != "model"}
COLUMNS = (*_FIELDS, "size", "output")
# A name at least this similar to a field, and at most so many letters longer or shorter, is a misspelling of it.
_SIMILARITY, _LETTERS = 0.75, 2
log = logging.getLogger(__name__)
STDIN = "standard input"
Reader = Callable[[str, str], list["Row"]]
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a file.

    Attributes:
        line: Its line, from 1.
        values: Columns that are not empty.
        fault: Why it cannot be read.
    """

    line: int
    values: dict[str, Any]
    fault: RequestError | None = None

    @property
    def output(self) -> str | None:
        """The file it asks for.

        Raises:
            RequestError: It is not text.
        """
        value = self.values.get("output")
        return None if value is None else str(_typed("output", value))

    @property
    def has_seed(self) -> bool:
        return "seed" in self.values

    def request(self, base: Request) -> Request:
        """``base`` with this row's values.

        Raises:
            RequestError: The row cannot be read, or a value has another type than its column.
        """
        if self.fault is not None:
            raise self.fault
        values = {name: _typed(name, value) for name, value in self.values.items() if name != "output"}
        if (size := values.pop("size", None)) is not None:
            if "width" in values or "height" in values:
                raise RequestError("give either `size` or `width` and `height`, not both")
            values["width"], values["height"] = parse_size(size)
        return base.with_values(**values)


def read(path: Path) -> list[Row]:
    """Read the rows of a file by its ending: `.csv`, `.jsonl`, `.json`, or anything else for one prompt a line.

    Args:
        path: The file.

    Returns:
        The rows.

    Raises:
        RequestError: The file cannot be read, is empty, or has columns that are refused.
    """
    try:
        # Bytes that are not UTF-8 only fail their row. Spreadsheets write a byte order mark in front.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"prompts `{path}` cannot be read: {reason}") from error
    readers: dict[str, Reader] = {".csv": _csv, ".jsonl": _jsonl, ".json": _json}
    return _filled(readers.get(path.suffix.lower(), _lines)(text, str(path)), str(path))


def parse(text: str, name: str = STDIN) -> list[Row]:
    """Read the rows of text without a file: a JSON array, JSON lines, or one prompt a line, whichever it looks like.

    Args:
        text: The text.
        name: What to call it in messages.

    Returns:
        The rows.

    Raises:
        RequestError: The text is empty, or has columns that are refused.
    """
    reader: Reader = _lines
    with suppress(ValueError, RecursionError):
        if text.lstrip().startswith("[") and isinstance(json.loads(text), list):
            reader = _json
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict):
            reader = _jsonl
    return _filled(reader(text, name), name)


def _filled(rows: list[Row], name: str) -> list[Row]:
    if not rows:
        raise RequestError(f"prompts `{name}` holds no prompt: write one a line")
    return rows


def read_texts(path: Path) -> list[str]:
    """Read only the texts of a file: the expanded prompt of a row that has one, else its prompt.

    Args:
        path: The file.

    Returns:
        The texts.

    Raises:
        RequestError: The file cannot be read, or a row asks for anything else.
    """
    texts = []
    for row in read(path):
        if row.fault is not None:
            raise row.fault
        text = row.values.get("expanded_prompt", row.values.get("prompt"))
        if not set(row.values) <= {"prompt", "expanded_prompt"} or not isinstance(text, str):
            raise RequestError(f"prompts `{path}`, line {row.line}: only prompts are used here: leave the rest out")
        texts.append(text)
    return texts


def _lines(text: str, name: str) -> list[Row]:
    # Not str.splitlines: it also splits at form feeds and Unicode separators, which may occur within a prompt.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    stripped = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return [Row(number, {"prompt": line}) for number, line in stripped if line and not line.startswith("#")]


def _csv(text: str, name: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise RequestError(f"prompts `{name}`, line 1: {error}") from error
    ignored = _ignored(header, f"prompts `{name}`, line 1")
    if not {"prompt", "image"} & set(header):
        raise RequestError(f"prompts `{name}`: the first line must name the columns, `prompt` among them")
    if len(set(header)) < len(header):
        raise RequestError(f"prompts `{name}`: a column is named twice")
    rows = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            rows.append(_faulty(reader.line_num, f"prompts `{name}`, line {reader.line_num}: {error}", error))
            continue
        values = {
            column: cell.strip()
            for column, cell in zip(header, cells, strict=False)
            if cell.strip() and column not in ignored
        }
        if len(cells) > len(header):
            told = f"{len(cells)} cells for {len(header)} columns: put texts with a comma in quotes"
            fault = RequestError(f"prompts `{name}`, line {reader.line_num}: {told}")
            rows.append(Row(reader.line_num, values, fault))
        elif any(cell.strip() for cell in cells):
            rows.append(Row(reader.line_num, values))
    _note(ignored, name)
    return rows


def _jsonl(text: str, name: str) -> list[Row]:
    rows = []
    ignored: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            rows.append(_faulty(number, f"prompts `{name}`, line {number} is not valid JSON: {_why(error)}", error))
        else:
            rows.append(_entry(values, number, f"prompts `{name}`, line {number}", ignored))
    _note(ignored, name)
    return rows


def _json(text: str, name: str) -> list[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"prompts `{name}` is not valid JSON: {_why(error)}") from error
    if not isinstance(values, list):
        raise RequestError(f'prompts `{name}` must be a JSON array of prompts, such as ["a panda", "a fox"]')
    ignored: dict[str, None] = {}
    rows = [
        Row(number, {"prompt": value})
        if isinstance(value, str)
        else _entry(value, number, f"prompts `{name}`, entry {number}", ignored)
        for number, value in enumerate(values, 1)
    ]
    _note(ignored, name)
    return rows


def _entry(values: object, number: int, where: str, ignored: dict[str, None]) -> Row:
    """A row from a JSON value; names that are not fields are added to ``ignored``.

    Raises:
        RequestError: A name is refused.
    """
    if not isinstance(values, dict):
        return _faulty(number, f'{where} is not a JSON object, such as {{"prompt": "a panda"}}')
    ignored |= dict.fromkeys(_ignored(values, where))
    return Row(number, {key: value for key, value in values.items() if key in COLUMNS and value is not None})


def _faulty(line: int, message: str, cause: BaseException | None = None) -> Row:
    fault = RequestError(message)
    fault.__cause__ = cause
    return Row(line, {}, fault)


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    # besides its own errors, JSON has one of Python's for endless numbers, whose advice is for programmers
    return str(error) if isinstance(error, json.JSONDecodeError) else "it holds a number of too many digits"


def _ignored(names: Iterable[str], where: str) -> list[str]:
    """The columns that name no field of a request.

    Raises:
        RequestError: A column is `model` or a misspelt field.
    """
    unknown = [name for name in names if name not in COLUMNS]
    for name in unknown:
        column = f"{where}: column `{escaped(name)}`"
        if name == "model":
            raise RequestError(f"{column} is not for rows: the model is one for the whole file", hint="give `model=…`")
        near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=_SIMILARITY)
        if near and abs(len(near[0]) - len(name)) <= _LETTERS:
            raise RequestError(f"{column} is unknown: did you mean `{near[0]}`?")
    return unknown


def _note(ignored: Iterable[str], name: str) -> None:
    if columns := ", ".join(f"`{escaped(column)}`" for column in ignored):
        log.warning("prompts `%s`: ignored %s, which no request has", name, columns)


def _typed(name: str, value: Any) -> Any:
    """A cell's text as its column's type; JSON values already have types and are only checked."""
    kind = _FIELDS.get(name, "str")
    if name in ("conditions", "prompt_at"):  # checked by the request
        return value
    shown = shortened(value)
    wrong = RequestError(f"{name.replace('_', ' ')} `{shown}` is not {_WANTED.get(kind, 'text')}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in _EITHER:
        with suppress(ValueError):
            value = float(value) if isinstance(value, str) else value
        kind = "float" if isinstance(value, int | float) else "str"
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
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RequestError(f"{name.replace('_', ' ')} `{shown}` is not valid UTF-8 text")
    return value


_EITHER = ("overlap", "upscale")  # a number, or text
_WANTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}
