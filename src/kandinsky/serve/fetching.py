"""Fetching a file by URL, from hosts that the operator lists, and from nowhere else.

The name is looked up once and the address is checked (no private, loopback, link-local, multicast or reserved one),
then that very address is connected to, so that a name cannot point elsewhere a moment later. https on port 443 only, no
redirects, with limits on time and size.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from kandinsky.serve.envelope import ApiError

SECONDS, CHUNK = 10.0, 65536
Look = Callable[[str], list[str]]


def addresses(host: str) -> list[str]:
    """Addresses of a name."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an address is one of the open network's."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        for inner in (found.ipv4_mapped, found.sixtofour, found.teredo and found.teredo[1]):
            if inner is not None and not is_public(str(inner)):
                return False
    return found.is_global and not found.is_multicast and not found.is_reserved


class _Pinned(http.client.HTTPSConnection):
    """A connection to one address, whose certificate must be that of the name."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(host, 443, timeout=SECONDS, context=ssl.create_default_context())
        self._address = address
        self._tls = ssl.create_default_context()

    def connect(self) -> None:
        plain = socket.create_connection((self._address, 443), timeout=SECONDS)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


def fetch(url: str, *, hosts: Sequence[str], most: int, param: str, look: Look = addresses) -> bytes:
    """Fetch a file.

    Args:
        url: Its address.
        hosts: Names from which it may come.
        most: Largest size in bytes.
        param: The field it came in, for messages.
        look: Looks a name up.

    Returns:
        The bytes.

    Raises:
        ApiError: The address is not allowed, or the file cannot be fetched.
    """

    def refused(why: str) -> ApiError:
        return ApiError(400, f"`{param}`: {why}", code="url_not_allowed", param=param)

    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise refused("this is not a URL") from None
    if parts.scheme != "https" or port not in (None, 443) or parts.username is not None or parts.password is not None:
        raise refused("only https addresses on the usual port, without a user, are fetched")
    if host not in hosts:
        raise refused("this host is not one from which the server fetches: upload the file, or give a `data:` URL")
    try:
        found = look(host)
    except OSError:
        raise refused("the host cannot be found") from None
    if not found or not all(map(is_public, found)):
        raise refused("the host's address is not on the open network")
    end, path = time.monotonic() + SECONDS, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Pinned(host, found[0])
    try:
        connection.request("GET", path, headers={"Accept": "image/*, video/*", "User-Agent": "kandinsky"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise refused(f"the host answered {answer.status}; redirects are not followed")
        pieces, size = [], 0
        while piece := answer.read(CHUNK):
            size += len(piece)
            if size > most or time.monotonic() > end:
                raise refused("the file is too large, or comes too slowly")
            pieces.append(piece)
        return b"".join(pieces)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise refused(f"the file cannot be fetched ({type(error).__name__})") from None
    finally:
        connection.close()
