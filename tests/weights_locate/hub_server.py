"""A hub on 127.0.0.1: the few routes a download uses, with range requests, ETags, and faults on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories, what was asked, and how to misbehave.

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
            self.send_header("ETag", f'"{etag(name, content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(length))

        def do_HEAD(self) -> None:
            if found := self._find(self._note()):
                _, name, content = found
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

        def _info(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                self._fail(404, "RepoNotFound")
            elif repo in hub.gated:
                self._fail(403, "GatedRepo")
            elif revision not in ("main", COMMIT):
                self._fail(404, "RevisionNotFound")
            else:
                body = json.dumps(
                    {"id": repo, "sha": COMMIT, "siblings": list(map(self._sibling, hub.repos[repo].items()))}
                )
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
            return facts

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
