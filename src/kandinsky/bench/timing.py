"""Time and memory of pieces of work, run in turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kandinsky.errors import RequestError
from kandinsky.runtime.meter import clock, finish, forget_peak, peak_bytes


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


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median over rounds of ours/theirs; both ran in the same rounds, so that what slowed both cancels."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))
