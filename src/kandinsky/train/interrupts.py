"""Signals that end a training: held back until a step is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from kandinsky.runtime.parallel import launch

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """Hold back SIGINT, SIGTERM and SIGHUP; the second of them interrupts at once.

    Yields:
        Whether one has come. Outside the main thread, where signals cannot be caught, none ever has.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came or launch.is_ending():
            raise KeyboardInterrupt
        came = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    # one that is ignored, as under `nohup`, stays so
    caught = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        with launch.endings_held():
            yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
