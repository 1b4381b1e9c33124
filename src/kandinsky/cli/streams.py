"""The three standard streams: data on stdout, messages on stderr, prompts from stdin, whatever state they are in.

They may be closed, full, or unable to encode every character, and what is printed may come from a file or a request:
all of that is handled here, so that a finished result is never followed by a traceback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.printing import escaped

STDIN = STDOUT = "-"
# Flags of arguments that are no fields of a request or of options.
_ELSEWHERE = {name: f"--{name.replace('_', '-')}" for name in ("against", "model", "output", "random_weights", "size")}
_ELSEWHERE["address"] = "--ray"
LONGEST_INPUT = 64 * 2**20  # bytes
# What JSON may hold as it is, but a terminal or an encoding may not; JSON itself escapes the rest.
_NOT_FOR_TERMINALS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Stdout:
    """The standard output, which continues when nothing more can be written: a finished result must still be saved.

    A reader that goes away, as `| head` does, raises at once, since the rest is no longer wanted.

    Attributes:
        error: Why it accepts no more.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        with self._noted():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noted():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _discard(self.stream)
            if isinstance(error, BrokenPipeError):
                raise
            self.error = self.error or error


@contextmanager
def usable() -> Iterator[Stdout]:
    """Standard streams that anything can be printed on: closed ones are replaced, unencodable characters escaped."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened must not take its descriptor
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    with ExitStack() as held:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                stream = held.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                setattr(sys, name, stream)
            elif hasattr(stream, "reconfigure"):
                held.callback(_restore, stream, stream.errors)
                stream.reconfigure(errors="backslashreplace")
        stdout = Stdout(sys.stdout)
        sys.stdout = cast(TextIO, stdout)
        try:
            yield stdout
        finally:
            sys.stdout, sys.stderr = before


def say(text: str, *, keep: str = "") -> None:
    """Print a message on stderr with control characters escaped; a stderr that cannot be written is not an error.

    Args:
        text: One line.
        keep: Characters that stay as they are.
    """
    try:
        print(escaped(text, keep=keep), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def in_flags(text: str) -> str:
    """A message in the words of the command line: options are named by their flags."""
    from kandinsky.engine.options import PlanOptions
    from kandinsky.model import option
    from kandinsky.model.values import Request
    from kandinsky.serve.settings import ServeSettings

    return option.in_flags(text, (Request, PlanOptions, ServeSettings), _ELSEWHERE)


def emit(text: object) -> None:
    """Print a line of data on stdout at once."""
    print(text, flush=True)


def emit_json(values: object, *, indent: int | None = None) -> None:
    """Print values on stdout as JSON, on one line unless indented, without characters that a terminal obeys."""
    text = json.dumps(values, ensure_ascii=False, indent=indent)
    emit(_NOT_FOR_TERMINALS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def read_input(what: str, *, longest: int = LONGEST_INPUT, errors: str = "strict") -> str:
    """Read all of stdin as text.

    Args:
        what: What is read, for messages.
        longest: Most bytes to read.
        errors: How to handle bytes that are not UTF-8, as for ``bytes.decode``.

    Returns:
        The text.

    Raises:
        RequestError: stdin is closed, longer than that, or not UTF-8.
    """
    if sys.stdin is None:
        raise RequestError(f"{what} cannot be read: standard input is closed")
    if sys.stdin.isatty():
        say(f"reading {what} from standard input; end with Ctrl-D")
    data = cast(BinaryIO, getattr(sys.stdin, "buffer", sys.stdin)).read(longest + 1)
    if len(data) > longest:
        raise RequestError(f"{what} cannot be read: standard input holds more than {longest // 2**20} MiB")
    try:
        return data.decode("utf-8-sig", errors) if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise RequestError(f"{what} cannot be read: standard input is not UTF-8 ({error.reason})") from error


@contextmanager
def to_stdout(name: str) -> Iterator[Path]:
    """Collect a result in a temporary file and copy it to stdout; anything else printed meanwhile goes to stderr.

    Args:
        name: Name of the file, such as `result.mp4`.

    Yields:
        The file to write.

    Raises:
        RequestError: stdout is closed or a terminal.
        KandinskyError: stdout cannot be written.
    """
    if sys.stdout.name == os.devnull:
        raise RequestError("output `-`: standard output is closed")
    if sys.stdout.isatty():
        raise RequestError("output `-`: standard output is a terminal: redirect it to a file or a program")
    folder = Path(tempfile.mkdtemp(prefix="kandinsky-"))
    result = folder / name
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield result
        with result.open("rb") as source, os.fdopen(os.dup(stdout), "wb") as sink:
            shutil.copyfileobj(source, sink)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise KandinskyError(f"standard output cannot be written: {error.strerror}") from error
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        result.unlink(missing_ok=True)
        with suppress(OSError):  # a latent that was kept stays
            folder.rmdir()


@contextmanager
def destination(output: str, *, ending: str = ".mp4") -> Iterator[str]:
    """Where a command writes.

    Args:
        output: The file that was named, or `-` for stdout.
        ending: Ending of what is written to stdout.

    Yields:
        The file to write.

    Raises:
        RequestError: stdout is closed or a terminal.
        KandinskyError: stdout cannot be written.
    """
    if output != STDOUT:
        yield output
        return
    with to_stdout(f"result{ending}") as path:
        yield str(path)


def _restore(stream: Any, errors: str) -> None:
    with suppress(OSError, ValueError):
        stream.reconfigure(errors=errors)


def _discard(stream: TextIO) -> None:
    """Drop what is printed there from now on: Python would complain once more when it closes the stream."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
