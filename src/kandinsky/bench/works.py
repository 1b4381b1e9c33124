"""The stages of a generation as a benchmark runs them: each hands its result to the next.

What a stage takes from one that was left out is made up, and so is what a request has to bring: an image, a clip.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky.bench.flops import count_flops
from kandinsky.bench.timing import Timing, interleaved, ratio
from kandinsky.diffusion.guidance import Guidance
from kandinsky.engine.pipeline import GenerationPipeline, VideoToAudioPipeline
from kandinsky.engine.request import Job
from kandinsky.engine.rival import Side, Unavailable
from kandinsky.engine.stages import Made
from kandinsky.engine.stages import Stage as EngineStage
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.card import Card, sound_of
from kandinsky.model.cost import PROMPT_TOKENS
from kandinsky.model.values import Soundtrack, TextEmbeddings, Video
from kandinsky.ops.nabla import KeptBlocks
from kandinsky.runtime.meter import forget_peak

CLIP_FPS, CLIP_SIDE = 8, 96  # of a clip that is made up: encoders bring frames to their own size


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


class _Work:
    """What all stages share: each is measured as often as asked, beside the other library if one was named."""

    def __init__(
        self,
        pipe: GenerationPipeline | VideoToAudioPipeline,
        job: Job,
        repeats: int,
        against: str | None,
        on_run: Callable[[int, int], None] | None,
    ) -> None:
        self.context, self.job = pipe.context, job
        self.repeats, self.against, self.on_run = repeats, against, on_run
        self.rival = Side(against, pipe, job) if against and isinstance(pipe, GenerationPipeline) else None

    def _theirs(self, part: str, *inputs: Any) -> Callable[[], Callable[[], Any]] | None:
        """A callable that prepares the other library's work; None if no comparison was asked for."""
        side, name = self.rival, self.against
        if side is None or name is None:
            return None

        def ready() -> Callable[[], Any]:
            rivals = self.context.card.part(part).rivals
            if name not in rivals:
                raise Unavailable(f"`{name}` has nothing like `{self.context.card.component(part).kind}`")
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
        device = self.context.placement.device("dit")
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


class ClipWork(_Work):
    """The stages of clips and images; noise stands in for the result of a stage left out."""

    def __init__(
        self,
        pipe: GenerationPipeline,
        job: Job,
        repeats: int,
        against: str | None,
        on_run: Callable[[int, int], None] | None,
    ) -> None:
        super().__init__(pipe, job, repeats, against, on_run)
        self.pipe = pipe
        self.states: tuple[TextEmbeddings, TextEmbeddings | None] | None = None
        self.latents: Tensor | None = None
        self.frames: Any = None

    def text(self) -> Stage:
        stage, self.states = self._stage("text", lambda: self.pipe.encode([self.job]), self._theirs("text"), None)
        return stage

    def dit(self) -> Stage:
        noise, fresh = self.pipe.noise([self.job]), self.pipe.fresh_noise([self.job])
        known = self.pipe.known([self.job]) if self.job.conditions else None
        with self.pipe.placement.hold("dit") as net:
            text, negative = self.states or self._made_up_states(net)
            kept = KeptBlocks()
            if self.pipe.attention_of(self.job).type == "nabla":  # what it computes is known only after a run
                self.pipe.sample(noise, text, negative, self.job, known=known, fresh_NBTHWC=fresh, kept=kept)
            flops = self._loop_flops(net, text, negative, kept.mean())
        stage, self.latents = self._stage(
            "dit",
            lambda: self.pipe.sample(noise, text, negative, self.job, known=known, fresh_NBTHWC=fresh),
            self._theirs("dit", noise, text, negative),
            flops,
        )
        return replace(stage, kept_blocks=kept.mean())

    def vae(self) -> Stage:
        latents = self.pipe.noise([self.job]) if self.latents is None else self.latents
        stage, self.frames = self._stage("vae", lambda: self.pipe.decode(latents), self._theirs("vae", latents), None)
        return stage

    def write(self) -> Stage:
        from kandinsky.media.video import write_video

        frames = self.pipe.decode(self.pipe.noise([self.job])) if self.frames is None else self.frames
        video = Video(frames[0], fps=self.job.fps, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            stage, _ = self._stage("write", lambda: write_video(video, Path(folder) / "bench.mp4"), None, 0)
        return stage

    def _loop_flops(
        self, net: Any, text: TextEmbeddings, negative: TextEmbeddings | None, kept: float | None = None
    ) -> int | None:
        flops = self.pipe.card.part("dit").flops
        if flops is None:
            return None
        latent = self.job.latent.as_tuple()[:3]
        passes = [states.tokens_BLC.shape[1] for states in (text, negative) if states is not None]
        return self.job.steps * sum(flops()(net.params, latent, tokens, kept) for tokens in passes)

    def _made_up_states(self, net: Any) -> tuple[TextEmbeddings, TextEmbeddings | None]:
        params = self.pipe.card.dit.params
        if not {"in_text_dim", "context_dim"} & params.keys():  # only its text encoder knows how wide they are
            return self.pipe.encode([self.job])
        generator = torch.Generator().manual_seed(0)

        def states() -> TextEmbeddings:
            width, pooled = net.params.text_widths
            tokens = torch.randn(1, PROMPT_TOKENS, width, generator=generator)
            return TextEmbeddings(tokens, torch.randn(1, pooled, generator=generator))

        return states(), states() if Guidance(self.job.guidance).is_on else None


class SoundWork(_Work):
    """The stages of a task that are its family's own: those before a stage run once, if they are not measured."""

    def __init__(
        self,
        pipe: VideoToAudioPipeline,
        job: Job,
        repeats: int,
        against: str | None,
        on_run: Callable[[int, int], None] | None,
    ) -> None:
        super().__init__(pipe, job, repeats, against, on_run)
        self.pipe = pipe
        stages, self.finish = pipe.card.does.stages()
        self.stages: dict[str, EngineStage] = {stage.needs[0]: stage for stage in stages}
        self.made: dict[str, Made] = {}
        self.results: list[Soundtrack] = []

    def text(self) -> Stage:
        return self._one("text")

    def dit(self) -> Stage:
        return self._one("dit")

    def vae(self) -> Stage:
        before = self._before(None)
        stage, self.results = self._stage("vae", lambda: self._heard(before), self._theirs("vae"), None)
        return stage

    def write(self) -> Stage:
        (result,) = self.results or self._heard(self._before(None))
        with tempfile.TemporaryDirectory() as folder:
            stage, _ = self._stage("write", lambda: result.save(Path(folder) / "bench.wav"), None, 0)
        return stage

    def _heard(self, made: Made) -> list[Soundtrack]:
        return [one for one in self.finish.results(self.context, made) if isinstance(one, Soundtrack)]

    def _one(self, name: str) -> Stage:
        before = self._before(name)
        stage, self.made[name] = self._stage(name, lambda: self._run(name, before), self._theirs(name), None)
        return stage

    def _before(self, name: str | None) -> Made:
        """What the stages before one leave; before the last for None."""
        made = Made((self.job,))
        for other in self.stages:
            if other == name:
                break
            if other not in self.made:
                self.made[other] = self._run(other, made)
            made = self.made[other]
        return made

    def _run(self, name: str, made: Made) -> Made:
        return self.pipe.drive(self.stages[name](self.context, made), None)


def work_of(
    pipe: GenerationPipeline | VideoToAudioPipeline,
    job: Job,
    *,
    repeats: int,
    against: str | None,
    on_run: Callable[[int, int], None] | None,
) -> ClipWork | SoundWork:
    """The stages of a model's task."""
    if isinstance(pipe, VideoToAudioPipeline):
        return SoundWork(pipe, job, repeats, against, on_run)
    return ClipWork(pipe, job, repeats, against, on_run)


def brought(card: Card, request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request has to bring, made up: a clip to make sound for, an image and what of it is repainted.

    Args:
        card: The model.
        request: Fields of ``Request``; of them only the length and size are looked at.

    Raises:
        RequestError: The size is given by one side alone.
    """
    task, found = card.does, dict[str, Any]()
    if task.video:
        seconds = request.get("seconds") or sound_of(card).window_s
        frames = np.zeros((max(1, round(seconds * CLIP_FPS)), CLIP_SIDE, CLIP_SIDE, 3), np.uint8)
        # shades of grey that change: encoders may leave out frames that are alike
        frames += (np.arange(len(frames), dtype=np.uint8) % 2 * 128)[:, None, None, None]
        found["video"] = Video(frames, fps=len(frames) / seconds)
    if task.image == "required" or (task.image == "optional" and task.image_is == "frames"):
        width, height = request.get("width"), request.get("height")
        if (width is None) != (height is None):
            raise RequestError("give either both sides or none")
        if width is None or height is None:
            width, height = map(int, card.clip.default_size.split("x"))
        found["image"] = Image.linear_gradient("L").convert("RGB").resize((width, height))
        if task.mask:
            found["mask"] = Image.linear_gradient("L").resize((width, height)).point(lambda shade: 255 * (shade > 127))
    return found
