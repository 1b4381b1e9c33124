"""Reading files from untrusted sources: malformed input is always reported as a one-line error. No torch."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kandinsky.errors import BackendError, KandinskyError, WeightsError
from kandinsky.printing import escaped

LARGEST_TABLE = 64 << 20  # largest JSON file, in bytes; the largest index of a released model has 0.1 MB
_MEMORY = 2**27  # bytes that expanding a file may take
_LONGEST = 160  # most characters of a foreign name or message to show


@contextmanager
def reading(file: Path | str, failure: str = "is damaged") -> Iterator[None]:
    """Report any error that the contents of a file cause in other code as one ``WeightsError``.

    For code that uses values from a file unchecked: a tokenizer, a network built from a `config.json`, a library's own
    reader. Checks with a message of their own come before it and pass through.

    Args:
        file: The file that the message names.
        failure: What the message says of it, such as `holds no tokenizer`.

    Raises:
        WeightsError: The block raised an error that the contents of a file can cause. Errors of this library and
            out-of-memory errors pass through unchanged.
        BackendError: A package is missing.
    """
    try:
        yield
    except (KandinskyError, MemoryError):
        raise
    except ImportError as error:
        raise BackendError(f"`{escaped(file)}` needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:
        if _is_out_of_memory(error):
            raise
        raise WeightsError(f"`{escaped(file)}` {failure}: {first_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from Rust libraries; not an ``Exception``
            raise
        raise WeightsError(f"`{escaped(file)}` {failure}: {first_line(error)}") from error


def read_table(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        WeightsError: The file is absent, too large, not JSON, nested too deeply, or holds something else.
    """
    return parse_table(read_text(path), path)


def read_text(path: Path) -> bytes:
    """Read the JSON text in a file, expanded where its name ends in `.xz`.

    Args:
        path: The file.

    Returns:
        The text, not yet decoded.

    Raises:
        WeightsError: The file is absent, too large, or not compressed as its name says.
    """
    try:
        size, text = path.stat().st_size, b""
        if size <= LARGEST_TABLE:
            text = path.read_bytes()
        if path.suffix == ".xz" and text:  # no more than is allowed comes of a small file, either
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY)
            text = stream.decompress(text, LARGEST_TABLE + 1)
            if not stream.eof and len(text) <= LARGEST_TABLE:
                raise EOFError("it breaks off")
            size = max(size, len(text))
    except OSError as error:
        raise WeightsError(f"`{escaped(path)}` cannot be read: {error.strerror or error}") from error
    except (lzma.LZMAError, EOFError) as error:
        raise WeightsError(f"`{escaped(path)}` is not valid xz ({first_line(error)}): fetch it again") from error
    if size > LARGEST_TABLE:
        raise WeightsError(f"`{escaped(path)}` has {size >> 20} MB, too much for a JSON table")
    return text


def parse_table(text: bytes, where: Path | str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        text: UTF-8. Duplicate names in one object are refused, since readers do not agree on which of them counts.
        where: What to call it in messages.

    Returns:
        The object.

    Raises:
        WeightsError: It is not JSON, is nested too deeply, or is something else.
    """
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise WeightsError(f"`{escaped(where)}` is nested too deeply: fetch it again") from error
    except ValueError as error:  # including encoding errors
        raise WeightsError(f"`{escaped(where)}` is not valid JSON ({first_line(error)}): fetch it again") from error
    if not isinstance(table, dict):
        raise WeightsError(f"`{escaped(where)}` must hold a JSON object, not {type(table).__name__}: fetch it again")
    return table


def shown(text: object) -> str:
    """A foreign name or message as it may stand in an error: escaped, on one line, shortened."""
    line = escaped(text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]}…{line[-_LONGEST // 2 :]}"


def first_line(error: BaseException) -> str:
    """Another library's error on one line."""
    lines = str(error).strip().splitlines()
    return shown(lines[0]) if lines else type(error).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"`{shown(twice)}` stands in it twice")
    return table


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has a class for that on accelerators, and only a message on the host."""
    words = ("DefaultCPUAllocator", "not enough memory")
    return type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in words)
