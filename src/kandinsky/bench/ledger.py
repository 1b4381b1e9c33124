"""The ledger: what each optimisation gains and what it costs in accuracy, all measured by one harness.

A line is data: a name, and options of ``load``, of the request, or values of the card's `[sampling]`. All lines run the
same prompts and seeds in turns; the first is the exact run that the others are compared with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kandinsky.bench.timing import interleaved, ratio
from kandinsky.catalogue import load
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import Job
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.values import Request
from kandinsky.runtime.meter import clock, finish

PROMPTS = (
    "a panda waves on a blue background",
    "a rocket flies on a yellow background",
)


@dataclass(frozen=True, slots=True)
class Variation:
    """One line of the ledger.

    Attributes:
        name: What the line is called.
        load: Options of ``load``.
        request: Fields of ``Request``.
        sampling: Values of the card's `[sampling]`.
    """

    name: str
    load: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


EXACT = Variation("exact")
VARIATIONS = (
    Variation("cache=magcache", load={"cache": "magcache"}),
    Variation("cache=first-block", load={"cache": "first-block"}),
    Variation("cache=first-block:threshold=0.2", load={"cache": "first-block:threshold=0.2"}),
    Variation("cache=taylor", load={"cache": "taylor"}),
    Variation("cache=taylor:order=0", load={"cache": "taylor:order=0"}),
    Variation("cache=taylor:interval=3", load={"cache": "taylor:interval=3"}),
    Variation("half the steps", request={"steps": 0.5}),
    Variation("attention=nabla", load={"attention": "nabla"}),
    Variation("attention=nabla:P=0.5", load={"attention": "nabla:P=0.5,wT=3"}),
    Variation("offload=module", load={"offload": "module"}),
    Variation("offload=block", load={"offload": "block"}),
    Variation("quantize=int8", load={"quantize": "int8"}),
    Variation("quantize=fp8", load={"quantize": "fp8"}),
    Variation("dtype=bfloat16", load={"dtype": "bfloat16"}),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One optimisation, measured.

    Attributes:
        name: What the line is called.
        seconds: Seconds of each round.
        speedup: Seconds of the exact run over its own, sampling and decoding, median over rounds.
        latent_error: ‖a − b‖ / ‖b‖, mean over clips.
        psnr_db: Peak signal-to-noise ratio of the frames, mean over clips; None if they are equal.
        left_out: Share of the passes that a step cache skipped.
        peak_bytes: Peak memory.
        reason: Why there is nothing to report.
    """

    name: str
    seconds: tuple[float, ...] = ()
    speedup: float = 0.0
    latent_error: float = 0.0
    psnr_db: float | None = None
    left_out: float | None = None
    peak_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ledger:
    """All lines, and what they were measured with."""

    model: str
    device: str
    dtype: str
    setting: str
    lines: tuple[Line, ...]


@dataclass(slots=True)
class _Run:
    """A variation that is available: its pipeline, jobs and text embeddings, and the latents and frames it made."""

    pipe: GenerationPipeline
    jobs: list[Job]
    states: list[Any]
    latents: list[Tensor] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    skips: list[bool] = field(default_factory=list)

    def sample(self, number: int) -> Tensor:
        job, (text, negative) = self.jobs[number], self.states[number]
        cache = self.pipe.start_cache(job)
        latents = self.pipe.sample(
            self.pipe.noise([job]),
            text,
            negative,
            job,
            known=self.pipe.known([job]),
            fresh_NBTHWC=self.pipe.fresh_noise([job]),
            cache=cache,
        )
        finish(latents.device)
        if cache is not None:
            self.skips += [skip for skips in cache.skips for skip in skips]
        return latents

    def clip(self, number: int) -> np.ndarray:
        """The clip, sampled and decoded."""
        out: np.ndarray = self.pipe.decode(self.sample(number))[0]
        return out


def measure(
    model: str,
    *,
    variations: Sequence[Variation] = VARIATIONS,
    prompts: Sequence[str] = PROMPTS,
    request: Mapping[str, Any] | None = None,
    repeats: int = 3,
    device: str | None = None,
    dtype: str | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> Ledger:
    """Run every variation on every prompt once, then repeatedly in turns on the first prompt for time.

    Args:
        model: As for ``load``.
        variations: Lines of the ledger; the first is the exact run.
        prompts: Prompts of the clips.
        request: Further fields of ``Request``.
        repeats: Timed rounds.
        device: As for ``load``.
        dtype: As for ``load``.
        on_run: Called with (done, total) after each run.

    Returns:
        The ledger. A variation that cannot run here becomes a line with the reason.

    Raises:
        RequestError: There are no prompts, or the exact run would be refused.
        WeightsError: A file of the model is missing or broken.
        BackendError: A device or package that the exact run needs is not available.
    """
    if not prompts:
        raise RequestError("a ledger needs at least one prompt")
    options = {"device": device, "dtype": dtype}
    exact = _run(model, EXACT, options, prompts, dict(request or {}))
    runs: dict[str, _Run] = {EXACT.name: exact}
    reasons: dict[str, str] = {}
    for variation in variations:
        try:
            runs[variation.name] = _run(model, variation, options, prompts, dict(request or {}))
        except (KandinskyError, RuntimeError, TypeError, NotImplementedError, ImportError) as error:
            # a line that fails must not lose the others
            reasons[variation.name] = f"{error}".strip().splitlines()[0] or type(error).__name__
    works = {name: (lambda run=run: run.clip(0)) for name, run in runs.items()}
    place = exact.pipe.placement.device("dit")
    timings = interleaved(works, repeats=repeats, device=place, warm=True, on_run=on_run)
    lines = []
    for variation in (EXACT, *variations):
        name = variation.name
        if name in reasons:
            lines.append(Line(name, reason=reasons[name]))
            continue
        run, timing = runs[name], timings[name]
        lines.append(
            Line(
                name,
                timing.seconds,
                ratio(timings[EXACT.name].seconds, timing.seconds),
                latent_error(run.latents, exact.latents),
                psnr(run.frames, exact.frames),
                sum(run.skips) / len(run.skips) if run.skips else None,
                timing.peak_bytes,
            )
        )
    job = exact.jobs[0]
    setting = (
        f"{job.shape.width}x{job.shape.height}, {job.shape.frames} frames, {job.steps} steps, guidance "
        f"{job.guidance:g}, {len(prompts)} prompts, {repeats} repeats, {torch.get_num_threads()} threads, "
        f"{clock(place)[1]}"
    )
    return Ledger(model, str(place), exact.pipe.precision.name, setting, tuple(lines))


def latent_error(latents: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative error ‖a − b‖ / ‖b‖, mean over clips."""
    pairs = zip(latents, exact, strict=True)
    return float(np.mean([float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs]))


def psnr(frames: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float | None:
    """Peak signal-to-noise ratio of uint8 frames in dB, mean over the clips that differ; None if none does."""
    errors = [float(np.mean((a.astype(np.float64) - b) ** 2)) for a, b in zip(frames, exact, strict=True)]
    found = [10 * math.log10(255**2 / error) for error in errors if error > 0]
    return float(np.mean(found)) if found else None


def _run(
    model: str, variation: Variation, options: dict[str, Any], prompts: Sequence[str], request: dict[str, Any]
) -> _Run:
    pipe = load(model, **options | dict(variation.load))
    if variation.sampling:
        sampling = dataclasses.replace(pipe.card.sampling, **variation.sampling)
        pipe = GenerationPipeline(pipe.context.with_card(dataclasses.replace(pipe.card, sampling=sampling)))
    fields = request | dict(variation.request)
    if isinstance(share := fields.get("steps"), float):  # of the usual number
        fields["steps"] = max(1, round(share * (request.get("steps") or pipe.card.sampling.steps)))
    jobs = [pipe.resolve(Request(pipe.card.id, prompt, seed=i, **fields)) for i, prompt in enumerate(prompts)]
    run = _Run(pipe, jobs, [pipe.encode([job]) for job in jobs])
    for number in range(len(jobs)):
        run.latents.append(run.sample(number))
        run.frames.append(pipe.decode(run.latents[-1])[0])
    return run


def table(ledger: Ledger) -> str:
    """Format the ledger for people."""
    width = max(len(line.name) for line in ledger.lines) + 2
    lines = [f"{ledger.model} on {ledger.device} in {ledger.dtype}: {ledger.setting}"]
    lines.append(
        f"{'optimisation':<{width}}{'median s':>10}{'speed-up':>10}{'left out':>10}{'latent error':>14}{'PSNR dB':>9}"
        f"{'peak GB':>9}"
    )
    for line in ledger.lines:
        if line.reason:
            lines.append(f"{line.name:<{width}}  not here: {line.reason}")
            continue
        psnr_db = "equal" if line.psnr_db is None else f"{line.psnr_db:.1f}"
        left_out = "" if line.left_out is None else f"{line.left_out:.0%}"
        lines.append(
            f"{line.name:<{width}}{float(np.median(line.seconds)):>10.3f}{line.speedup:>10.2f}{left_out:>10}"
            f"{line.latent_error:>14.2e}{psnr_db:>9}{line.peak_bytes / 1e9:>9.2f}"
        )
    return "\n".join(lines)
