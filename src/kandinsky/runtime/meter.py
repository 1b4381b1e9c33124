"""Clocks and meters of the machine: seconds, peak memory, the rate of matrix products.

With one CPU thread, seconds are CPU time of this process, which other work on the machine does not distort. Otherwise
they are wall-clock time.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

PROBE_SIDE = 1024  # side of the square matrices whose product gives the machine's rate
# Linux: writing 5 here resets the peak of this process to its current memory
CLEAR_PEAK = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def clock(device: torch.device) -> tuple[Callable[[], float], str]:
    """The function to read seconds from, and what to call them."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor seconds"
    return time.perf_counter, "seconds"


def matmul_rate(device: torch.device, dtype: torch.dtype, runs: int = 5) -> float:
    """FLOP/s of the fastest of a few products of square matrices, on a processor by the faster library of both."""
    from kandinsky.ops.linear import products

    side = PROBE_SIDE if device.type == "cpu" else 8 * PROBE_SIDE
    a = torch.ones(side, side, device=device, dtype=dtype)
    now, _ = clock(device)
    best = float("inf")
    for product in products(a):
        for _ in range(runs + 1):
            finish(device)
            begun = now()
            product()
            finish(device)
            best = min(best, now() - begun)
    return 2 * side**3 / best


@cache
def known_rate(device: torch.device, dtype: torch.dtype) -> float:
    """``matmul_rate`` of few runs, measured once in a process."""
    return matmul_rate(device, dtype, runs=2)


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
