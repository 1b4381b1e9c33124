"""Time and memory of a generation, stage by stage, through the same public stages that a generation uses.

In a comparison with another implementation, both take turns on the same weights and inputs, so that ratios are
meaningful even on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

from kandinsky import catalogue
from kandinsky.bench.random_weights import random_pipeline
from kandinsky.bench.shortening import Shortened, shorten
from kandinsky.bench.works import Stage, brought, work_of
from kandinsky.catalogue import load
from kandinsky.engine.build import COMPONENTS
from kandinsky.errors import BackendError, RequestError
from kandinsky.model.card import Card
from kandinsky.model.task import GENERATE
from kandinsky.model.values import Request
from kandinsky.runtime.devices import device_name, processor_name
from kandinsky.runtime.meter import clock, matmul_rate, peak_bytes, peak_host_bytes
from kandinsky.runtime.threads import Threads, minute

STAGES = ("text", "dit", "vae", "write")
RIVALS = ("diffusers",)
PROMPT = "a panda on a blue background"


@dataclass(frozen=True, slots=True)
class Report:
    """All stages, and what they were measured with.

    Attributes:
        model: Catalogue id.
        device: Where it ran.
        dtype: Compute type.
        threads: CPU threads of torch.
        clock: What the seconds are; see ``timing.clock``.
        repeats: Timed rounds.
        size: Size of the clip, in words.
        steps: Sampling steps.
        guidance: Classifier-free guidance scale.
        matmul_rate: Measured FLOP/s of a large matrix product in the same type on the same device.
        stages: The lines.
        peak_host_bytes: Peak memory of the process.
        peak_device_bytes: Peak memory of the accelerator.
        shortened: What was measured instead of the whole, in words.
        processor: Name of the CPU, or of the accelerator.
        waiting: How threads wait for each other: `passive`, asleep, or `active`, spinning.
        load: Processes that wanted to run in the last minute, on average, before and after; 0 if unknown.
    """

    model: str
    device: str
    dtype: str
    threads: int
    clock: str
    repeats: int
    size: str
    steps: int
    guidance: float
    matmul_rate: float
    stages: tuple[Stage, ...]
    peak_host_bytes: int
    peak_device_bytes: int
    shortened: str = ""
    processor: str = ""
    waiting: str = ""
    load: tuple[float, float] = (0.0, 0.0)


def bench(
    model: str,
    *,
    stages: Sequence[str] | None = None,
    repeats: int = 3,
    prompt: str = PROMPT,
    device: str | None = None,
    dtype: str | None = None,
    offload: str = "none",
    attention: str = "auto",
    backends: str = "default",
    random_weights: bool = False,
    changes: Mapping[str, Any] | None = None,
    against: str | None = None,
    request: dict[str, Any] | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure each stage ``repeats`` times after one warm-up run.

    Args:
        model: As for ``load``.
        stages: Some of `text`, `dit` (the whole sampling loop), `vae` (decoding) and `write` (an mp4); None for all.
        repeats: Timed rounds.
        prompt: Prompt of the clip.
        device: As for ``load``.
        dtype: As for ``load``.
        offload: As for ``load``.
        attention: As for ``load``.
        backends: As for ``load``.
        random_weights: Fill the networks with noise, without any files. On CPU, if ``changes`` is None, as much is
            measured as is feasible; see ``shortening.py``.
        changes: Hyper-parameters to replace, with random weights only; see ``random_weights.random_pipeline``.
        against: Library to compare with, `diffusers`.
        request: Further fields of ``Request``, such as seconds or steps.
        on_run: Called with (done, total) after each run.

    Returns:
        The report.

    Raises:
        RequestError: A stage or library is unknown, or a generation would be refused.
        WeightsError: A file of the model is missing or broken.
        BackendError: The library to compare with is not installed, or a device is not available.
    """
    for given, allowed, what in ((stages or (), STAGES, "stage"), ([against] if against else (), RIVALS, "rival")):
        if unknown := [name for name in given if name not in allowed]:
            raise RequestError(f"unknown {what} `{unknown[0]}`: use {', '.join(f'`{name}`' for name in allowed)}")
    if changes and not random_weights:
        raise RequestError("hyper-parameters can only be changed with `random_weights=True`")
    if against and find_spec(against) is None:
        raise BackendError(f"`against={against}` needs the package `{against}`: install it")
    request, short, load_before = dict(request or {}), Shortened(), minute()
    card = catalogue.source_of(model).card
    absent = _unmeasurable(card, random_weights=random_weights)
    if unable := [name for name in stages or () if name in absent]:
        others = ",".join(name for name in STAGES[:-1] if name not in absent)
        raise RequestError(
            f"stage `{unable[0]}` of `{card.id}` cannot be measured, since {absent[unable[0]]}: measure `{others}`"
        )
    if stages is None:
        writes = find_spec("av") and not random_weights
        stages = [name for name in STAGES if name not in absent and (name != "write" or writes)]
    begun = time.perf_counter()
    if random_weights:
        if not changes:
            short = shorten(card, request, device=device, dtype=dtype, offload=offload)
            changes, request = short.changes, request | short.request
        pipe = random_pipeline(
            card, changes=changes, device=device, dtype=dtype, offload=offload, attention=attention, backends=backends,
            used={"vae" if name == "write" else name for name in stages},
        )  # fmt: skip
    else:
        pipe = load(model, device=device, dtype=dtype, offload=offload, attention=attention, backends=backends)
    asked = brought(pipe.card, request) | request
    resolved = pipe.resolve(Request(model=pipe.card.id, prompt=prompt, seed=0, **asked))
    taken = time.perf_counter() - begun
    loaded = Stage("load", (taken,), taken, 0.0, 0, peak_bytes(pipe.placement.device("dit")))
    work = work_of(pipe, resolved, repeats=repeats, against=against, on_run=on_run)
    measured = [getattr(work, name)() for name in STAGES if name in stages]
    measured = [
        replace(stage, whole_s=stage.median_s * short.times.get(stage.name, 1.0)) if short.said else stage
        for stage in measured
    ]
    place = pipe.placement.device("dit")
    return Report(
        model=pipe.name,
        device=str(place),
        dtype=pipe.precision.name,
        threads=torch.get_num_threads(),
        clock=clock(place)[1],
        repeats=repeats,
        size=f"{resolved.shape.width}x{resolved.shape.height}, {resolved.shape.frames} frames",
        steps=resolved.steps,
        guidance=resolved.guidance,
        matmul_rate=matmul_rate(place, pipe.precision.compute),
        stages=(loaded, *measured),
        peak_host_bytes=peak_host_bytes(),
        peak_device_bytes=max(stage.peak_bytes for stage in measured) if place.type == "cuda" and measured else 0,
        shortened=short.said,
        processor=processor_name() if place.type == "cpu" else device_name(str(place)),
        waiting="passive" if Threads.found().are_passive else "active",
        load=(load_before, minute()),
    )


def _unmeasurable(card: Card, *, random_weights: bool) -> dict[str, str]:
    """The stages that are left out, each with the reason."""
    found = {}
    task = card.does
    for name in COMPONENTS:
        # what stands in for it has states of its widths, and no work of its own
        if random_weights and card.part(name).remote_code:
            found[name] = f"`{card.component(name).kind}` is program code of its repository, which only its files bring"
    if task.stages != GENERATE and task.makes == "video" and task.image != "none":
        found["dit"] = "its loop goes on from a picture that another network draws; `kandinsky generate` times all"
    return found


def table(report: Report) -> str:
    """Format the report for people."""
    how = f"{report.threads} threads, {report.repeats} repeats, {report.clock}"
    head = f"{report.model} on {report.device} in {report.dtype}, {how}"
    rival = next((stage.against.name for stage in report.stages if stage.against), "")
    columns = f"{'stage':<8}{'median s':>10}{'spread s':>10}{'TFLOP/s':>9}{'of matmul':>11}{'peak GB':>9}"
    shared = f"{report.processor}, threads wait {report.waiting}ly, load {report.load[0]:g} to {report.load[1]:g}"
    lines = [head, shared, f"{report.size}, {report.steps} steps, guidance {report.guidance:g}"]
    if report.shortened:
        lines.append(report.shortened)
        columns += f"{'whole s':>10}"
    lines.append(columns + (f"{rival + ' s':>13}{'ours/theirs':>13}" if rival else ""))
    for stage in report.stages:
        rate = f"{stage.rate / 1e12:>9.3f}{stage.rate / report.matmul_rate:>11.0%}" if stage.flops else " " * 20
        line = f"{stage.name:<8}{stage.median_s:>10.3f}{stage.spread_s:>10.3f}{rate}{stage.peak_bytes / 1e9:>9.2f}"
        if report.shortened:
            line += f"{stage.whole_s:>10.0f}" if stage.whole_s is not None else " " * 10
        if (other := stage.against) is not None:
            seconds = sorted(other.seconds)
            middle = seconds[len(seconds) // 2] if seconds else 0.0
            line += f"{middle:>13.3f}{other.ratio:>13.2f}" if seconds else f"  {other.reason}"
        lines.append(line)
    lines += [
        f"attention of {stage.name} kept {stage.kept_blocks:.0%} of its blocks"
        for stage in report.stages
        if stage.kept_blocks is not None
    ]
    lines.append(f"matrix products reach {report.matmul_rate / 1e12:.3f} TFLOP/s")
    return "\n".join(lines)
