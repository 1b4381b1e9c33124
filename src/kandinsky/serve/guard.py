"""What every request passes first: its host and origin, the size of its body, headers of its answer. Plain ASGI."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandinsky.serve import envelope
from kandinsky.serve.settings import ServeSettings

log = logging.getLogger("kandinsky.serve.access")
SAFE = ("GET", "HEAD", "OPTIONS")
LONGEST_REASON = 120  # of a closing: the protocol has room for 123 bytes
SMALL = {"/v1/session": 4096}  # paths whose bodies are read before anybody is known, and the most bytes of them
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": CSP,
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """The outermost layer of the server.

    Args:
        app: What is inside.
        settings: Hosts, origins, the largest body.
        seen: Called with route, method, status and seconds of each request.
    """

    def __init__(
        self, app: ASGIApp, *, settings: ServeSettings, seen: Callable[[Scope, int, float], None] = lambda *_: None
    ) -> None:
        self.app = app
        self.hosts = settings.allowed_hosts
        self.origins = settings.allowed_origins
        self.largest = settings.upload_bytes
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self.refusal(headers, scope.get("method", "GET"))
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send, refused)
            return
        begun, status, number = time.monotonic(), 500, secrets.token_hex(8)
        origin = headers.get("origin", "")
        is_known = origin in self.origins

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["x-request-id"] = number
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
                if is_known:
                    found["access-control-allow-origin"] = origin
                    found["access-control-expose-headers"] = "*, x-request-id, openai-poll-after-ms, retry-after"
                    found["cross-origin-resource-policy"] = "cross-origin"
                    found.add_vary_header("Origin")
            await send(message)

        async def plain(status: int, message: str, code: str, **more: str) -> None:
            told = json.dumps(envelope.body(status, message, code)).encode()
            given = {
                "content-type": "application/json",
                "content-length": str(len(told)),
                "connection": "close",
                **more,
            }
            raw = [(name.encode(), value.encode()) for name, value in given.items()]
            await answer({"type": "http.response.start", "status": status, "headers": raw})
            await answer({"type": "http.response.body", "body": told})

        largest = min(self.largest, SMALL.get(scope["path"].rstrip("/"), self.largest))
        taken, too_large = 0, f"the request is larger than {largest / 1e6:g} MB, which is the most here"

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > largest:  # whatever the header said, or left out
                raise envelope.ApiError(413, too_large, code="too_large")
            return message

        try:
            if refused is not None:
                await plain(*refused)
            elif scope["method"] == "OPTIONS" and is_known and "access-control-request-method" in headers:
                allow = {
                    "access-control-allow-methods": "GET, POST, DELETE",
                    "access-control-allow-headers": headers.get("access-control-request-headers", ""),
                    "access-control-max-age": "600",
                }
                raw = [(name.encode(), value.encode()) for name, value in allow.items()]
                await answer({"type": "http.response.start", "status": 204, "headers": raw})
                await answer({"type": "http.response.body", "body": b""})
            elif (length := headers.get("content-length", "0")).isdigit() and int(length) > largest:
                await plain(413, too_large, "too_large")
            else:
                await self.app(scope, counted, answer)
        finally:
            taken_s = time.monotonic() - begun
            self.seen(scope, status, taken_s)
            # neither the query, which may hold anything, nor any header
            log.info("%s %s %d %.1f ms %s", scope["method"], scope["path"], status, taken_s * 1000, number)

    async def _socket(self, scope: Scope, receive: Receive, send: Send, refused: tuple[int, str, str] | None) -> None:
        """Pass a WebSocket on; one that is not opened is refused with an answer of HTTP, which says why."""
        is_open = False

        async def deny(status: int, message: str, code: str) -> None:
            told = json.dumps(envelope.body(status, message, code)).encode()
            if "websocket.http.response" not in scope.get("extensions", {}):  # then its closing says so
                await send({"type": "websocket.accept"})
                await send({"type": "websocket.close", "code": 4000 + status, "reason": message[:LONGEST_REASON]})
                return
            given = {"content-type": "application/json", "content-length": str(len(told))}
            raw = [(name.encode(), value.encode()) for name, value in given.items()]
            await send({"type": "websocket.http.response.start", "status": status, "headers": raw})
            await send({"type": "websocket.http.response.body", "body": told})

        async def passed(message: Message) -> None:
            nonlocal is_open
            is_open = is_open or message["type"] in ("websocket.accept", "websocket.http.response.start")
            if message["type"] == "websocket.close" and not is_open:
                await deny(404, "there is no WebSocket at this address: use `/v1/live`", "not_found")
            else:
                await send(message)

        if refused is not None:
            await receive()
            await deny(*refused)
        else:
            await self.app(scope, receive, passed)

    def refusal(self, headers: Headers, method: str) -> tuple[int, str, str] | None:
        """Why a request is refused before anything looks at it; None if it is not.

        A page elsewhere can have a browser send requests here, even to this machine alone (by a name that leads to
        127.0.0.1); its name is then in `Host` or `Origin`.
        """
        host = _name(headers.get("host", ""))
        if self.hosts and host not in self.hosts:
            return 403, "this host name is not served here: use 127.0.0.1, or allow the name with `hosts`", "bad_host"
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins:
            own = urlsplit(origin).netloc.lower() if origin != "null" else ""
            if own != headers.get("host", "").lower():
                return 403, "pages of other origins may not use this server: allow them with `origins`", "bad_origin"
        elif origin is None and method not in SAFE and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return 403, "pages of other origins may not use this server: allow them with `origins`", "bad_origin"
        return None


def _name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
