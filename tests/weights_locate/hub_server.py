"""A hub on 127.0.0.1: the few routes a download uses, with range requests, ETags, and faults on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories, what was asked, and how to misbehave.

    listing: what is said in the place of the list of files of a repository: changes of single entries, as
    ``{file: {key: value}}``, or the whole answer.   etags: of files, in the place of their own.
    sha: the commit that is reported.   redirects: files whose address leads to itself.   endless: files that never end.

    fault: called with (repo, file, first byte, content); answers with the bytes to send before the connection is cut,
    or None to serve as usual.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    fault: Callable[[str, str, int, bytes], bytes | None] | None = None
    stall: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    listing: dict[str, dict[str, object]] | bytes = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    sha: object = COMMIT
    redirects: set[str] = field(default_factory=set)
    endless: set[str] = field(default_factory=set)

    def fetched(self, repo: str) -> list[str]:
        """Files whose content was asked for."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for kind, path, _ in self.requests
                if kind == "GET" and path.startswith(f"/{repo}/resolve/")]  # fmt: skip

    def ranges(self) -> list[str]:
        return [asked for kind, _, asked in self.requests if kind == "GET" and asked]


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def etag(name: str, content: bytes) -> str:
    return sha256(content) if is_large(name) else git_sha1(content)


def start(hub: Hub) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _note(self) -> str:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            hub.tokens.append(self.headers.get("Authorization"))
            return path

        def _fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _find(self, path: str) -> tuple[str, str, bytes] | None:
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if not match or match[1] not in hub.repos:
                self._fail(404, "RepoNotFound")
            elif match[1] in hub.gated:
                self._fail(403, "GatedRepo")
            elif match[2] not in ("main", COMMIT):
                self._fail(404, "RevisionNotFound")
            elif match[3] not in hub.repos[match[1]]:
                self._fail(404, "EntryNotFound")
            else:
                return match[1], match[3], hub.repos[match[1]][match[3]]
            return None

        def _head(self, name: str, content: bytes, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{hub.etags.get(name, etag(name, content))}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(length))

        def _redirect(self, name: str) -> bool:
            if name in hub.redirects:
                self.send_response(302)
                self.send_header("Location", self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
            return name in hub.redirects

        def do_HEAD(self) -> None:
            if found := self._find(self._note()):
                _, name, content = found
                if self._redirect(name):
                    return
                self._head(name, content, 200, len(content))
                self.end_headers()

        def do_GET(self) -> None:
            path = self._note()
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self._info(match[1], match[2] or "main")
                return
            found = self._find(path)
            if found is None:
                return
            repo, name, content = found
            if self._redirect(name):
                return
            if name in hub.endless:
                self._endless(name, content)
                return
            first = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])  # type: ignore[index]
            body = content[first:]
            self._head(name, content, 206 if first else 200, len(body))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            cut = hub.fault(repo, name, first, content) if hub.fault else None
            if cut is None:
                self.wfile.write(body)
                return
            self.wfile.write(cut)
            self.wfile.flush()
            if len(cut) < len(body):
                hub.stall.wait(60)
                self.close_connection = True

        def _endless(self, name: str, content: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{etag(name, content)}"')
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):
                while not hub.stall.is_set():
                    self.wfile.write(bytes(1 << 16))

        def _info(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                self._fail(404, "RepoNotFound")
            elif repo in hub.gated:
                self._fail(403, "GatedRepo")
            elif revision not in ("main", COMMIT):
                self._fail(404, "RevisionNotFound")
            else:
                siblings = list(map(self._sibling, hub.repos[repo].items()))
                body = json.dumps({"id": repo, "sha": hub.sha, "siblings": siblings})
                if isinstance(hub.listing, bytes):
                    body = hub.listing.decode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

        def _sibling(self, item: tuple[str, bytes]) -> dict[str, object]:
            name, content = item
            facts: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if is_large(name):
                facts["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
            return facts | (hub.listing.get(name, {}) if isinstance(hub.listing, dict) else {})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # the end waits that long
    return server
