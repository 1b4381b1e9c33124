"""A server of the same user, found without being named: each one leaves a file that says what it serves, and how.

The files lie in the user's runtime folder (`XDG_RUNTIME_DIR`), else in the cache folder, and nobody else can read them.
They hold no key: who wants something of a server with keys has one. A file whose process has gone is removed. The
folder may be one that several machines or containers share: files of others are passed over, and stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kandinsky
from kandinsky.catalogue import to_dict
from kandinsky.engine.options import RunOptions
from kandinsky.files import beside, cache_folder, host, is_running, started_at
from kandinsky.media.recipe import versions
from kandinsky.model.card import Source
from kandinsky.weights.locate import places

log = logging.getLogger(__name__)
# what else decides the bits of a result, or where its weights lie
ENVIRONMENT = (
    *(
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "MKL_CBWR",
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_MAX_CPU_ISA",
    ),
    *("CUDA_VISIBLE_DEVICES", "KANDINSKY_WEIGHTS", "HF_HOME", "HF_HUB_CACHE"),
)
ANYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a server says of itself.

    Attributes:
        url: Its address.
        host: Sign of its machine or container, see ``files.host``.
        pid: Its process.
        started: When that started, in the system's own units.
        needs_key: Whether requests need a key.
        models: Digest of each model's card and folder, by its name.
        way: How its models run: see ``way_of``.
    """

    url: str
    host: str
    pid: int
    started: str
    needs_key: bool
    models: Mapping[str, str]
    way: Mapping[str, Any]

    def serves(self, source: Source, options: RunOptions) -> bool:
        """Whether it makes what this process would make of a request: of the same model, run the same way."""
        return self.models.get(source.name) == digest(source) and dict(self.way) == way_of(options)


def folder() -> Path | None:
    """Where the files lie; None if nothing is to be kept. Nothing is created."""
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "kandinsky"
    cache = cache_folder()
    return None if cache is None else cache / "servers"


def digest(source: Source) -> str:
    """What tells a model from another of its name: its card, the folder of its files, and their state."""
    facts = json.dumps([to_dict(source.card), str(source.root), _states(source)], sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()


def _states(source: Source) -> list[tuple[str, int, int]]:
    """Size and time of change of a model's files, where they are on this machine."""
    found = []
    for component in source.card.components.values():
        for part in component.parts:
            here = next((one for one in places(part, root=source.root) if not one.missing()), None)
            for path in () if here is None else here.files:
                for file in sorted(path.iterdir()) if path.is_dir() else (path,):
                    facts = file.stat()
                    found.append((str(file), facts.st_size, facts.st_mtime_ns))
    return found


def way_of(options: RunOptions, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """How a model runs, as plain values: options that no request chooses, versions, and the environment's say.

    Args:
        options: The options.
        environment: That of the processes that compute, where it differs from this one's.

    Returns:
        Values that are equal where results are.
    """
    chosen = {
        f.name: str(value)
        for f in dataclasses.fields(options)
        if not f.metadata.get("served") and (value := getattr(options, f.name)) != f.default
    }
    own = {**os.environ, **(environment or {})}
    told = {name: own[name] for name in ENVIRONMENT if name in own}
    return {"options": chosen, "environment": told, "versions": {"kandinsky": kandinsky.__version__, **versions()}}


@contextmanager
def announced(made: Announcement) -> Iterator[None]:
    """A server's file, for the duration of a `with` block. A folder that cannot be written is no failure."""
    place = folder()
    path = None if place is None else place / f"server-{made.host}-{made.pid}.json"
    try:
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = beside(path)
            try:
                handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(dataclasses.asdict(made), file)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        log.info("this server is not announced to the command line: `%s`: %s", path, error)
        path = None
    try:
        yield
    finally:
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def announcement(
    url: str, sources: Mapping[str, Source], options: RunOptions, environment: Mapping[str, str], *, needs_key: bool
) -> Announcement:
    """What the server in this process says of itself; arguments as for ``Announcement`` and ``way_of``."""
    pid = os.getpid()
    models = {name: digest(source) for name, source in sources.items()}
    return Announcement(url, host(), pid, started_at(pid), needs_key, models, way_of(options, environment))


def running() -> Iterator[Announcement]:
    """The servers of this user that run on this machine."""
    place = folder()
    if place is None or not hasattr(os, "getuid"):
        return
    try:
        paths = sorted(place.glob(f"server-{host()}-*.json"))
    except OSError:
        return
    for path in paths:
        try:
            with path.open(encoding="utf-8") as file:
                facts = os.fstat(file.fileno())
                if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
                    continue  # not what a server of ours has written
                values = json.load(file)
            found = Announcement(**values)
            if found.host != host():
                continue
            is_alive = is_running(int(found.pid), str(found.started))
        except (OSError, ValueError, TypeError) as error:
            log.info("`%s` says nothing of a server: %s", path, error)
            continue
        if is_alive:
            yield found
        else:
            with suppress(OSError):
                path.unlink()


def find(source: Source, options: RunOptions) -> Announcement | None:
    """A server that makes of requests for a model what this process would make of them; None if there is none."""
    return next((one for one in running() if one.serves(source, options)), None)
