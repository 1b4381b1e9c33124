"""How many threads compute, and how they wait for each other: settled once in a process, before torch is loaded.

OpenMP's threads spin while they wait. Where cores are shared or limited, the one that is waited for has no core, since
the others spin on it: two threads of one process beside other work took three times the processor time of one. So they
sleep here (``WAITING``), unless the environment says how to wait. The number of threads is torch's own, one per core,
unless a control group allows this process less time, or several processes of ours share the machine.

OpenMP reads the environment when torch is loaded, and child processes inherit it. No torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

COUNT = "OMP_NUM_THREADS"
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
# whoever set one of these has chosen how threads wait
_CHOSEN = (*WAITING, "KMP_BLOCKTIME", "KMP_LIBRARY")
_TOGETHER = "LOCAL_WORLD_SIZE"  # of launchers: processes on this machine that share its cores
_GROUPS = "proc/self/cgroup"
# what ``prepare`` put into the environment, so that it can be told from a choice of the user's
_put: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Threads:
    """What decides how many threads compute.

    Attributes:
        machine: Cores of the machine.
        allowed: Those this process may be scheduled on.
        quota: Cores' worth of time that control groups allow; None = no limit.
        asked: Value of ``OMP_NUM_THREADS``; None = not set.
        waiting: Variables that say how threads wait.
        load: Processes that wanted to run in the last minute, on average; None if unknown.
    """

    machine: int
    allowed: int
    quota: float | None
    asked: str | None
    waiting: Mapping[str, str]
    load: float | None

    @classmethod
    def found(cls) -> Threads:
        """What holds for this process now."""
        waiting = {name: os.environ[name] for name in _CHOSEN if name in os.environ}
        return cls(os.cpu_count() or 1, _allowed(), quota(), os.environ.get(COUNT), waiting, minute() or None)

    @property
    def are_passive(self) -> bool:
        """Whether threads sleep while they wait."""
        return self.waiting.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE" or self.waiting.get("GOMP_SPINCOUNT") == "0"


def minute() -> float:
    """Processes that wanted to run in the last minute, on average; 0 if unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return 0.0


def prepare() -> None:
    """Choose how threads wait, and how many there are where the machine gives this process less than it shows.

    What the environment says already stays. Does nothing once torch is loaded, which has then read the environment.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _CHOSEN):
        _put.update(WAITING)
        os.environ.update(WAITING)
    together = os.environ.get(_TOGETHER, "1")
    share = cores() // max(1, int(together) if together.isdecimal() else 1)
    if COUNT not in os.environ and share < _allowed():
        _put[COUNT] = os.environ[COUNT] = str(max(1, share))


def use(count: int) -> None:
    """Compute with so many threads in this process from now on; loads torch."""
    prepare()
    import torch

    torch.set_num_threads(count)


def of_workers(count: int) -> dict[str, str]:
    """The environment of processes that share this machine's cores.

    Args:
        count: How many of them compute on its processor at once.

    Returns:
        Variables that differ from this process' own; none where the user chose the number of threads.
    """
    if count < 2 or (COUNT in os.environ and os.environ[COUNT] != _put.get(COUNT)):
        return {}
    return {COUNT: str(max(1, cores() // count))}


def cores() -> int:
    """Cores that this process may use at once, by its affinity and its control groups; at least 1."""
    limit = quota()
    return _allowed() if limit is None else max(1, min(_allowed(), int(limit)))


def quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of processor time that control groups (version 1 or 2) allow this process.

    Args:
        root: The root of the file system.

    Returns:
        The smallest limit of the group and those above it; None without one.
    """
    return min((limit for folder in _folders(root) if (limit := _limit(folder)) is not None), default=None)


def _allowed() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _folders(root: Path) -> Iterator[Path]:
    """The folders of this process' control group and those above it, in every hierarchy that limits processor time."""
    try:
        lines = (root / _GROUPS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = (controllers, "cpu", "cpu,cpuacct") if controllers else ("", "unified")
        for base in dict.fromkeys(root / "sys/fs/cgroup" / name for name in names):
            # within a container, the group's own path may be that of the host, of which only the root is seen
            parts = [part for part in path.split("/") if part]
            if ".." in parts:
                parts = []
            yield from (base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1))


def _limit(folder: Path) -> float | None:
    """The limit that one group sets."""
    try:
        if (folder / "cpu.max").is_file():
            time, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            time = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        found = int(time) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # absent, or `max`
        return None
    return found if found > 0 else None
