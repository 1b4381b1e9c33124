"""The other processes of a job on this machine: whether one has gone, and ending it if it hangs.

A process is distinguished from a later one with the same id by its start time. Linux provides all this in `/proc`;
elsewhere no process is a neighbour, and only heartbeats count.
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
        begun: Start time in ticks since the machine booted.
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
        """A description for people."""
        return f"{self.host}, PID {self.pid}"

    @property
    def is_here(self) -> bool:
        return self.begun != "" and self.machine == _machine()

    def has_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.is_here and _begun(self.pid) != self.begun

    def end(self) -> None:
        """Kill it, if it runs here: a stopped process reacts to no other signal."""
        if self.is_here and not self.has_gone():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


def _machine() -> str:
    """Identifies this boot of this machine and its process table; empty if unknown."""
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
