"""Recipes of kind `self-forcing`: a causal student that makes a clip chunk by chunk, each after what it made before.

Trained on its own predictions as context, as it will be sampled, so that errors do not pile up. A gradient goes through
the last step of each chunk alone. Chunks see earlier frames only, since later ones are not there yet.

Source: Self Forcing (arXiv 2506.08009); the loss `path` is the first stage of CausVid (arXiv 2412.07772), `regression`
the same on the student's own states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kandinsky.diffusion.roll import CachedPast, Finished, Past, WholePast, as_context
from kandinsky.errors import RequestError
from kandinsky.model.denoiser import Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.key_values import KeyValues
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

# (noisy frames, times, what is told) -> prediction; with `memory=…` where it remembers earlier chunks
Asked = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How a clip is made along time.

    Attributes:
        chunk: Latent frames that are made together.
        context: How the network is told of earlier frames: `times`, by a time of each frame; `frames`, as frames that
            are known, for networks with condition channels; `cache`, by the keys and values they left, for causal
            attention, under which it says the same as `times` in less work.
        context_noise: But for `frames`, the time that earlier frames are noised to, against errors that pile up.
    """

    chunk: int = field(default=3, metadata={"least": 1})
    context: Literal["times", "frames", "cache"] = "times"
    context_noise: float = field(default=0.0, metadata={"least": 0, "most": 1})


@dataclass(frozen=True, slots=True)
class ForcingSettings:
    """What the student's clips are held against.

    Attributes:
        loss: `dmd`, the distribution of the teacher, which sees whole clips; `regression`, where the teacher would end
            from the student's own state and context; `path`, for a start: the student is shown chunks from several
            places of the teacher's way to a whole clip, after clean ones, and learns that clip.
        parts: The teacher's steps to the end under `regression`; within each of the student's under `path`.
        every: Of `dmd`, the student is updated in every so many-th step.
        least, most: Of `dmd`, scores are compared at times between these.
    """

    loss: Literal["dmd", "regression", "path"] = "dmd"
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
        attention: The student's visual self attention, such as `causal:frames=3,reach=2`; the model's own where absent,
            which the teacher has in any case.
    """

    student_steps: StudentSteps = field(default_factory=StudentSteps)
    chunks: ChunkSettings = field(default_factory=ChunkSettings)
    forcing: ForcingSettings = field(default_factory=ForcingSettings)
    times: Times = field(default_factory=lambda: Times("uniform"))
    attention: str | None = None

    def __post_init__(self) -> None:
        DistilRecipe.__post_init__(self)
        if self.attention is not None:
            AttentionSpec().chosen(self.attention)

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


class KnownPast(WholePast):
    """Shows the network earlier frames as frames that are known.

    Args:
        asked: The network.
        text: Of the prompts.
        track: Of the state.
    """

    def __init__(self, asked: Asked, text: TextEmbeddings, track: str) -> None:
        super().__init__(lambda x, t, begin: asked(x, t, Given(text)))
        self.asked, self.text, self.track = asked, text, track

    def ask(self, x_BTHWC: Tensor, t: Tensor, begin: int) -> Tensor:
        """As ``Past``."""
        if not self.chunks:
            return super().ask(x_BTHWC, t, begin)
        frames = torch.cat([*(chunk.frames_BTHWC for chunk in self.chunks), x_BTHWC], dim=1)
        count = frames.shape[1] - x_BTHWC.shape[1]
        mask = torch.zeros(len(t), frames.shape[1], 1, 1, 1, dtype=torch.bool, device=x_BTHWC.device)
        mask[:, :count] = True
        return self.asked(frames, t, Given(self.text, Known({self.track: frames}, {self.track: mask})))[:, count:]


class Rollout:
    """Makes clips chunk by chunk, by the roll-out of generation (``diffusion/roll.py``).

    Args:
        walk: The steps of each chunk.
        settings: See ``ChunkSettings``.
        attention: The student's, where it is causal.

    Raises:
        RequestError: Chunks are not those of the attention, or nothing can be remembered under it.
    """

    def __init__(self, walk: Walk, settings: ChunkSettings, attention: AttentionSpec | None = None) -> None:
        self.walk, self.settings, self.denoising = walk, settings, walk.denoising
        self.attention = attention
        is_causal = attention is not None and attention.type == "causal"
        if settings.context == "cache" and not is_causal:
            raise RequestError("`chunks.context` is `cache`, and attention is not causal: choose it, or `times`")
        if is_causal and attention.frames != settings.chunk:  # type: ignore[union-attr]
            raise RequestError(
                f"`chunks.chunk` is {settings.chunk}, and chunks of attention `{attention}` are others: give both one "
                "length"
            )

    def past(self, asked: Asked, text: TextEmbeddings) -> Past:
        """The network with nothing before the first chunk."""
        level = self.settings.context_noise
        if self.settings.context == "frames":
            return KnownPast(asked, text, self.denoising.track)
        if self.settings.context == "times":
            return WholePast(lambda x, t, begin: asked(x, t, Given(text)), level)
        assert self.attention is not None
        memory = KeyValues(self.attention)
        return CachedPast(lambda x, t, begin: asked(x, t.expand(len(x)), Given(text), memory=memory), [memory], level)

    def after(self, asked: Asked, done_BTHWC: Tensor, text: TextEmbeddings) -> Past:
        """The network after finished frames; it remembers nothing and is shown them."""
        kind: Literal["frames", "times"] = "frames" if self.settings.context == "frames" else "times"
        past = Rollout(self.walk, replace(self.settings, context=kind), self.attention).past(asked, text)
        if done_BTHWC.shape[1]:
            past.keep(Finished(0, done_BTHWC))
        return past

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
        past, done = self.past(asked, text), start[:, :0]
        for begin in range(0, start.shape[1], self.settings.chunk):
            own = slice(begin, begin + self.settings.chunk)
            x = start[:, own]
            for number in range(last + 1):
                t = walk.times[number].to(x.device).expand(len(x))
                if number < last:
                    with torch.no_grad():
                        x = walk.after(
                            number,
                            past.ask(x, t, begin),
                            x,
                            lambda number=number, own=own: fresh(number)[:, own],  # type: ignore[misc]
                        )
            prediction = past.ask(x, t, begin)
            clean = self.denoising.clean_of(prediction, x, t)
            made.append(Chunk(x, t, clean, prediction, done))
            if own.stop < start.shape[1]:
                seen = self.as_context(clean.detach(), start[:, own])
                past.keep(Finished(begin, seen))
                done = torch.cat((done, seen), dim=1)
        return made

    def as_context(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Frames that are done, as later chunks see them."""
        level = 0.0 if self.settings.context == "frames" else self.settings.context_noise
        return as_context(self.denoising.noised, clean, noise, level)

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
        if self.settings.loss == "path":
            return self._path(batch, rng)
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
            x, begin = chunk.noisy_BTHWC, chunk.done_BTHWC.shape[1]
            past = self.rollout.after(self.teacher.predict, chunk.done_BTHWC, batch.given.text)
            for part in range(self.settings.parts):
                t, to = (chunk.t * (1 - n / self.settings.parts) for n in (part, part + 1))
                if part:
                    t = self.denoising.times(t)
                to = self.denoising.times(to) if part + 1 < self.settings.parts else torch.zeros_like(to)
                prediction = past.ask(x, t, begin)
                x = self.denoising.moved(prediction, x, t, to)
            aim = landing(self.denoising, chunk.noisy_BTHWC, chunk.t, x, torch.zeros_like(chunk.t))
            losses.append(distance_of(self.denoising, chunk.prediction, aim, chunk.t, batch))
            own = by_time(chunk.prediction, aim, chunk.t, batch)
            timed += [one._replace(weight=1 / len(made)) for one in own]
        return Loss(torch.stack(losses).mean(), len(batch.numbers), timed=timed)

    def _path(self, batch: Batch, rng: Rng) -> Loss:
        """The teacher's way from noise to a whole clip; chunks from any places of it, after clean ones."""
        walk, parts, chunk = self.rollout.walk, self.settings.parts, self.rollout.settings.chunk
        start = batch.noise(rng, "path")
        states, times = [start], walk.refined(parts)
        for at, to in pairwise(times):
            t, to = (one.to(start.device).expand(len(start)) for one in (at, to))
            prediction = self.teacher.predict(states[-1], t, batch.given)
            states.append(self.denoising.moved(prediction, states[-1], t, to))
        clean, frames = states[-1], start.shape[1]
        count = -(-frames // chunk)
        noisy, t_BT, before_BT = [], [], []
        for row, number in enumerate(batch.numbers):
            generator = rng.example(number, "place")
            first = int(torch.randint(count, (), generator=generator))
            steps = torch.randint(walk.steps, (count,), generator=generator).repeat_interleave(chunk)[:frames]
            before = torch.arange(frames) < first * chunk
            seen = self.rollout.as_context(clean[row], start[row])
            places = [states[int(step) * parts][row, frame] for frame, step in enumerate(steps)]
            picked = torch.stack([seen[n] if before[n] else place for n, place in enumerate(places)])
            noisy.append(picked)
            t_BT.append(torch.where(before, self.rollout.settings.context_noise, walk.times[steps]))
            before_BT.append(before)
        x, t, mask = torch.stack(noisy), torch.stack(t_BT).to(start), torch.stack(before_BT).to(start.device)
        predicted = self.denoising.predict(self.student, x, t, batch.given)
        end = torch.where(mask, torch.ones_like(t), t)  # nothing is learned of what is before
        target = landing(self.denoising, x, end, clean, torch.zeros_like(t))
        known = Known({self.denoising.track: clean}, {self.denoising.track: mask[..., None, None, None]})
        learned = replace(batch, given=Given(batch.given.text, known))
        timed = by_time(predicted, target, t, learned)
        return Loss(distance_of(self.denoising, predicted, target, end, learned), len(batch.numbers), timed=timed)


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
    own = denoising.context.attention_of(denoising.job)
    attention = own if recipe.attention is None else own.chosen(recipe.attention)
    if attention.type not in denoising.context.part("dit").attention:
        raise RequestError(f"`attention` `{attention}` is not for network `{denoising.context.card.dit.kind}`")
    matching = None
    if settings.loss == "dmd":
        fake = learning(ready.ready.copy())
        matching = Matching(denoising, ready.teacher, fake, recipe.times, least=settings.least, most=settings.most)
    rollout = Rollout(Walk(denoising.under(attention), recipe.student_steps), recipe.chunks, attention)
    return ready.train(
        SelfForcingObjective(ready.student, ready.teacher, ready.ready.batches, rollout, settings, matching)
    )
