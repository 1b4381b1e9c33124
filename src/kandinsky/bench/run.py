"""Time and memory of a generation, stage by stage, through the same public stages that a generation uses.

In a comparison with another implementation, both take turns on the same weights and inputs, so that ratios are
meaningful even on a busy machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky import catalogue
from kandinsky.bench.flops import count_flops
from kandinsky.bench.random_weights import random_pipeline
from kandinsky.bench.shortening import Shortened, shorten
from kandinsky.bench.timing import Timing, interleaved, ratio
from kandinsky.catalogue import load
from kandinsky.diffusion.guidance import Guidance
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import Job
from kandinsky.engine.rival import Side, Unavailable
from kandinsky.errors import BackendError, KandinskyError, RequestError
from kandinsky.model.cost import PROMPT_TOKENS
from kandinsky.model.values import Request, TextEmbeddings, Video
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.runtime.devices import device_name, processor_name
from kandinsky.runtime.meter import clock, forget_peak, matmul_rate, peak_bytes, peak_host_bytes
from kandinsky.runtime.threads import Threads, minute

STAGES = ("text", "dit", "vae", "write")
RIVALS = ("diffusers",)
PROMPT = "a panda on a blue background"


@dataclass(frozen=True, slots=True)
class Rival:
    """The same stage in another library.

    Attributes:
        name: Name of the library.
        seconds: Seconds of each round.
        ratio: Our time over theirs, median over rounds; below 1 we are faster.
        peak_bytes: Peak memory.
        reason: Why there is no measurement.
    """

    name: str
    seconds: tuple[float, ...] = ()
    ratio: float = 0.0
    peak_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the table.

    Attributes:
        name: Name of the stage.
        seconds: Seconds of each round.
        median_s: Median of them.
        spread_s: Slowest minus fastest.
        flops: Floating-point operations of matrix products in one run: of the transformer computed from its
            hyper-parameters, of other networks counted while they run; 0 if there are none.
        peak_bytes: Peak memory of the device (on CPU, of the process).
        against: The same stage in another library.
        kept_blocks: Share of the blocks that block-sparse attention computed.
        whole_s: Estimated time of the whole stage, if less was measured; see ``shortening.py``.
    """

    name: str
    seconds: tuple[float, ...]
    median_s: float
    spread_s: float
    flops: int
    peak_bytes: int
    against: Rival | None = None
    kept_blocks: float | None = None
    whole_s: float | None = None

    @property
    def rate(self) -> float:
        """Achieved FLOP/s."""
        return self.flops / self.median_s


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
    if stages is None:
        stages = [name for name in STAGES if name != "write" or (find_spec("av") and not random_weights)]
    request, short, load_before = dict(request or {}), Shortened(), minute()
    begun = time.perf_counter()
    if random_weights:
        card = catalogue.source_of(model).card
        if not changes:
            short = shorten(card, request, device=device, dtype=dtype, offload=offload)
            changes, request = short.changes, request | short.request
        pipe = random_pipeline(
            card, changes=changes, device=device, dtype=dtype, offload=offload, attention=attention, backends=backends,
            used={"vae" if name == "write" else name for name in stages},
        )  # fmt: skip
    else:
        pipe = load(model, device=device, dtype=dtype, offload=offload, attention=attention, backends=backends)
    resolved = pipe.resolve(Request(model=pipe.card.id, prompt=prompt, seed=0, **request))
    taken = time.perf_counter() - begun
    loaded = Stage("load", (taken,), taken, 0.0, 0, peak_bytes(pipe.placement.device("dit")))
    work = _Work(pipe, resolved, repeats, against, on_run)
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


class _Work:
    """The stages in order; each hands its result to the next, and noise stands in for that of a stage left out."""

    def __init__(
        self,
        pipe: GenerationPipeline,
        resolved: Job,
        repeats: int,
        against: str | None,
        on_run: Callable[[int, int], None] | None,
    ) -> None:
        self.pipe, self.resolved, self.repeats, self.against, self.on_run = pipe, resolved, repeats, against, on_run
        self.rival = Side(against, pipe, resolved) if against else None
        self.states: tuple[TextEmbeddings, TextEmbeddings | None] | None = None
        self.latents: Tensor | None = None
        self.frames: Any = None

    def text(self) -> Stage:
        stage, self.states = self._stage("text", lambda: self.pipe.encode([self.resolved]), self._theirs("text"), None)
        return stage

    def dit(self) -> Stage:
        noise, fresh = self.pipe.noise([self.resolved]), self.pipe.fresh_noise([self.resolved])
        with self.pipe.placement.hold("dit") as net:
            text, negative = self.states or self._made_up_states(net)
            kept = KeptBlocks()
            if self.pipe.attention_of(self.resolved).type == "nabla":  # what it computes is known only after a run
                self.pipe.sample(noise, text, negative, self.resolved, fresh_NBTHWC=fresh, kept=kept)
            flops = self._loop_flops(net, text, negative, kept.mean())
        stage, self.latents = self._stage(
            "dit",
            lambda: self.pipe.sample(noise, text, negative, self.resolved, fresh_NBTHWC=fresh),
            self._theirs("dit", noise, text, negative),
            flops,
        )
        return replace(stage, kept_blocks=kept.mean())

    def vae(self) -> Stage:
        latents = self.pipe.noise([self.resolved]) if self.latents is None else self.latents
        stage, self.frames = self._stage("vae", lambda: self.pipe.decode(latents), self._theirs("vae", latents), None)
        return stage

    def write(self) -> Stage:
        from kandinsky.media.video import write_video

        frames = self.pipe.decode(self.pipe.noise([self.resolved])) if self.frames is None else self.frames
        video = Video(frames[0], fps=self.resolved.fps, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            stage, _ = self._stage("write", lambda: write_video(video, Path(folder) / "bench.mp4"), None, 0)
        return stage

    def _theirs(self, part: str, *inputs: Any) -> Callable[[], Callable[[], Any]] | None:
        """A callable that prepares the other library's work; None if no comparison was asked for."""
        side, name = self.rival, self.against
        if side is None or name is None:
            return None

        def ready() -> Callable[[], Any]:
            rivals = self.pipe.card.part(part).rivals
            if name not in rivals:
                raise Unavailable(f"`{name}` has nothing like `{self.pipe.card.component(part).kind}`")
            return rivals[name]()(side, *inputs)

        return ready

    def _stage(
        self,
        name: str,
        ours: Callable[[], Any],
        rival: Callable[[], Callable[[], Any]] | None,
        flops: int | None,
    ) -> tuple[Stage, Any]:
        """Measure one stage; ``flops`` is the count of one run, None to count while it runs."""
        device = self.pipe.placement.device("dit")
        if flops is None:
            flops = count_flops(ours)
        works, reason = {"ours": ours}, ""
        if rival is not None:
            try:
                theirs = rival()
                forget_peak(device)
                theirs()
                works["theirs"] = theirs
            except (Unavailable, KandinskyError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                # what the other library cannot do is stated in its column; ours is measured all the same
                reason = f"{error}".strip().splitlines()[0]
        timings = interleaved(works, repeats=self.repeats, device=device, on_run=self.on_run)
        mine = timings["ours"]
        against = self._against(mine, timings.get("theirs"), reason) if rival is not None else None
        stage = Stage(name, mine.seconds, mine.median_s, mine.spread_s, flops, mine.peak_bytes, against)
        return stage, mine.result

    def _against(self, mine: Timing, theirs: Timing | None, reason: str) -> Rival:
        assert self.against is not None
        if theirs is None:
            return Rival(self.against, reason=reason)
        return Rival(self.against, theirs.seconds, ratio(mine.seconds, theirs.seconds), theirs.peak_bytes)

    def _loop_flops(
        self, net: Any, text: TextEmbeddings, negative: TextEmbeddings | None, kept: float | None = None
    ) -> int | None:
        flops = self.pipe.card.part("dit").flops
        if flops is None:
            return None
        latent = self.resolved.latent.as_tuple()[:3]
        passes = [states.tokens_BLC.shape[1] for states in (text, negative) if states is not None]
        return self.resolved.steps * sum(flops()(net.params, latent, tokens, kept) for tokens in passes)

    def _made_up_states(self, net: Any) -> tuple[TextEmbeddings, TextEmbeddings | None]:
        params = self.pipe.card.dit.params
        if not {"in_text_dim", "context_dim"} & params.keys():  # only its text encoder knows how wide they are
            return self.pipe.encode([self.resolved])
        generator = torch.Generator().manual_seed(0)

        def states() -> TextEmbeddings:
            width, pooled = net.params.text_widths
            tokens = torch.randn(1, PROMPT_TOKENS, width, generator=generator)
            return TextEmbeddings(tokens, torch.randn(1, pooled, generator=generator))

        return states(), states() if Guidance(self.resolved.guidance).is_on else None


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
