"""The line between the server and the worker of a live session: a Unix socket, and messages on it. No torch.

A message is a JSON object and bytes, after the lengths of both. The worker calls; the first message names its job and
shows the secret that the job's order carries, since others may know where the socket is.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kandinsky.errors import BackendError

KIND = "live"  # of a job that is a session, and the door it came through
HEAD = struct.Struct("!II")
LARGEST_TEXT, LARGEST_BYTES = 1 << 20, 1 << 28
CALL_S = 10.0  # for a server to answer
KEPT_S = 30.0  # of the newest frames are kept for saving

Message = tuple[dict[str, Any], bytes]


def packed(told: Mapping[str, Any], data: bytes = b"") -> bytes:
    """A message as it goes through the line."""
    text = json.dumps(told).encode()
    return HEAD.pack(len(text), len(data)) + text + data


def _lengths(head: bytes) -> tuple[int, int]:
    text, data = HEAD.unpack(head)
    if text > LARGEST_TEXT or data > LARGEST_BYTES:
        raise ConnectionError("a message is too long")
    return text, data


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end of the line."""
    try:
        text, data = _lengths(await reader.readexactly(HEAD.size))
        return json.loads(await reader.readexactly(text)), await reader.readexactly(data)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Line:
    """The worker's end; messages may be sent from several threads.

    Args:
        address: Path of the socket.

    Raises:
        BackendError: Nobody answers there.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._sending = threading.Lock()
        self._socket.settimeout(CALL_S)
        try:
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise BackendError(
                "the server of this live session cannot be reached: it has ended, or this worker is on another machine"
            ) from error
        self._socket.settimeout(None)
        self._file = self._socket.makefile("rb")

    def send(self, told: Mapping[str, Any], data: bytes = b"") -> bool:
        """Send a message; False if nobody is there any more."""
        with self._sending:
            try:
                self._socket.sendall(packed(told, data))
            except OSError:
                return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end of the line."""
        try:
            text, data = _lengths(self._exactly(HEAD.size))
            told: dict[str, Any] = json.loads(self._exactly(text))
            self._exactly(data)
        except (OSError, ValueError):  # also once the file is closed
            return None
        return told

    def _exactly(self, count: int) -> bytes:
        found = self._file.read(count)
        if len(found) < count:
            raise ConnectionError("the line has ended")
        return found

    def close(self) -> None:
        """End the line; who waits in ``receive`` is told so."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._file.close()  # else the socket stays open
        self._socket.close()
