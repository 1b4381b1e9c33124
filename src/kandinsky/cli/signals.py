"""SIGTERM and SIGHUP end a command as Ctrl-C does: partial files are removed, and kept ones are reported."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kandinsky.runtime.parallel.launch import ENDING


@contextmanager
def as_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for them; a signal that is already ignored (`nohup`) or handled stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
