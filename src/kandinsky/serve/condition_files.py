"""Conditions of a request, and the files that they name: uploads of its form, finished jobs, `data:` URLs. No torch.

A list names files by reference; what a job keeps names files in its own folder. No reference is ever a path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from kandinsky.errors import RequestError
from kandinsky.model.given import MOST_CONDITIONS, Control, Frames, Reference, conditions_of, plain
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.fields import MOST_MARKS

NAMED = "conditions/"  # before the names of uploads that a list names, among the files of a request
MOST_FILES = 16  # of one list; as many as a form may have
KINDS = ("frames", "source")
Take = Callable[[Any, Literal["clip", "masks"]], str]


def listed(value: Any) -> list[Any]:
    """The list of conditions that a form's fields spell: JSON, or texts `NAME[START:STOP]@PLACE`.

    Args:
        value: What came; anything but text is left as it is.

    Returns:
        One entry for each condition, not yet checked.

    Raises:
        ApiError: Text that begins as JSON is none.
    """
    found: list[Any] = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, str) or one.lstrip()[:1] not in ("[", "{"):
            found.append(one)
            continue
        if sum(map(one.count, ",[{")) > MOST_MARKS:  # before memory is taken for each value
            raise _wrong(f"the list holds more than {MOST_MARKS} values")
        try:
            told = json.loads(one)
        except (ValueError, RecursionError):
            raise _wrong("the list is not JSON") from None
        found += told if isinstance(told, list) else [told]
    return found


def named_in(values: Sequence[Any]) -> set[str]:
    """The texts by which conditions name files, whatever they stand for."""
    return {reference for reference in _references(values) if isinstance(reference, str)}


def whats_needed(values: Sequence[Any]) -> set[str]:
    """What a model must be able to be given: `frames`, `source`."""
    return {"source" if isinstance(one, Mapping) and "source" in one else "frames" for one in values}


def kept(values: Sequence[Any], take: Take) -> list[dict[str, Any]]:
    """Conditions as a job keeps them.

    Args:
        values: The list, with references.
        take: Puts the file of a reference into the job's folder; returns its name there.

    Returns:
        Plain values of each, as ``model/given.plain`` makes them, with names of files.

    Raises:
        ApiError: A condition is of no known form.
    """
    if len(values) > MOST_CONDITIONS:
        raise _wrong(f"{len(values)} are listed, and {MOST_CONDITIONS} are allowed")
    mappings = [_mapping(one) for one in values]
    for number, one in enumerate(mappings, 1):  # all are looked at before a file is
        try:
            (given,) = conditions_of([{k: "file" if k in (*KINDS, "mask") else value for k, value in one.items()}])
        except RequestError as error:
            raise _wrong(f"{error} (condition {number})" if len(mappings) > 1 else str(error)) from None
        if isinstance(given, Control | Reference):  # it names files of this machine
            raise _wrong("controls and references are not taken over HTTP: use `frames` or `source`")
    found = []
    for one in mappings:
        taken = {
            key: take(value, "masks" if key == "mask" else "clip") if key in (*KINDS, "mask") else value
            for key, value in one.items()
        }
        found.append(plain(*conditions_of([taken])))
    return found


def files_of(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the files of conditions that a job keeps."""
    return [one[key] for one in values for key in (*KINDS, "mask") if one.get(key) is not None]


def name_of(reference: Any) -> str:
    """What a message calls a file: the job, or the field of the form."""
    if isinstance(reference, Mapping):
        return str(reference.get("id") or reference.get("file_id") or "a file of conditions")
    return "a file of conditions" if str(reference).startswith("data:") else str(reference)


def _mapping(one: Any) -> dict[str, Any]:
    try:
        if isinstance(one, str):
            return plain(Frames.parse(one))
        if isinstance(one, Mapping):
            return {str(key): value for key, value in one.items() if value is not None}
        conditions_of([one])
    except RequestError as error:
        raise _wrong(str(error)) from None
    raise AssertionError("the library has refused it")


def _references(values: Sequence[Any]) -> Iterator[Any]:
    for one in values:
        if isinstance(one, str):
            with_place = _mapping(one)
            yield with_place["frames"]
        elif isinstance(one, Mapping):
            yield from (one[key] for key in (*KINDS, "mask") if key in one)


def _wrong(message: str) -> ApiError:
    return ApiError(400, f"`conditions`: {message}", code="invalid_value", param="conditions")
