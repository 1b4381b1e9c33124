"""Recipes of kind `self-forcing`: a causal student that makes a clip chunk by chunk, each after what it made before.

Trained on its own predictions as context, as it will be sampled, so that errors do not pile up. A gradient goes through
the last step of each chunk alone. Chunks see earlier frames only, since later ones are not there yet.

Source: Self Forcing (arXiv 2506.08009); the loss `regression` is the first stage of CausVid (arXiv 2412.07772) on the
student's own states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.model.denoiser import Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.distil.dmd import Matching
from kandinsky.train.distil.teacher import Distilling, DistilRecipe, Teacher, landing
from kandinsky.train.distil.teacher import distance as distance_of
from kandinsky.train.distil.walk import StudentSteps, Walk
from kandinsky.train.model_recipe import Batch, Batches, by_time, learning
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.times import Times

# (noisy frames so far, times, what is told) -> prediction
Asked = Callable[[Tensor, Tensor, Given], Tensor]


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How a clip is made along time.

    Attributes:
        chunk: Latent frames that are made together.
        context: How the network is told of earlier frames: `times`, by a time of each frame; `frames`, as frames that
            are known, for networks with condition channels.
        context_noise: Under `times`, the time that earlier frames are noised to, against errors that pile up.
    """

    chunk: int = field(default=3, metadata={"least": 1})
    context: Literal["times", "frames"] = "times"
    context_noise: float = field(default=0.0, metadata={"least": 0, "most": 1})


@dataclass(frozen=True, slots=True)
class ForcingSettings:
    """What the student's clips are held against.

    Attributes:
        loss: `dmd`, the distribution of the teacher, which sees whole clips; `regression`, where the teacher would end
            from the student's own state and context.
        parts: Of `regression`, the teacher's steps on that way.
        every: Of `dmd`, the student is updated in every so many-th step.
        least, most: Of `dmd`, scores are compared at times between these.
    """

    loss: Literal["dmd", "regression"] = "dmd"
    parts: int = field(default=8, metadata={"least": 1})
    every: int = field(default=5, metadata={"least": 1})
    least: float = field(default=0.02, metadata={"least": 0, "most": 1})
    most: float = field(default=0.98, metadata={"least": 0, "most": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfForcingRecipe(DistilRecipe):
    """The keys of a recipe; see ``DistilRecipe``.

    Attributes:
        student_steps: Of each chunk.
        chunks: See ``ChunkSettings``.
        forcing: See ``ForcingSettings``.
        times: Of `dmd`, at which the network of the student's score is trained and compared.
    """

    student_steps: StudentSteps = field(default_factory=StudentSteps)
    chunks: ChunkSettings = field(default_factory=ChunkSettings)
    forcing: ForcingSettings = field(default_factory=ForcingSettings)
    times: Times = field(default_factory=lambda: Times("uniform"))

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        return ("student", "fake") if self.forcing.loss == "dmd" else ("student",)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The frames that are made together: their last step, and what was there before.

    Attributes:
        noisy_BTHWC: State before the last step.
        t: Its time, [B].
        clean_BTHWC: What the network made of it.
        prediction: Of the network.
        done_BTHWC: Earlier frames, as the network saw them.
    """

    noisy_BTHWC: Tensor
    t: Tensor
    clean_BTHWC: Tensor
    prediction: Tensor
    done_BTHWC: Tensor


class Rollout:
    """Makes clips chunk by chunk.

    Args:
        walk: The steps of each chunk.
        settings: See ``ChunkSettings``.
    """

    def __init__(self, walk: Walk, settings: ChunkSettings) -> None:
        self.walk, self.settings, self.denoising = walk, settings, walk.denoising

    def ask(self, asked: Asked, done: Tensor, noisy: Tensor, t: Tensor, text: TextEmbeddings) -> Tensor:
        """The prediction for frames at times t [B] after earlier ones."""
        count = done.shape[1]
        if not count:
            return asked(noisy, t, Given(text))
        frames = torch.cat((done, noisy), dim=1)
        if self.settings.context == "frames":
            mask = torch.zeros(len(t), frames.shape[1], 1, 1, 1, dtype=torch.bool, device=noisy.device)
            mask[:, :count] = True
            track = self.denoising.track
            return asked(frames, t, Given(text, Known({track: frames}, {track: mask})))[:, count:]
        before = torch.full_like(t, self.settings.context_noise)[:, None].expand(-1, count)
        each = torch.cat((before, t[:, None].expand(-1, noisy.shape[1])), dim=1)
        return asked(frames, each, Given(text))[:, count:]

    def chunks(
        self,
        asked: Asked,
        start: Tensor,
        fresh: Callable[[int], Tensor],
        text: TextEmbeddings,
        *,
        last: int | None = None,
    ) -> list[Chunk]:
        """Make a clip.

        Args:
            asked: The network; a gradient goes through its last step of each chunk.
            start: Noise of the whole clip.
            fresh: Noise of the whole clip after a step, for samplers that take some.
            text: Of the prompts.
            last: The step that is each chunk's last one; that of the sampler where absent.
        """
        walk, made = self.walk, list[Chunk]()
        last = walk.steps - 1 if last is None else last
        done = start[:, :0]
        for begin in range(0, start.shape[1], self.settings.chunk):
            own = slice(begin, begin + self.settings.chunk)
            x = start[:, own]
            for number in range(last + 1):
                t = walk.times[number].to(x.device).expand(len(x))
                if number < last:
                    with torch.no_grad():
                        x = walk.after(
                            number,
                            self.ask(asked, done, x, t, text),
                            x,
                            lambda number=number, own=own: fresh(number)[:, own],  # type: ignore[misc]
                        )
            prediction = self.ask(asked, done, x, t, text)
            clean = self.denoising.clean_of(prediction, x, t)
            made.append(Chunk(x, t, clean, prediction, done))
            done = torch.cat((done, self._as_context(clean.detach(), start[:, own])), dim=1)
        return made

    def _as_context(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Frames that are done, as later chunks see them."""
        level = self.settings.context_noise
        if self.settings.context == "frames" or not level:
            return clean
        return self.denoising.noised(clean, noise, torch.tensor(level, device=clean.device))

    @torch.no_grad()
    def sampled(self, asked: Asked, draws_NBTHWC: Tensor, text: TextEmbeddings) -> Tensor:
        """Whole clips, from as many draws as the sampler needs."""
        rules, times = self.walk.rules, self.walk.times
        start, fresh = rules.start(draws_NBTHWC, times), draws_NBTHWC[rules.unused + 1 :]
        made = self.chunks(asked, start, lambda number: fresh[number], text)
        return torch.cat([chunk.clean_BTHWC for chunk in made], dim=1)


class SelfForcingObjective(Objective):
    """A causal student on its own predictions.

    Args:
        student: What learns.
        teacher: Of whole clips for `dmd`; for `regression` one that continues clips as the student does.
        batches: Gives a portion of the batch of a step; known frames are not used, a clip begins with nothing.
        rollout: How the student makes clips.
        settings: See ``ForcingSettings``.
        matching: Of `dmd`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        batches: Batches,
        rollout: Rollout,
        settings: ForcingSettings,
        matching: Matching | None = None,
    ) -> None:
        self.student, self.teacher, self.batches, self.rollout = student, teacher, batches, rollout
        self.settings, self.matching = settings, matching
        self.denoising: Denoising = rollout.denoising

    @property
    def updates(self) -> tuple[Update, ...]:
        if self.matching is None:
            return (Update("student", self.student),)
        return (
            Update("student", self.student, self.settings.every),
            Update("fake", self.matching.fake, averaged=False),
        )

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher.network}

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch:
        batch = self.batches(step, rng, portion)
        return Batch(batch.clean_BTHWC, Given(batch.given.text), batch.numbers, batch.total)

    def loss(self, update: str, batch: Batch, rng: Rng) -> Loss:
        batch = batch.to(works_on(self.student))
        if self.matching is None:
            return self._regression(batch, rng)
        if update == "fake":
            with torch.no_grad():
                made = self._made(batch, rng)
            return Loss(self.matching.fake_loss(_joined(made), batch, rng), len(batch.numbers))
        return self.matching.student_loss(_joined(self._made(batch, rng)), batch, rng)

    def _made(self, batch: Batch, rng: Rng) -> list[Chunk]:
        walk = self.rollout.walk
        return self.rollout.chunks(
            partial(self.denoising.predict, self.student),
            walk.begin(batch, rng),
            lambda number: batch.noise(rng, f"fresh {number}"),
            batch.given.text,
            last=int(walk.drawn(rng, [-1], "last")),
        )

    def _regression(self, batch: Batch, rng: Rng) -> Loss:
        losses, timed, made = [], list[Timed](), self._made(batch, rng)
        for chunk in made:
            x = chunk.noisy_BTHWC
            for part in range(self.settings.parts):
                t, to = (chunk.t * (1 - n / self.settings.parts) for n in (part, part + 1))
                if part:
                    t = self.denoising.times(t)
                to = self.denoising.times(to) if part + 1 < self.settings.parts else torch.zeros_like(to)
                prediction = self.rollout.ask(self.teacher.predict, chunk.done_BTHWC, x, t, batch.given.text)
                x = self.denoising.moved(prediction, x, t, to)
            aim = landing(self.denoising, chunk.noisy_BTHWC, chunk.t, x, torch.zeros_like(chunk.t))
            losses.append(distance_of(self.denoising, chunk.prediction, aim, chunk.t, batch))
            own = by_time(chunk.prediction, aim, chunk.t, batch)
            timed += [one._replace(weight=1 / len(made)) for one in own]
        return Loss(torch.stack(losses).mean(), len(batch.numbers), timed=timed)


def _joined(chunks: list[Chunk]) -> Tensor:
    return torch.cat([chunk.clean_BTHWC for chunk in chunks], dim=1)


def train(recipe: SelfForcingRecipe, run: Run) -> Path:
    """Distil a model to a causal student.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be distilled this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
    """
    if recipe.samples is not None:
        raise RequestError("`samples`: a causal student is not sampled as its teacher is: leave them out")
    ready = Distilling(recipe, run)
    denoising, settings = ready.ready.denoising, recipe.forcing
    matching = None
    if settings.loss == "dmd":
        fake = learning(ready.ready.copy())
        matching = Matching(denoising, ready.teacher, fake, recipe.times, least=settings.least, most=settings.most)
    rollout = Rollout(Walk(denoising, recipe.student_steps), recipe.chunks)
    return ready.train(
        SelfForcingObjective(ready.student, ready.teacher, ready.ready.batches, rollout, settings, matching)
    )
