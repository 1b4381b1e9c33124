"""Conditions of a request, and the files that they name: uploads of its form, finished jobs, `data:` URLs. No torch.

A list names files by reference; what a job keeps names files in its own folder. No reference is ever a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from kandinsky.errors import RequestError
from kandinsky.model.given import KINDS, MOST_CONDITIONS, Frames, conditions_of, plain
from kandinsky.serve.envelope import ApiError

NAMED = "conditions/"  # before the names of uploads that a list names, among the files of a request
MOST_FILES = 16  # of one list; as many as a form may have
GIVEN = {
    "frames": "known frames",
    "source": "clip that is changed",
    "control": "control, which needs a control branch",
    "reference": "reference, which needs a reference branch",
}  # what a message calls each kind
Take = Callable[[Any, Literal["clip", "masks"]], str]


def named_in(values: Sequence[Any]) -> set[str]:
    """The texts by which conditions name files, whatever they stand for."""
    return {reference for reference in _references(values) if isinstance(reference, str)}


def whats_needed(values: Sequence[Any]) -> set[str]:
    """The kinds that a model must be able to be given; what is of no kind is refused later."""
    kinds = [[kind for kind in KINDS if kind in one] if isinstance(one, Mapping) else [] for one in values]
    return {of_one[0] if of_one else "frames" for of_one in kinds}


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
            conditions_of([{k: "file" if k in (*KINDS, "mask") else value for k, value in one.items()}])
        except RequestError as error:
            raise _wrong(f"{error} (condition {number})" if len(mappings) > 1 else str(error)) from None
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
