"""Who may use the server: keys, what each of them may do, and the cookie of the web page.

A file has one key a line, or is TOML with a table per key:

    [alice]
    key = "…"          # or sha256 = "…", its digest
    running = 2        # most jobs that wait or run at once
    per_minute = 30    # most requests for jobs
    storage = "5GB"    # most bytes of finished jobs
    priority = 5       # highest priority of its jobs
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.model.checks import check_names
from kandinsky.runtime.budget import parse_bytes

VARIABLE = "KANDINSKY_API_KEY"
COOKIE, COOKIE_S = "kandinsky_session", 30 * 86400
SHORTEST = 16
PRIORITY = 10
_FIELDS = ("key", "sha256", "running", "per_minute", "storage", "priority")


@dataclass(frozen=True, slots=True)
class Owner:
    """Somebody who may use the server.

    Attributes:
        name: Whose jobs these are in the store; empty where there are no keys.
        running: Most jobs that wait or run at once; None = no limit of its own.
        per_minute: Most requests for jobs a minute; None = no limit.
        storage: Most bytes of files; None = no limit.
        priority: Highest priority of its jobs.
    """

    name: str = ""
    running: int | None = None
    per_minute: float | None = None
    storage: int | None = None
    priority: int = PRIORITY


class Keys:
    """The keys of a server, as digests.

    Args:
        owners: The owner of each digest.
        secret: Signs cookies.
    """

    def __init__(self, owners: Mapping[bytes, Owner], *, secret: bytes = b"") -> None:
        self._owners = dict(owners)
        self._secret = secret or secrets.token_bytes(32)

    def __bool__(self) -> bool:
        return bool(self._owners)

    @classmethod
    def read(cls, file: str | None, *, folder: Path | None = None) -> Keys:
        """Read the keys of a file and of the environment.

        Args:
            file: The file; None for none.
            folder: Where the secret of the cookies is kept, so that they outlive the server.

        Returns:
            The keys.

        Raises:
            RequestError: The file cannot be read, or holds something else.
        """
        owners: dict[bytes, Owner] = {}
        if given := os.environ.get(VARIABLE):
            owners[digest(_checked(given, f"the variable {VARIABLE}"))] = Owner("default")
        if file is not None:
            path = local_path(file, "key file")
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise RequestError(f"key file `{path}` cannot be read: {error}") from error
            owners |= _of_file(text, path)
        return cls(owners, secret=b"" if folder is None else _secret(folder))

    def owner_of(self, key: str | None) -> Owner | None:
        """Whose key it is; every known key is compared, each in constant time."""
        given, found = digest(key or ""), None
        for known, owner in self._owners.items():
            if hmac.compare_digest(known, given):
                found = owner
        return found if key else None

    def cookie(self, owner: Owner, *, now: float | None = None) -> str:
        """A cookie that stands for an owner until it expires, or the owner has another key."""
        body = f"{owner.name.encode().hex()}.{int((now or time.time()) + COOKIE_S)}"
        known = next((digest for digest, one in self._owners.items() if one == owner), b"")
        return f"{body}.{self._signature(body, known)}"

    def owner_of_cookie(self, cookie: str) -> Owner | None:
        """Whose cookie it is; None if it is not ours, has expired, or its key is not known any more."""
        body, _, signature = cookie.rpartition(".")
        name, _, until = body.partition(".")
        if not (until.isascii() and until.isdigit()) or int(until) < time.time():
            return None
        given = signature.encode(errors="surrogateescape")
        for known, owner in self._owners.items():
            is_named = owner.name.encode().hex() == name
            if is_named and hmac.compare_digest(self._signature(body, known).encode(), given):
                return owner
        return None

    def _signature(self, body: str, known: bytes) -> str:
        """Of a cookie, bound to the digest of the key."""
        return hmac.new(self._secret, known + body.encode(errors="surrogateescape"), "sha256").hexdigest()


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _of_file(text: str, path: Path) -> dict[bytes, Owner]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not any("=" in line or line.startswith("[") for line in lines):
        return {digest(_checked(key, f"`{path}`")): Owner(_name(key)) for key in lines}
    try:
        table = tomllib.loads(text)
    except ValueError as error:
        raise RequestError(f"key file `{path}` is not TOML: {error}") from error
    found: dict[bytes, Owner] = {}
    for name, values in table.items():
        where = f"`{path}`, table [{name}]"
        if not isinstance(values, dict):
            raise RequestError(f"`{path}`: `{name}` is not a table: write [{name}], and key = below it")
        check_names(values, _FIELDS, f"entry of {where}")
        given = values.get("sha256")
        known = digest(_checked(values.get("key"), where)) if given is None else _digest(given, where)
        found[known] = Owner(
            name,
            running=_number(values, "running", where),
            per_minute=_number(values, "per_minute", where),
            storage=parse_bytes(values["storage"], "storage") if "storage" in values else None,
            priority=_number(values, "priority", where, least=-PRIORITY) if "priority" in values else 0,  # type: ignore[arg-type]
        )
    return found


def _digest(value: Any, where: str) -> bytes:
    try:
        known = bytes.fromhex(value)
    except (TypeError, ValueError):
        known = b""
    if len(known) != 32:
        raise RequestError(f"{where}: `sha256` must be 64 hexadecimal digits")
    return known


def _number(values: Mapping[str, Any], name: str, where: str, *, least: int = 1) -> int | None:
    value = values.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise RequestError(f"{where}: `{name}` must be a whole number from {least} on")
    return value


def _checked(key: Any, where: str) -> str:
    if not isinstance(key, str) or len(key) < SHORTEST:
        raise RequestError(f"{where}: a key must have {SHORTEST} characters or more")
    return key


def _name(key: str) -> str:
    """A name for the owner of a key that has none, from which the key cannot be found."""
    return f"key-{hashlib.sha256(f'owner {key}'.encode()).hexdigest()[:12]}"


def _secret(folder: Path) -> bytes:
    path = folder / "cookie-secret"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        kept = path.read_bytes()
        return kept if len(kept) == 32 else secrets.token_bytes(32)
    with os.fdopen(handle, "wb") as file:
        made = secrets.token_bytes(32)
        file.write(made)
    return made


class Buckets:
    """How often each owner asked lately: a bucket that holds a minute's worth of requests and fills evenly."""

    def __init__(self) -> None:
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, owner: Owner) -> float:
        """Take one request out of an owner's bucket.

        Returns:
            0, or the seconds until there is one in it.
        """
        if owner.per_minute is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            level, then = self._levels.get(owner.name, (owner.per_minute, now))
            level = min(owner.per_minute, level + (now - then) * owner.per_minute / 60)
            if level < 1:
                self._levels[owner.name] = (level, now)
                return (1 - level) * 60 / owner.per_minute
            self._levels[owner.name] = (level - 1, now)
            return 0.0
