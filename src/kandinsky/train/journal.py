"""`log.jsonl` of a run: one line of figures for some steps, each step at most once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kandinsky.files import not_writable, replacing


@contextmanager
def opened(path: Path, *, after: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Write on behind a step; what an interrupted run wrote of later ones is removed first.

    Args:
        path: The file; it need not exist.
        after: The last step that stays.

    Yields:
        Writes one line.

    Raises:
        RequestError: The file cannot be written.
    """
    kept = [line for line in _lines(path) if json.loads(line)["step"] <= after]
    with replacing(path) as part:
        part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    try:
        with path.open("a", encoding="utf-8") as stream:

            def write(figures: Mapping[str, float]) -> None:
                try:
                    stream.write(json.dumps({key: round(value, 6) for key, value in figures.items()}) + "\n")
                    stream.flush()
                except OSError as error:
                    raise not_writable(path, error) from error

            yield write
    except OSError as error:  # what could not be flushed is tried again when the file is closed
        raise not_writable(path, error) from error


def _lines(path: Path) -> Iterator[str]:
    """The whole lines of the file that hold a step; a killed run may leave half of one."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            yield line
