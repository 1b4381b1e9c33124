"""Ends a process that stands still: a decoder that hangs, hangs in native code, where no exception reaches it.

Whatever works on a file calls ``beat`` as it goes on. Where a watch is kept, a process that has not done so for long
exits, even while it holds the interpreter's lock; who started it sees it die and goes on with another.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STEP_S = 1.0  # between two settings of the alarm, which cost a thread each
_patience_s = 0.0  # 0: no watch is kept
_set_at = 0.0


@contextmanager
def kept(patience_s: float) -> Iterator[None]:
    """Within the block, this process exits if nothing beats for so many seconds."""
    global _patience_s
    _patience_s = patience_s
    _set()
    try:
        yield
    finally:
        _patience_s = 0.0
        faulthandler.cancel_dump_traceback_later()


def beat() -> None:
    """Say that work goes on."""
    if _patience_s and time.monotonic() - _set_at >= min(_STEP_S, _patience_s / 4):
        _set()


def _set() -> None:
    global _set_at
    _set_at = time.monotonic()
    faulthandler.dump_traceback_later(_patience_s, exit=True, file=sys.__stderr__ or sys.stderr)
