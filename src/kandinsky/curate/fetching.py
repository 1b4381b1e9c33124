"""Source files that are http(s) addresses: fetched once into a folder, politely; a fetch goes on where it broke off.

Few connections at once, fewer of one host; servers that ask to wait are waited for; what is half there is asked for
from its end on, if the server still has the same file. Each address has a small JSON file beside what was fetched, so a
run that was killed at any instant goes on. Answers that will not change (404, too large, no video) are remembered.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from kandinsky.errors import RequestError
from kandinsky.files import not_writable, remove, replacing
from kandinsky.printing import escaped
from kandinsky.train.data.sources import ENDINGS

MOST_MB = 4096
CONNECTIONS, OF_A_HOST = 8, 2  # at once
ATTEMPTS = 4  # without a byte more than before
MOST_ATTEMPTS = 200
LONGEST_WAIT_S = 60.0
TIMEOUT_S = 30.0
REDIRECTS = 5
_CHUNK = 1 << 18
_PASSING = {408, 425, 429}  # of the answers from 400 to 499, those that may be others in a while
_KINDS = {
    "video/mp4": ".mp4", "video/webm": ".webm", "video/quicktime": ".mov", "video/x-matroska": ".mkv",
    "video/matroska": ".mkv", "video/x-msvideo": ".avi", "video/avi": ".avi", "video/x-m4v": ".m4v",
    "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif", "image/bmp": ".bmp",
    "image/tiff": ".tif",
}  # fmt: skip


class _LastingError(Exception):
    """Why an address gives no file, now and later."""


class _PassingError(Exception):
    """Why an address gave no file this time.

    Args:
        why: One line.
        wait_s: How long the server asks to wait.
    """

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def check(url: str) -> str:
    """An address as it is asked for: what is not ASCII is written in percents, what follows `#` is left out.

    Raises:
        RequestError: It is none that is fetched.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host.encode("idna").decode() if not host.isascii() else host
    except ValueError as error:
        raise RequestError(f"`{escaped(url)}` is no address") from error
    scheme = parts.scheme.lower()
    if scheme == "file":
        raise RequestError(f"`{escaped(url)}`: name a file of this machine by its path")
    if scheme not in ("http", "https"):
        raise RequestError(f"`{escaped(url)}` is no file of this machine: mount or copy what it names")
    if not host or any(ord(letter) <= 0x20 or ord(letter) == 0x7F for letter in url):
        raise RequestError(f"`{escaped(url)}` is no address")
    if parts.username is not None or parts.password is not None:
        raise RequestError("an address with a name and password in it is not fetched: get the file yourself")
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port is not None else ""
    path, query = (quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path or "/", parts.query))
    return urlunsplit((scheme, place, path, query, ""))


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            checked = check(newurl)
        except RequestError as error:
            raise _LastingError(f"it leads to another place: {error}") from None
        made = super().redirect_request(req, fp, code, msg, headers, checked)
        if made is not None:
            for name, value in req.unredirected_hdrs.items():  # the range goes along
                made.add_unredirected_header(name, value)
        return made


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file and what is known of it lie.

    Attributes:
        folder: Of all.
        url: Its address.
    """

    folder: Path
    url: str

    @property
    def name(self) -> str:
        return sha256(self.url.encode("utf-8", "backslashreplace")).hexdigest()[:32]

    @property
    def part(self) -> Path:
        return self.folder / f"{self.name}.part"

    @property
    def note(self) -> Path:
        return self.folder / f"{self.name}.json"

    def known(self) -> dict[str, Any]:
        try:
            told = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or it was cut
            return {}
        return told if isinstance(told, dict) and told.get("url") == self.url else {}

    def tell(self, **facts: Any) -> None:
        with replacing(self.note) as part:
            part.write_text(json.dumps({"url": self.url, **facts}, ensure_ascii=False) + "\n", encoding="utf-8")

    def there(self) -> Path | None:
        """The file, if it is whole."""
        told = self.known()
        name, size = told.get("file"), told.get("bytes")
        path = self.folder / f"{self.name}{name}" if name in ENDINGS else None
        return path if path is not None and path.is_file() and path.stat().st_size == size else None

    def half(self) -> tuple[int, str]:
        """Bytes that are there of a file that can be gone on with, and what names its state on the server."""
        validator = self.known().get("validator")
        size = self.part.stat().st_size if self.part.is_file() else 0
        return (size, validator) if size and isinstance(validator, str) and validator else (0, "")


class Fetcher:
    """Fetches addresses into a folder.

    Args:
        folder: For the files.
        most_mb: Largest file, in megabytes.
        retry: Whether addresses that gave a lasting fault before are asked again.
        on_progress: Called with how many addresses are done, of how many.
        pause_s: Before the second attempt; twice as long before each further one.

    Attributes:
        asked: Addresses that were asked for.
        failed: Those of them that gave no file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most_mb: int = MOST_MB,
        retry: bool = False,
        on_progress: Callable[[int, int], None] = lambda _done, _all: None,
        pause_s: float = 1.0,
    ) -> None:
        self.folder, self.most, self.retry = folder, most_mb << 20, retry
        self.on_progress, self.pause_s = on_progress, pause_s
        self.asked = self.failed = 0
        self.stop = threading.Event()
        self.opener = urllib.request.build_opener(_Redirects())

    def __call__(self, urls: Sequence[str]) -> Mapping[str, Path | str]:
        """The file of each address, or why there is none.

        Raises:
            RequestError: Nothing can be written into the folder.
        """
        found = self._found(urls)
        self.asked += len(found)
        self.failed += sum(isinstance(one, str) for one in found.values())
        return found

    def _found(self, urls: Sequence[str]) -> dict[str, Path | str]:
        found: dict[str, Path | str] = {}
        by_host: dict[str, deque[str]] = {}
        for url in dict.fromkeys(urls):
            try:
                host = urlsplit(check(url)).netloc
            except RequestError as error:
                found[url] = str(error)
                continue
            place = _Place(self.folder, url)
            fault = None if self.retry else place.known().get("fault")
            if (file := place.there()) is not None:
                found[url] = file
            elif isinstance(fault, str):
                found[url] = fault
            else:
                by_host.setdefault(host, deque()).append(url)
        waiting = sum(map(len, by_host.values()))
        if not waiting:
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        told: SimpleQueue[tuple[str, Path | str] | BaseException] = SimpleQueue()
        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch")
        try:
            for _ in range(OF_A_HOST):  # the first of each host before the second of any
                for left in by_host.values():
                    pool.submit(self._some, left, told)
            for done in range(1, waiting + 1):
                one = told.get()
                if isinstance(one, BaseException):
                    raise one
                found[one[0]] = one[1]
                self.on_progress(done, waiting)
        finally:
            self.stop.set()  # where a signal or a full disk ends the run
            pool.shutdown(cancel_futures=True)
            self.stop.clear()
        return found

    def _some(self, left: deque[str], told: SimpleQueue[tuple[str, Path | str] | BaseException]) -> None:
        """Addresses of a host, one after the other."""
        try:
            while left and not self.stop.is_set():
                with suppress(IndexError):  # the other connection took the last one
                    url = left.popleft()
                    told.put((url, self._fetched(_Place(self.folder, url))))
        except BaseException as error:  # whatever it is, who waits is told
            told.put(error)

    def _fetched(self, place: _Place) -> Path | str:
        attempt, most = 0, 0
        why = "the run was stopped"
        for _ in range(MOST_ATTEMPTS):
            try:
                return self._asked(place)
            except _LastingError as error:
                why = f"`{escaped(place.url)}` cannot be fetched: {error}"
                remove(place.part)
                place.tell(fault=why)
                return why
            except _PassingError as error:
                why, wait = f"`{escaped(place.url)}` cannot be fetched now: {error}", error.wait_s
            there = place.part.stat().st_size if place.part.is_file() else 0
            attempt = 1 if there > most else attempt + 1
            most = max(most, there)
            if (
                attempt >= ATTEMPTS
                or wait > LONGEST_WAIT_S
                or self.stop.wait(max(wait, self.pause_s * 2 ** (attempt - 1)))
            ):
                break
        return why

    def _asked(self, place: _Place) -> Path:
        """Ask once. Raises: _LastingError, _PassingError."""
        begin, validator = place.half()
        request = urllib.request.Request(
            check(place.url), headers={"User-Agent": "kandinsky", "Accept": "video/*, image/*"}
        )
        if begin:
            request.add_unredirected_header("Range", f"bytes={begin}-")
            request.add_unredirected_header("If-Range", validator)
        try:
            with self.opener.open(request, timeout=TIMEOUT_S) as answer:
                return self._taken(place, answer, begin)
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error, place, begin) from None
        except (http.client.HTTPException, TimeoutError) as error:
            raise _PassingError(_said(error)) from error
        except urllib.error.URLError as error:
            raise _PassingError(_said(error.reason)) from error
        except (ConnectionError, EOFError) as error:
            raise _PassingError(_said(error)) from error

    def _taken(self, place: _Place, answer: Any, begin: int) -> Path:
        if answer.status == 206:
            if not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {begin}-"):
                remove(place.part)
                raise _PassingError("it sent another part than was asked for")
        elif answer.status == 200:
            begin = 0
        else:
            raise _PassingError(f"it answered {answer.status}")
        ending = _ending(place.url, answer)
        length = str(answer.headers.get("Content-Length", ""))
        whole = begin + int(length) if length.isdecimal() else None
        self._check_size(whole or 0)
        if not begin:
            # without a mark of its state, a file that changes between two parts would be glued from both
            tag = answer.headers.get("ETag") or ""
            validator = answer.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
            remove(place.part)
            place.tell(validator=validator)
        size = begin
        with _writing(place), place.part.open("ab" if begin else "wb") as out:
            while piece := answer.read(_CHUNK):
                out.write(piece)
                size += len(piece)
                self._check_size(size)
                if self.stop.is_set():
                    raise _PassingError("the run was stopped")
            out.flush()
            os.fsync(out.fileno())
        if whole is not None and size < whole:
            raise _PassingError(f"it ended after {size:,} of {whole:,} bytes")
        if not size:
            raise _LastingError("the file is empty")
        target = place.folder / f"{place.name}{ending}"
        place.part.replace(target)
        place.tell(file=ending, bytes=size)
        return target

    def _check_size(self, size: int) -> None:
        if size > self.most:
            raise _LastingError(f"it is larger than {self.most >> 20} MB: allow more with `most_mb`")


def _refused(answer: urllib.error.HTTPError, place: _Place, begin: int) -> Exception:
    code = answer.code
    if code == 416 and begin:  # the file is another now
        remove(place.part)
        return _PassingError("the file changed on the server")
    if code in _PASSING or code >= 500:
        asked = str(answer.headers.get("Retry-After", ""))
        return _PassingError(f"it answered {code}", float(asked) if asked.isdecimal() else 0.0)
    if 300 <= code < 400:
        try:
            check(urljoin(place.url, answer.headers.get("Location") or place.url))
        except RequestError as error:
            return _LastingError(f"it leads to another place: {error}")
        return _LastingError("it leads from address to address")
    return _LastingError(f"it answered {code}")


def _ending(url: str, answer: Any) -> str:
    """What kind of file comes, from its names and what the server says. Raises: _LastingError for none that is read."""
    kind = str(answer.headers.get_content_type()).lower() if answer.headers.get("Content-Type") else ""
    if kind in ("text/html", "application/xhtml+xml"):
        raise _LastingError("a web page came in the place of a file")
    for name in (answer.headers.get_filename() or "", urlsplit(answer.geturl()).path, urlsplit(url).path):
        ending = Path(unquote(name)).suffix.lower()
        if ending in ENDINGS:
            return ending
    if kind in _KINDS:
        return _KINDS[kind]
    raise _LastingError(f"it is no image or video: {', '.join(ENDINGS)} are read")


class _writing:  # noqa: N801
    """Tells errors of the disk from those of the connection."""

    def __init__(self, place: _Place) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            raise not_writable(self.place.folder, error) from error


def _said(error: object) -> str:
    return escaped(str(getattr(error, "strerror", None) or error) or type(error).__name__)
