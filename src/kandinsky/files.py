"""Where files may be written, and how: completely or not at all, and never outside the named folder.

Everything the library writes goes through ``replacing``: a temporary file beside the target, renamed when it is
complete. Its name says which process writes it, so the leftovers of killed processes are recognised and removed. Names
that come from elsewhere (a hub, a recipe, a prompt file, a card) go through ``inside``.
"""

from __future__ import annotations

import errno
import filecmp
import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kandinsky.errors import RequestError
from kandinsky.printing import escaped

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EISDIR: "it is a folder",
    errno.ENOTEMPTY: "it is a folder that is not empty",
    errno.EEXIST: "it exists already",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.ELOOP: "its symbolic links form a loop",
    errno.EIO: "the disk reports an error",
}
# Only writes fail with these, whichever file the system names.
_WRITING_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_NAME_MAX = 255  # bytes, if the file system does not say
_PATH_MAX = 4096
_LONGEST_SUFFIX = 16
_PART = re.compile(r"\.part-(?P<pid>\d{1,10})-(?P<started>\d{1,20})-(?P<host>[0-9a-f]{8})-\d+(\.[^.]*)?$")
_numbers = itertools.count()
OFF = ("off", "0", "none", "")  # values of KANDINSKY_CACHE


@contextmanager
def replacing(target: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """Write a file (or a folder) beside its target, then move it into the target's place.

    The temporary name is `.NAME.part-…` with the target's suffix; missing parent folders are created. When the block
    ends, the file is flushed to disk and renamed; when it fails, even by an interrupt, the file is removed and an
    existing target stays as it was. A target that is a symbolic link stays one: what it points to is replaced.

    Args:
        target: The file to write, or the folder, which must be absent or empty.
        folder: Whether to write a folder.

    Yields:
        The temporary path. A folder already exists, a file does not.

    Raises:
        RequestError: Nothing can be written there: the disk is full, access is denied, the name is too long, or the
            target is a folder or a device. Other errors of the block pass through.
    """
    path = real_path(target)
    if path.is_dir() and not folder:
        raise not_writable(target, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    with _part(target, path, folder=folder) as part:
        yield part
        with _explained(target):
            flush(part)
            part.replace(path)
            flush(path.parent, shallow=True)


def replaced(target: str | Path, write: Callable[[Path], None]) -> bool:
    """Write a file as ``replacing`` does; one that holds the same already is left alone.

    Args:
        target: The file to write.
        write: Writes it, under the temporary name that it is given.

    Returns:
        Whether the target is another now.

    Raises:
        RequestError: Nothing can be written there, for the reasons ``replacing`` lists.
    """
    try:
        with replacing(target) as part:
            write(part)
            if Path(target).is_file() and filecmp.cmp(part, target, shallow=False):
                raise _SameError
    except _SameError:
        return False
    return True


class _SameError(Exception):
    """The file that is there holds the same."""


@contextmanager
def replacing_many(folder: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """Write several files into a folder that may hold others, and move them into place when all are complete.

    Args:
        folder: Where they belong.
        names: Names of all files that the block writes.

    Yields:
        A temporary folder, in which the block writes files of these names. It is always removed.

    Raises:
        RequestError: Nothing can be written there, for the reasons ``replacing`` lists.
    """
    path, first = real_path(folder), Path(folder, names[0])
    with _part(first, path / names[0], folder=True) as part:
        yield part
        targets = [real_path(path / name) for name in names]
        with _explained(first):
            flush(part)
            for name, target in zip(names, targets, strict=True):
                (part / name).replace(target)
            flush(path, shallow=True)


def output_path(target: str | Path) -> Path:
    """The path of something to write, from what was typed; a ``Path`` forgets the slash that a folder ends in.

    Args:
        target: The file or folder; a folder may end in a slash.

    Returns:
        The path.

    Raises:
        RequestError: It ends in a slash, and its name like that of a file.
    """
    path = Path(target)
    if path.suffix and str(target).endswith(("/", os.sep)):
        raise RequestError(
            f"output `{escaped(str(target))}` ends in a slash as a folder does, and in `{path.suffix}` as a file does: "
            "leave one of them out"
        )
    return path


def check_writable(target: str | Path) -> Path:
    """Refuse a file or a new folder that could not be written, before the work that produces it.

    Actually creates and removes a nameless file in the folder, or in its nearest existing parent: permission bits alone
    are not reliable on every file system.

    Args:
        target: The file or folder to be written.

    Returns:
        The target.

    Raises:
        RequestError: The name is too long or cannot be encoded, a device or a file is in the way, or files cannot be
            created there.
    """
    path = real_path(target)
    folder = path if path.is_dir() else next(p for p in path.parents if p.exists() or p.parent == p)
    with _explained(target):
        longest = _name_max(folder)
        if any(len(os.fsencode(part)) > longest for part in path.parts[len(folder.parts) :]):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    return Path(target)


def real_path(target: str | Path) -> Path:
    """Resolve symbolic links and `..` to an absolute path, no part of which needs to exist.

    Args:
        target: The path, relative or absolute.

    Returns:
        The absolute path.

    Raises:
        RequestError: The text cannot be a path, the links form a loop, the name is too long, or a device, a pipe or a
            socket has this name.
    """
    try:
        path = Path(os.path.realpath(target))
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return path
    except OSError as error:
        raise not_writable(target, error) from error
    except ValueError as error:
        raise RequestError("a file name holds a NUL character or a lone surrogate: use another name") from error
    if stat.S_ISLNK(mode):  # whatever is still unresolved is a loop
        raise not_writable(target, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RequestError(f"`{target}` cannot be written: it is a device or a pipe, name a file")
    return path


def listed(folder: str | Path, ending: str) -> list[Path]:
    """The files of a folder with an ending, sorted; no hidden ones, such as parts that somebody is writing."""
    return sorted(path for path in Path(folder).glob(f"*{ending}") if not path.name.startswith("."))


def inside(root: str | Path, relative: str) -> Path:
    """Build a path below a folder from a name that came from elsewhere.

    Args:
        root: The folder.
        relative: Names joined by `/`; one `/` at the end is allowed and says that a folder is meant.

    Returns:
        ``root / relative``.

    Raises:
        RequestError: The name is not text, is empty or absolute, has an empty part, `.` or `..`, a backslash, a drive
            letter or a NUL, or leads out of the folder through a symbolic link.
    """
    parts = relative_parts(relative)
    path = Path(root, *parts)
    try:
        leads_out = not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError) as error:  # also covers what cannot be encoded
        raise RequestError(f"`{escaped(relative)}` cannot be used as a file name: {escaped(error)}") from error
    if leads_out:
        raise RequestError(f"`{escaped(relative)}` leads out of `{root}` through a symbolic link")
    return path


def relative_parts(relative: str) -> tuple[str, ...]:
    """Split a path from elsewhere into names, by the rules of ``inside``; symbolic links are not examined.

    For paths that are only read, where links are the user's own, as in the Hugging Face cache.

    Args:
        relative: Names joined by `/`.

    Returns:
        The names.

    Raises:
        RequestError: The name is not a plain relative path, or one of its parts is longer than a file name can be.
    """
    parts = relative.removesuffix("/").split("/") if isinstance(relative, str) else []
    if (
        not parts
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in relative
        or "\0" in relative
        or re.match(r"[A-Za-z]:", relative)
    ):
        raise RequestError(
            f"`{escaped(relative)}` is not a plain relative path: use names joined by `/`, without `..`, `.`, "
            "backslashes or empty parts"
        )
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError as error:
        raise RequestError(f"`{escaped(relative)}` cannot be used as a file name: {escaped(error)}") from error
    if longest > _NAME_MAX:
        raise RequestError(f"a file name of {longest} bytes is too long: {_NAME_MAX} are allowed")
    return tuple(parts)


def local_path(given: str | Path, what: str) -> Path:
    """A path on this machine that a person gave, with `~` expanded; it need not exist.

    Args:
        given: What was given.
        what: What to call it in errors, such as `model`.

    Returns:
        The path.

    Raises:
        RequestError: It is not text, is empty, holds a NUL or a lone surrogate, or is longer than a file name can be.
    """
    if not isinstance(given, str | Path) or not str(given).strip():
        raise RequestError(f"{what} `{escaped(given)}` is not a name: give text that is not empty")
    name = str(given)
    try:
        encoded = [len(os.fsencode(part)) for part in Path(name).parts]
    except UnicodeEncodeError as error:
        raise RequestError(f"{what} cannot be a name: it holds a lone surrogate") from error
    if "\0" in name:
        raise RequestError(f"{what} cannot be a name: it holds a NUL character")
    if max(encoded, default=0) > _NAME_MAX or sum(encoded) + len(encoded) > _PATH_MAX:
        raise RequestError(
            f"{what} `{escaped(name[:40])}…` is too long: a name has at most {_NAME_MAX} bytes, a path {_PATH_MAX}"
        )
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{what} `{escaped(name)}` cannot be found: there is no such user") from error


def sweep(folder: Path) -> list[Path]:
    """Remove what processes of this machine and user left half-written in a folder when they were killed.

    Args:
        folder: The folder; folders below it are not searched.

    Returns:
        The paths that were removed.
    """
    removed = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _PART.search(entry.name) if entry.name.startswith(".") else None
            if found is None or found["host"] != host():
                continue
            with suppress(OSError):
                is_mine = not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()
                if is_mine and not is_running(int(found["pid"]), found["started"]):
                    remove(Path(entry.path))
                    removed.append(Path(entry.path))
    return removed


def is_left_over(path: Path) -> bool:
    """Whether a temporary name as ``beside`` makes it belongs to a process of this machine that has ended."""
    found = _PART.search(path.name)
    if found is None or found["host"] != host():
        return False
    return not is_running(int(found["pid"]), found["started"])


def remove(path: Path) -> None:
    """Remove a file or a folder with its contents, if it exists; whatever cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def not_writable(path: str | Path, error: OSError) -> RequestError:
    """The error for a file that could not be written."""
    reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
    hint = "free some space, or choose another place" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return RequestError(f"`{path}` cannot be written: {reason}", hint=hint)


@contextmanager
def _part(target: str | Path, path: Path, *, folder: bool) -> Iterator[Path]:
    """A temporary name beside ``path``, gone again when the block ends."""
    with _explained(target):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        part = beside(path)
        if folder:
            part.mkdir()
    try:
        yield part
    except OSError as error:
        if _is_about(error, part):
            raise not_writable(target, error) from error
        raise
    finally:
        remove(part)


@contextmanager
def _explained(target: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_writable(target, error) from error


def _is_about(error: OSError, part: Path) -> bool:
    """Whether an error comes from writing this file or folder, not from something else in the block."""
    name = error.filename
    text = os.fsdecode(name).removeprefix("file:") if isinstance(name, str | bytes) else ""
    return error.errno in _WRITING_FAILS or text == str(part) or text.startswith(f"{part}{os.sep}")


def beside(path: Path) -> Path:
    """A name for a temporary file or folder that no other call uses, shortened to what the file system takes.

    ``sweep`` knows by it what the process that made it left when it was killed.
    """
    pid = os.getpid()
    ending = f".part-{pid}-{started_at(pid)}-{host()}-{next(_numbers)}"
    if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX:
        ending += path.suffix
    longest = _name_max(path.parent)
    room = max(0, longest - len(os.fsencode(ending)) - 1)
    name = os.fsencode(path.name)
    if len(name) > longest:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    # cut between characters, not within one
    return path.with_name(f".{name[:room].decode(errors='ignore' if len(name) > room else 'surrogateescape')}{ending}")


def _name_max(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return _NAME_MAX


def flush(path: Path, *, shallow: bool = False) -> None:
    """Have the system write a file to the disk, or a folder with its files.

    Raises:
        OSError: Writing failed. A file system that cannot flush folders is not an error.
    """
    if path.is_dir():
        for entry in () if shallow else path.iterdir():
            flush(entry)
        with suppress(OSError):
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@functools.cache
def host() -> str:
    """This machine, and the container if process ids have a namespace of their own."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode(errors="replace")).hexdigest()[:8]


def started_at(pid: int) -> str:
    """When a process started, in the system's own units; "0" if unknown.

    Process ids are reused; together with the start time they are not.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return "0"


def is_running(pid: int, started: str) -> bool:
    """Whether a process of this user runs that started at that time, see ``started_at``."""
    if os.name == "nt":  # there this signal would end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process: it did not write our file
        return False
    return "0" in (started, now := started_at(pid)) or started == now


def cache_folder() -> Path | None:
    """The folder of this library's caches; None if they are switched off. Nothing is created."""
    if (given := os.environ.get("KANDINSKY_CACHE")) is not None:
        return None if given.strip().lower() in OFF else Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kandinsky"
