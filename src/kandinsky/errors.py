"""The one hierarchy of errors this library raises on purpose.

KandinskyError
├── RequestError     the request cannot be fulfilled (also a ValueError; CLI exit 2, HTTP 400)
├── WeightsError     a weight file is missing or truncated, or names or shapes do not fit; names the tensor
├── BackendError     a device, kernel or optional package is not available
├── OutOfMemory      memory ran out; names the placement to try
├── NotFinite        numbers overflowed while sampling or decoding; names the step
└── Cancelled        a progress callback or another thread asked to stop

A message says what was given, what is allowed and what to do; values stand in backticks; one line, no period. ``hint``
is a second line, shown by the command line below the message. Both are escaped: text from a request or a file can
neither forge a line nor reach a terminal. Options are named as Python writes them, such as `steps=4`; the command line
turns them into its flags (``model/option.in_flags``), the server into fields of a body (``in_fields``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kandinsky.printing import escaped

LONGEST = 2000  # longest message, in characters


class KandinskyError(Exception):
    """Root of every deliberate error.

    Attributes:
        hint: A second line that says what to try; may be empty.
        exit_code: What the command line returns for this error.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(_line(message))
        self.hint = hint and _line(hint)
        if hint:
            self.add_note(f"hint: {self.hint}")  # Python shows it below the message


class RequestError(KandinskyError, ValueError):
    """The request itself is wrong; nothing heavy has been loaded."""

    exit_code = 2


class WeightsError(KandinskyError):
    """A weight file is missing, broken, or does not fit the network."""

    exit_code = 2


class BackendError(KandinskyError):
    """A device, kernel or optional package that was asked for is not available."""

    exit_code = 2


class OutOfMemory(KandinskyError):  # noqa: N818 - the design fixes this name
    """Memory ran out; the message names the placement to try next."""


class NotFinite(KandinskyError):  # noqa: N818 - as its sister above
    """Numbers overflowed; the message names the sampling step or the frame."""


class Cancelled(KandinskyError):  # noqa: N818 - not a failure
    """A progress callback returned False, or ``cancel`` was called."""

    exit_code = 130


@contextmanager
def needs(package: str, what: str) -> Iterator[None]:
    """Around the import of an optional package.

    Args:
        package: Its name.
        what: What cannot be done without it.

    Raises:
        BackendError: It is not installed.
    """
    with needs_extra(package, "full", what):
        yield


@contextmanager
def needs_extra(package: str, extra: str, what: str) -> Iterator[None]:
    """Around the import of an optional package.

    Args:
        package: Its name.
        extra: The extra of this library that brings it along.
        what: What cannot be done without it.

    Raises:
        BackendError: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise BackendError(f"{what} needs the package `{package}`: install `kandinsky-video[{extra}]`") from error


def _line(text: str) -> str:
    line = escaped(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}…{line[-LONGEST // 2 :]}"
