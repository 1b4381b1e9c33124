"""Time and memory of a generation, stage by stage, through the same public stages that a generation uses."""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kandinsky.errors import RequestError
from kandinsky.media.video import write_video
from kandinsky.pipelines.loading import load
from kandinsky.types import Request, Video

PROBE_SIDE = 1024  # of the square matrices whose product gives the machine's rate


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the table. spread_s: slowest minus fastest run; flops: of one run, 0 where nothing is multiplied."""

    name: str
    median_s: float
    spread_s: float
    flops: int

    @property
    def rate(self) -> float:
        """Achieved FLOP/s."""
        return self.flops / self.median_s


@dataclass(frozen=True, slots=True)
class Report:
    """All stages; ``matmul_rate`` is the measured FLOP/s of a large product in the same type on the same device.

    peak_host_bytes: of the process so far. peak_device_bytes: of the accelerator, 0 on the processor.
    """

    model: str
    device: str
    dtype: str
    runs: int
    matmul_rate: float
    stages: tuple[Stage, ...]
    peak_host_bytes: int
    peak_device_bytes: int


def bench(
    model: str,
    *,
    runs: int = 3,
    prompt: str = "a panda on a blue background",
    device: str | None = None,
    dtype: str | None = None,
    request: dict[str, Any] | None = None,
) -> Report:
    """Measure each stage ``runs`` times after one run that warms up.

    Args:   request: further fields of ``Request``, such as seconds or steps.
    Raises: RequestError for fewer than one run, and whatever a generation raises.
    """
    if runs < 1:
        raise RequestError(f"`{runs}` runs measure nothing: use 1 or more")
    begun = time.perf_counter()
    pipe = load(model, device=device, dtype=dtype)
    resolved = pipe.resolve(Request(model=model, prompt=prompt, seed=0, **(request or {})))
    stages = [Stage("load", time.perf_counter() - begun, 0.0, 0)]
    place = pipe.placement.device("dit")

    def stage(name: str, work: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = work()  # warms up: weights are read at first use
        seconds = []
        for _ in range(runs):
            _finish(place)
            begun = time.perf_counter()
            result = work()
            _finish(place)
            seconds.append(time.perf_counter() - begun)
        spread = max(seconds) - min(seconds)
        stages.append(Stage(name, statistics.median(seconds), spread, counter.get_total_flops()))
        return result

    text, negative = stage("text", lambda: pipe.encode([resolved]))
    noise = pipe.noise([resolved])
    latents = stage(f"sample, {resolved.steps} steps", lambda: pipe.sample(noise, text, negative, resolved))
    frames = stage("decode", lambda: pipe.decode(latents))
    video = Video(frames[0], fps=resolved.fps, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        stage("write mp4", lambda: write_video(video, Path(folder) / "bench.mp4"))
    return Report(
        model=model,
        device=str(place),
        dtype=pipe.precision.name,
        runs=runs,
        matmul_rate=matmul_rate(place, pipe.precision.compute),
        stages=tuple(stages),
        peak_host_bytes=peak_host_bytes(),
        peak_device_bytes=torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0,
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, runs: int = 5) -> float:
    """FLOP/s of the fastest of a few products of square matrices."""
    side = PROBE_SIDE if device.type == "cpu" else 8 * PROBE_SIDE
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(runs + 1):
        _finish(device)
        begun = time.perf_counter()
        a @ a
        _finish(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def peak_host_bytes() -> int:
    """The most main memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _finish(device: torch.device) -> None:
    """Wait for work that was only queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
