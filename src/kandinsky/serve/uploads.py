"""Uploaded files: copied under names of the server's own, and read in a confined process (``serve/decode.py``)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import kandinsky
from kandinsky import errors
from kandinsky.errors import KandinskyError
from kandinsky.jobs.records import NewJob
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.resolving import Query

log = logging.getLogger(__name__)

Way = Literal["image", "mask", "video", "clip", "masks", "recipe"]
DEADLINE_S = 60.0
AT_ONCE = threading.BoundedSemaphore(2)
CHUNK = 2**20
LONGEST_LOG = 4000
# the variables that say where cards and weights are: what holds a secret, as HF_TOKEN does, goes to no decoder
PLACES = (
    "KANDINSKY_CARDS", "KANDINSKY_FAMILIES", "KANDINSKY_WEIGHTS", "KANDINSKY_CACHE",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "HOME", "TMPDIR",
)  # fmt: skip
_READING = ThreadPoolExecutor(8, thread_name_prefix="upload")
T = TypeVar("T")


async def apart(work: Callable[[], T]) -> T:
    """Do what reads uploads on threads of its own, so that nothing else of the server waits for it."""
    return await asyncio.get_running_loop().run_in_executor(_READING, work)


@contextmanager
def kept(folder: Path, source: IO[bytes] | bytes) -> Iterator[Path]:
    """An uploaded file on disk, in a folder of its own, for the duration of a `with` block."""
    with tempfile.TemporaryDirectory(prefix="upload-", dir=folder) as place:
        path = Path(place) / "given"
        with path.open("wb") as file:
            if isinstance(source, bytes):
                file.write(source)
            else:
                source.seek(0)
                while chunk := source.read(CHUNK):
                    file.write(chunk)
        yield path


def read(way: Way, source: IO[bytes] | bytes, target: Path, *, param: str) -> dict[str, Any]:
    """Read an uploaded file in a confined process.

    Args:
        way: What it should be.
        source: Its bytes.
        target: Where what is used of it is written.
        param: The field it came in, for messages.

    Returns:
        Facts about it.

    Raises:
        ApiError: It cannot be used.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with kept(target.parent, source) as path, AT_ONCE:
        told = _in_child(way, path, target, param)
    if "error" in told:
        target.unlink(missing_ok=True)
        raise ApiError(400, f"`{param}`: {told['error']}", code="invalid_file", param=param)
    return told


def _in_child(way: Way, source: Path, target: Path, param: str) -> dict[str, Any]:
    words = (way, str(source), str(target))
    return confined("kandinsky.serve.decode", words, home=source.parent)


def resolved(query: Query) -> NewJob:
    """The job of a request, checked with its files in a confined process; see ``serve/resolving.py``.

    Raises:
        ApiError: The files take too long or too much memory, or, 500, the process failed.
        KandinskyError: As ``resolving.resolved``.
    """
    with AT_ONCE:
        told = confined("kandinsky.serve.resolving", given=json.dumps(dataclasses.asdict(query)).encode())
    if "new" in told:
        return NewJob(**told["new"])
    wrong = told["error"]
    if isinstance(wrong, str):
        raise ApiError(400, f"the request cannot be checked: {wrong}", code="invalid_file")
    raise getattr(errors, wrong["kind"], KandinskyError)(wrong["message"], hint=wrong["hint"])


def confined(module: str, words: Sequence[str] = (), *, given: bytes = b"", home: Path | None = None) -> dict[str, Any]:
    """Run a module of this package that answers with JSON in a process of its own, which limits itself.

    Args:
        module: Its name.
        words: Its arguments.
        given: Its standard input.
        home: The folder in which it works; None for that of the server, where it finds models as the server does.

    Returns:
        The answer, or `error` if it took too much.

    Raises:
        ApiError: 500, since it failed.
    """
    places = {name: os.environ[name] for name in PLACES if name in os.environ}
    environment = {
        **(places if home is None else {"HOME": str(home)}),
        "PATH": os.environ.get("PATH", ""),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(kandinsky.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-P", "-m", module, *words]  # no modules out of the folder in which it works
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, timeout=DEADLINE_S, env=environment, check=False, cwd=home,
            close_fds=True, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"the file takes more than {DEADLINE_S:g} seconds to read"}
    try:
        found = json.loads(done.stdout)
    except ValueError:
        if done.returncode == 1 and b"MemoryError" not in done.stderr:  # no limit, which ends it by a signal
            log.error("`%s` failed:\n%s", module, done.stderr.decode(errors="replace")[-LONGEST_LOG:])
            raise ApiError(500, "the server failed; its log says why", code="internal_error") from None
        return {"error": "the file needs more time or memory to read than is allowed"}
    return found if isinstance(found, dict) else {"error": "the file cannot be read"}


def of_data_url(text: str, *, param: str) -> bytes:
    """The bytes of a `data:` URL.

    Raises:
        ApiError: It is another URL, or no URL.
    """
    head, comma, data = text.partition(",")
    if not head.lower().startswith("data:"):
        raise ApiError(
            400,
            f"`{param}`: this server fetches nothing by URL: upload the file, or give a `data:` URL",
            code="url_not_allowed",
            param=param,
        )
    if not comma or not head.lower().endswith(";base64"):
        raise ApiError(400, f"`{param}`: a `data:` URL must be base64", code="invalid_value", param=param)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"`{param}`: the `data:` URL is not base64", code="invalid_value", param=param) from None
