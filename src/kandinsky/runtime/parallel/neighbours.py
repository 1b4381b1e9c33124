"""The other processes of a job that run on this machine: whether one has gone, and its end where it hangs.

A process is told from another that got its number later by the time it began. Linux says all this in `/proc`; elsewhere
nobody is a neighbour, and signs of life alone decide.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One process.

    Attributes:
        machine: The same text for processes that see each other.
        begun: In ticks since the machine did.
    """

    host: str
    machine: str
    pid: int
    begun: str

    @classmethod
    def myself(cls) -> Neighbour:
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _begun(pid) or "")

    @classmethod
    def parse(cls, text: str) -> Neighbour:
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.host}, PID {self.pid}"

    @property
    def is_here(self) -> bool:
        return self.begun != "" and self.machine == _machine()

    def has_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.is_here and _begun(self.pid) != self.begun

    def end(self) -> None:
        """Kill it, where it runs here: one that is stopped hears no other signal."""
        if self.is_here and not self.has_gone():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def _machine() -> str:
    """Identifies this boot of this machine and its process table; empty where that is not known."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{(PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _begun(pid: int) -> str | None:
    """Start time of a process; None if it has ended, including a child that was not waited for."""
    try:
        state, *values = (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if state in "ZX" else values[18]
    except (OSError, IndexError, UnicodeDecodeError):
        return None
