"""Threads of `gloo` that must be idle before Python ends.

A thread of `gloo` that has done its work wakes whoever waits for it, and only then lets go of the tensors, for which it
needs Python's lock. Where Python ends in between, as on a busy machine, versions before 3.14 end the thread inside a
destructor, and the process aborts with "terminate called without an active exception", though its work is done
(measured with torch 2.13). Destroying the groups is no remedy: networks, meshes and PyTorch's own caches hold them.
"""

from __future__ import annotations

import time
from pathlib import Path

TASKS = Path("/proc/self/task")
NAME = "gloo_runloop"
LOOK_S = 0.01
# the machine may be busy, but a thread that never comes to rest must not keep the process
PATIENCE_S = 10.0
LOOKS = 2  # between two waits, a thread is asleep for a moment


def let_go() -> None:
    """Wait, without Python's lock, until the threads of `gloo` sleep; where the system does not tell, a moment."""
    end = time.monotonic() + PATIENCE_S
    asleep = 0
    while asleep < LOOKS and time.monotonic() < end:
        time.sleep(LOOK_S)
        asleep = 0 if _are_busy() else asleep + 1


def _are_busy() -> bool:
    """Whether a thread of `gloo` runs, or would if it had a processor."""
    for task in TASKS.glob("*/stat"):
        try:
            name, _, values = task.read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:  # it has ended
            continue
        if NAME in name and values.split()[0] != "S":
            return True
    return False
