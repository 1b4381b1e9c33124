"""Stand-ins for what the pack's functions talk to: ComfyUI, and a server that follows the documented calls."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Interrupted(Exception):  # noqa: N818 - ComfyUI's is none either
    """What ComfyUI raises for a node that was stopped."""


class Host:
    """ComfyUI as the functions see it; ``told`` are its progress calls."""

    def __init__(self, folders: Mapping[str, Path] | None = None, *, stop_after: int | None = None) -> None:
        self._folders, self.stop_after = dict(folders or {}), stop_after
        self.told: list[tuple[int, int, Any]] = []
        self.lent: list[tuple[int, Any]] = []
        self.room: list[int] = []
        self.ended: list[int] = []

    def folders(self, kind: str) -> list[Path]:
        return [self._folders[kind]] if kind in self._folders else []

    def device(self) -> str:
        return "cpu"

    def progress(self, done: int, total: int, preview: Any) -> None:
        self.told.append((done, total, preview))

    def is_interrupted(self) -> bool:
        return self.stop_after is not None and len(self.told) >= self.stop_after

    def stop(self) -> None:
        if self.is_interrupted():
            raise Interrupted

    def make_room(self, size: int) -> None:
        self.room.append(size)

    def lend(self, size: int, release: Any) -> Any:
        self.lent.append((size, release))
        return SimpleNamespace(end=lambda: self.ended.append(size))


class Server:
    """A server of videos and images that are made beforehand.

    Attributes:
        address: Where it answers.
        calls: Method, path, headers and parsed form or JSON of each call.
        video: The file it makes.
        image: The image it makes.
        polls: How often a job is still running when it is asked for.
        refuse: Status and message of every call, to refuse it.
    """

    def __init__(self, video: bytes = b"", image: bytes = b"", *, polls: int = 2) -> None:
        self.video, self.image, self.polls = video, image, polls
        self.address = ""
        self.calls: list[tuple[str, str, Mapping[str, str], dict[str, Any]]] = []
        self.refuse: tuple[int, str] | None = None
        self.fails: str | None = None
        self._asked: dict[str, int] = {}

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes, str]:
        self.calls.append((method, path, headers, parsed(headers.get("content-type", ""), body)))
        if self.refuse is not None:
            status, message = self.refuse
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            return status, json.dumps({"error": error}).encode(), "application/json"
        if path == "/v1/videos" and method == "POST":
            return 200, json.dumps(self.job("video_1")).encode(), "application/json"
        if path.startswith("/v1/images/"):
            data = [{"b64_json": base64.b64encode(self.image).decode()}]
            return 200, json.dumps({"created": 1, "data": data}).encode(), "application/json"
        found = re.fullmatch(r"/v1/videos/(\w+)(/content)?", path)
        assert found is not None, path
        if method == "DELETE":
            gone = {"id": found[1], "object": "video.deleted", "deleted": True}
            return 200, json.dumps(gone).encode(), "application/json"
        if found[2]:
            return 200, self.video, "video/mp4"
        return 200, json.dumps(self.job(found[1])).encode(), "application/json"

    def job(self, name: str) -> dict[str, Any]:
        asked = self._asked[name] = self._asked.get(name, 0) + 1
        status = "in_progress" if asked <= self.polls else "failed" if self.fails else "completed"
        error = {"code": "failed", "message": self.fails} if status == "failed" else None
        progress = min(100, 100 * asked // (self.polls + 1))
        return {"id": name, "object": "video", "status": status, "progress": progress, "error": error}


def parsed(kind: str, body: bytes) -> dict[str, Any]:
    """A body of JSON, or a form of several parts; files as bytes."""
    if kind.startswith("application/json"):
        return dict(json.loads(body or b"{}"))
    if not kind.startswith("multipart/form-data"):
        return {}
    whole = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body, policy=HTTP)
    found: dict[str, Any] = {}
    for part in whole.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        data = part.get_payload(decode=True)
        found[name] = data if part.get_filename() else data.decode("utf-8")
    return found


@contextmanager
def serving(server: Server, port: int = 0) -> Iterator[Server]:
    """Run a server on this machine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def run(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, data, kind = server.answer(self.command, self.path, headers, body)
            self.send_response(status)
            for name, value in (("content-type", kind), ("content-length", str(len(data)))):
                self.send_header(name, value)
            self.send_header("openai-poll-after-ms", "20")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = run

        def log_message(self, *given: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.daemon_threads = True
    server.address = f"http://127.0.0.1:{made.server_address[1]}"
    running = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    running.start()
    try:
        yield server
    finally:
        made.shutdown()
        made.server_close()
        running.join()
