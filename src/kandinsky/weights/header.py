"""Headers of safetensors files and the index of a sharded model: read and checked before a tensor is touched.

The only parser of such headers in this library. It enforces all rules of the format: known types, integer shapes,
contiguous data in order, nothing after the last tensor. No torch.
Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from kandinsky.errors import RequestError, WeightsError
from kandinsky.files import relative_parts
from kandinsky.printing import escaped
from kandinsky.weights.untrusted import parse_table, read_table, shown

HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
PREFIX = 8  # bytes of the length field before the header
MOST_AXES = 16  # the networks have up to 5
MOST_NUMBERS = 2**63 - 1  # largest count in torch
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: Its type, by the format's name.
        shape: Its shape.
        begin: Where its bytes begin in the file.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        entries: Tensors by name, in the order of the data.
        metadata: Free text; None if there is none.
        text: The header as it stands in the file.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] | None
    text: bytes


def read_header(file: Path) -> Header:
    """Read and check the header of a safetensors file.

    Args:
        file: The file.

    Returns:
        The header.

    Raises:
        WeightsError: The file cannot be read or breaks a rule of the format; the message names the tensor.
    """
    where = escaped(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(PREFIX), "little")
            if size < PREFIX or length > min(size - PREFIX, HEADER_LIMIT):
                raise WeightsError(f"`{where}` is cut off within its header ({size} bytes): fetch it again")
            text = stream.read(length)
    except OSError as error:
        raise WeightsError(f"`{where}` cannot be read: {error.strerror or error}") from error
    if not text.startswith(b"{"):
        raise WeightsError(f"`{where}` is not a safetensors file: its header cannot be read")
    try:
        table = parse_table(text, file)
    except WeightsError as error:
        raise WeightsError(f"{error} (its header cannot be read as that of a safetensors file)") from error
    metadata = table.pop("__metadata__", None)
    if metadata is not None and not _is_text(metadata):
        raise WeightsError(f"`{where}` is damaged: the metadata in its header must be text")
    start = PREFIX + length
    entries = {name: _entry(name, values, start, where) for name, values in table.items()}
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = start
    for name, entry in entries.items():
        if entry.end > size:
            raise WeightsError(f"`{where}` is cut off within tensor `{shown(name)}` ({size} bytes): fetch it again")
        if entry.begin != end:
            fault = "overlaps the one before it" if entry.begin < end else "leaves a gap before it"
            raise _damaged(name, where, f"{fault} in the data")
        end = entry.end
    if end != size:
        raise WeightsError(f"`{where}` is damaged: {size - end} bytes follow the last tensor")
    return Header(entries, metadata, text)


def shard_files(index: Path) -> list[Path]:
    """The weight files that the index of a sharded model names, each once.

    Args:
        index: The `….index.json`.

    Returns:
        The files, beside the index.

    Raises:
        WeightsError: The index is damaged, names no file, or names one outside its folder.
    """
    table = read_table(index).get("weight_map")
    if not isinstance(table, dict) or not table or not _is_text(table):
        raise WeightsError(f"`{escaped(index)}` is not a valid index of weight files: fetch it again")
    for name in set(table.values()):
        try:
            parts = relative_parts(name)
        except RequestError as error:
            raise WeightsError(f"index `{escaped(index)}` points outside its folder: {error}") from error
        if len(parts) > 1 or not name.endswith(".safetensors"):
            raise WeightsError(
                f"index `{escaped(index)}` names `{shown(name)}`: only `.safetensors` files beside it are read"
            )
    return [index.parent / name for name in sorted(set(table.values()))]


def _entry(name: str, values: Any, start: int, where: str) -> Entry:
    if not _is_encodable(name):
        raise _damaged(name, where, "has a name that is not valid text")
    if not isinstance(values, dict):
        raise _damaged(name, where, "is described by something else than an object")
    dtype, shape, offsets = (values.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise _damaged(name, where, f"has the type `{shown(dtype)}`, which is none of {', '.join(BYTES)}")
    if not _is_counts(shape) or len(shape) > MOST_AXES:
        raise _damaged(name, where, f"has the shape `{shown(shape)}`: a list of at most {MOST_AXES} sizes is needed")
    if math.prod(size for size in shape if size) > MOST_NUMBERS:
        raise _damaged(name, where, f"has the shape `{shown(shape)}`, too large for any memory")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(name, where, f"has the data_offsets `{shown(offsets)}`: its first and last byte are needed")
    begin, end = offsets
    if end - begin != math.prod(shape) * BYTES[dtype]:
        raise _damaged(name, where, f"has {end - begin} bytes, its shape {shown(list(shape))} of {dtype} has "
                       f"{math.prod(shape) * BYTES[dtype]}")  # fmt: skip
    return Entry(dtype, tuple(shape), start + begin, start + end)


def _damaged(name: str, where: str, what: str) -> WeightsError:
    return WeightsError(f"tensor `{shown(name)}` in `{where}` {what}: the file is damaged, fetch it again")


def _is_counts(values: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of integers from 0 to the largest that torch can count to."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= MOST_NUMBERS for v in values)


def _is_text(table: Any) -> bool:
    return isinstance(table, dict) and all(
        isinstance(value, str) and _is_encodable(key) and _is_encodable(value) for key, value in table.items()
    )


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
