"""Failures of the machine, not of a request, on one line with what to try: memory, disk, streams."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kandinsky.errors import KandinskyError, OutOfMemory
from kandinsky.files import not_writable

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

# Messages of allocators, mmap and the dynamic loader when memory is short or capped.
_NO_MEMORY = re.compile(
    r"cannot allocate memory|can't allocate memory|unable to mmap|failed to map segment|bad_alloc|out of memory"
    r"|DefaultCPUAllocator|not enough memory|can't start new thread",
    re.IGNORECASE,
)
LEAST = 800_000_000  # bytes: torch and the smallest model
_NEAR = 0.8  # of a limit
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def explained(error: BaseException) -> KandinskyError | None:
    """Turn an exception that no part of the library expected into a message.

    Args:
        error: The exception.

    Returns:
        A one-line error; the exception itself if it is one already and not about memory; None for a bug, whose
        traceback is wanted.
    """
    if not isinstance(error, OutOfMemory) and any(map(_is_about_memory, _chain(error))):
        return OutOfMemory(f"memory ran out{_limit()}", hint=_advice())
    if isinstance(error, KandinskyError):
        numbers = {one.errno for one in _chain(error) if isinstance(one, OSError)}
        if errno.EFBIG in numbers and error.hint is None:
            error.hint = "a limit on the size of files is set (`ulimit -f`): raise it, or choose a smaller clip"
        if numbers & {errno.EFBIG, errno.ENOSPC, errno.EDQUOT}:
            error.exit_code = KandinskyError.exit_code  # the request was right
        return error
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        if error.errno in _NO_ROOM:
            return explained(not_writable(_name(error) or "a file", error))
        name = f"`{_name(error)}`: " if error.filename else ""
        return KandinskyError(f"{name}{error.strerror or error}")
    if _is_near_cap():  # missing memory causes obscure errors
        return OutOfMemory(f"memory ran out{_limit()}", hint=_advice())
    return None


def check_limit() -> None:
    """Refuse to load torch if it cannot be loaded: some of its threads end the process when memory is refused.

    Raises:
        OutOfMemory: `ulimit -v` leaves too little.
    """
    cap = _cap()
    if cap is not None and cap < LEAST:
        raise OutOfMemory(f"there is too little memory{_limit()}", hint=_advice())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes: a failed import is often reported as a missing package."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and _NO_MEMORY.search(str(error)) is not None


def _name(error: OSError) -> str | None:
    return None if error.filename is None else str(error.filename)


def _cap() -> int | None:
    """The limit that `ulimit -v` set on this process, in bytes."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _is_near_cap() -> bool:
    """Whether this process has used most of the address space it may use."""
    cap = _cap()
    if cap is None:
        return False
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return False
    return pages * os.sysconf("SC_PAGE_SIZE") > _NEAR * cap


def _limit() -> str:
    cap = _cap()
    return "" if cap is None else f": this process is limited to {cap / 1e9:.1f} GB of address space (`ulimit -v`)"


def _advice() -> str:
    if _cap() is not None:
        return "raise the limit: torch alone needs about 1 GB, with CUDA several"
    return "try `--offload block`, a smaller `--size` or fewer `--seconds`; `kandinsky plan` estimates the need"
