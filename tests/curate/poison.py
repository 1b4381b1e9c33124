"""Work on files of which some end the process that works on them, as a decoder with a fault does."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from kandinsky.curate.file_work import FileWork, Found, Task
from kandinsky.curate.watch import beat


class Poisoned(FileWork):
    """`crash.mp4` is a native crash, `hang.mp4` hangs with the interpreter's lock, `slow.mp4` waits to be killed once.

    Each beginning is a line of `trace.txt` beside the source, with the process.
    """

    def __call__(self, task: Task) -> Found:
        key = task.row["key"]
        trace = Path(task.row["file"]).parents[1] / "trace.txt"
        with trace.open("a") as file:
            file.write(f"{key} {os.getpid()}\n")
        if key == "crash.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        if key == "hang.mp4":
            ctypes.PyDLL(None).sleep(600)
        if key == "slow.mp4" and trace.read_text().count("slow.mp4 ") == 1:
            for _ in range(600):
                beat()
                time.sleep(0.1)
        return super().__call__(task)
