"""What a line of the log says: figures of the steps since the line before.

Losses and other figures are means over these steps. The loss by time is kept as sums and counts of ten equal bins of
the times that were drawn, so it is the same however a batch was divided among processes and micro-batches, and the
mean of the bins, weighed by their counts, is the mean error. Bins of which nothing was drawn are left out.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch

from kandinsky.runtime.meter import known_rate, peak_bytes
from kandinsky.train.objective import Timed
from kandinsky.train.work import Work

BINS = 10
LOSS, COUNT = "loss", "count"  # begin the names of bins


def bin_name(number: int) -> str:
    """Of one of the bins, such as `0.3-0.4`."""
    return f"{number / BINS:.1f}-{(number + 1) / BINS:.1f}"


class Record:
    """Steps since the last line.

    Args:
        device: Where this process computes.
        dtype: In which the networks compute.
        processes: That train together.
        now: Gives seconds.
    """

    def __init__(
        self,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        processes: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device, self.dtype, self.processes, self.now = torch.device(device), dtype, processes, now
        self._begin(now())

    def _begin(self, now: float) -> None:
        self.steps, self.waited, self.work, self.since = 0, 0.0, Work(), now
        self._figures: dict[str, list[float]] = defaultdict(list)
        self._bins: dict[int, list[tuple[float, float]]] = defaultdict(list)

    def add(self, figures: Mapping[str, float]) -> None:
        """A step was taken."""
        self.steps += 1
        for name, value in figures.items():
            self._figures[name].append(value)

    def learned(self, timed: Iterable[Timed], work: Work) -> None:
        """Errors of examples at their times, and what was done, of all processes."""
        self.work.add(work)
        for one in timed:
            self._bins[min(BINS - 1, int(one.time * BINS))].append((one.error * one.weight, one.weight))

    def pause(self, seconds: float) -> None:
        """Leave something out of the time of the steps, such as the writing of samples."""
        self.since += seconds

    def line(self) -> dict[str, float]:
        """What there is to say of the steps since the last time, which are forgotten."""
        now = self.now()
        taken = max(1e-9, now - self.since)
        out = {name: math.fsum(values) / len(values) for name, values in self._figures.items()}
        for number, pairs in sorted(self._bins.items()):
            errors, counts = zip(*pairs, strict=True)
            if (count := math.fsum(counts)) > 0:
                out[f"{LOSS} {bin_name(number)}"] = math.fsum(errors) / count
                out[f"{COUNT} {bin_name(number)}"] = count
        out |= {"seconds per step": taken / self.steps, "seconds of waiting": self.waited / self.steps}
        if self.work.samples:
            out["samples per second"] = self.work.samples / taken
        if self.work.tokens:
            out["tokens per second"] = self.work.tokens / taken
        if self.work.flops:
            out["TFLOP/s"] = self.work.flops / taken / 1e12
            out["MFU"] = self.work.flops / taken / self.processes / known_rate(self.device, self.dtype)
        out["memory GB"] = peak_bytes(self.device) / 1e9
        self._begin(now)
        return out
