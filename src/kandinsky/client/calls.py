"""What both clients send: addresses, fields and files of each call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError

URL = "http://127.0.0.1:8000"
VARIABLE, ADDRESS = "KANDINSKY_API_KEY", "KANDINSKY_SERVER"
FILES = ("image", "mask", "video")
FINAL = ("completed", "failed", "cancelled")
TRIES, PAUSE_S = 3, 0.5
TRY_AGAIN = (429, 502, 503, 504)


def headers_of(key: str | None) -> dict[str, str]:
    key = key or os.environ.get(VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def parts_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for httpx: JSON, or a form if there are files.

    Args:
        fields: Fields of a call; files are paths, bytes, or the names of jobs as ``{"id": …}``.

    Returns:
        `json`, or `data` and `files`.

    Raises:
        RequestError: A file does not exist.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    files: dict[str, Any] = {}
    for name in FILES:
        value = given.get(name)
        if isinstance(value, str | Path) and not str(value).startswith("data:"):
            path = Path(value)
            if not path.is_file():
                raise RequestError(f"{name} `{path}` is not a file")
            files[name] = (path.name, path.read_bytes())
            del given[name]
        elif isinstance(value, bytes):
            files[name] = (name, value)
            del given[name]
    if not files:
        return {"json": given}
    return {"data": _form(given), "files": files}


def _form(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found |= {f"{name}[{key}]": str(inner) for key, inner in value.items()}
        elif isinstance(value, list | tuple):
            found[f"{name}[]"] = [str(one) for one in value]
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def address(url: str | None) -> str:
    return (url or os.environ.get(ADDRESS) or URL).rstrip("/")


def pause(number: int, retry_after_s: float | None) -> float:
    """Seconds before another try."""
    return PAUSE_S * 2**number if retry_after_s is None else retry_after_s
