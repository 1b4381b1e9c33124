"""Time and memory of pieces of work, run in turns, so that a machine that slows down slows all of them.

With one CPU thread, seconds are CPU time of this process, which other work on the machine does not distort. Otherwise
they are wall-clock time.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kandinsky.errors import RequestError

PROBE_SIDE = 1024  # side of the square matrices whose product gives the machine's rate
# Linux: writing 5 here resets the peak of this process to its current memory
CLEAR_PEAK = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Timing:
    """Runs of one piece of work, after a warm-up run.

    Attributes:
        seconds: Seconds of each run, in order.
        peak_bytes: Peak memory during the runs: of the accelerator, else of this process.
        result: Result of the first run.
    """

    seconds: tuple[float, ...]
    peak_bytes: int
    result: Any

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread_s(self) -> float:
        """Slowest minus fastest run."""
        return max(self.seconds) - min(self.seconds)


def interleaved(
    works: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    device: torch.device,
    warm: bool = False,
    on_run: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Run every work once to warm up, then ``repeats`` rounds of all, every other round in reverse order.

    Args:
        works: Callables by name.
        repeats: Timed rounds.
        device: Where they run; it is synchronised, and its memory is counted.
        warm: Whether all have run before, so that there is no warm-up.
        on_run: Called with (done, total) after each run.

    Returns:
        Timing by name.

    Raises:
        RequestError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise RequestError(f"`{repeats}` repeats measure nothing: use 1 or more")
    now, _ = clock(device)
    rounds = range(1 if warm else 0, repeats + 1)
    total, done = len(works) * len(rounds), 0
    seconds: dict[str, list[float]] = {name: [] for name in works}
    peaks = dict.fromkeys(works, 0)
    results: dict[str, Any] = {}
    for number in rounds:
        for name in sorted(works, key=list(works).index, reverse=number % 2 == 1):
            forget_peak(device)
            finish(device)
            begun = now()
            result = works[name]()
            finish(device)
            taken = now() - begun
            peaks[name] = max(peaks[name], peak_bytes(device))
            if number:
                seconds[name].append(taken)
            results.setdefault(name, result)
            del result
            done += 1
            if on_run:
                on_run(done, total)
    return {name: Timing(tuple(seconds[name]), peaks[name], results[name]) for name in works}


def clock(device: torch.device) -> tuple[Callable[[], float], str]:
    """The function to read seconds from, and what to call them."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor seconds"
    return time.perf_counter, "seconds"


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median over rounds of ours/theirs; both ran in the same rounds, so that what slowed both cancels."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def matmul_rate(device: torch.device, dtype: torch.dtype, runs: int = 5) -> float:
    """FLOP/s of the fastest of a few products of square matrices."""
    side = PROBE_SIDE if device.type == "cpu" else 8 * PROBE_SIDE
    a = torch.ones(side, side, device=device, dtype=dtype)
    now, _ = clock(device)
    best = float("inf")
    for _ in range(runs + 1):
        finish(device)
        begun = now()
        a @ a
        finish(device)
        best = min(best, now() - begun)
    return 2 * side**3 / best


def forget_peak(device: torch.device) -> None:
    """Reset the peak memory, if the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        CLEAR_PEAK.write_text("5", encoding="ascii")
    except OSError:
        return  # then the peak is that of the whole process so far


def peak_bytes(device: torch.device) -> int:
    """Peak memory since ``forget_peak``: of the accelerator; on CPU, of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_host_bytes()


def peak_host_bytes() -> int:
    """Peak main memory of this process, since ``forget_peak`` if the system can reset it."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def finish(device: torch.device) -> None:
    """Wait for queued work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
