"""The web pages at `/`, `/live` and `/compare`: files of this package, and nothing that a request names."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

from kandinsky.serve.envelope import ApiError

router = APIRouter(include_in_schema=False)
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "webp": "image/webp",
    "woff2": "font/woff2",
    "txt": "text/plain; charset=utf-8",
}


@functools.cache
def page_files() -> Mapping[str, tuple[bytes, str]]:
    """Every file of the page: its bytes and media type, by its name in the folder."""
    found: dict[str, tuple[bytes, str]] = {}

    def walk(folder: Traversable, before: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{before}{entry.name}/")
            elif (kind := KINDS.get(entry.name.rpartition(".")[2])) is not None:
                found[before + entry.name] = entry.read_bytes(), kind

    walk(files("kandinsky.serve") / "page", "")
    return found


@router.get("/")
async def page(request: Request) -> Response:
    """The page itself."""
    return _answer(request, "index.html")


@router.get("/live")
async def live_page(request: Request) -> Response:
    """The same page, where it shows a stream."""
    return _answer(request, "index.html")


@router.get("/compare")
async def compare_page(request: Request) -> Response:
    """The page on which people compare clips."""
    return _answer(request, "compare.html")


@router.get("/page/{name:path}")
async def page_file(request: Request, name: str) -> Response:
    """A module, style sheet, font or dictionary of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise ApiError(404, f"the page has no file `{name[:60]}`", code="not_found")
    data, kind = found
    mark = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"etag": mark, "cache-control": "no-cache"}  # asked for again, and not sent again
    if request.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
