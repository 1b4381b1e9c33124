"""Recipes of kind `dmd2`: the student's latents get the distribution that the teacher's score describes.

A second network learns the score of what the student makes; where both scores differ, the student is moved. A
discriminator on the teacher's features may be added.

Source: DMD2 (arXiv 2405.14867): two time scales, backward simulation, optional adversarial loss. There the
discriminator looks through the network of the student's score; here through the frozen teacher, as in ``ladd``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kandinsky.train import loop
from kandinsky.train.denoising import Denoising
from kandinsky.train.distil.discriminator import Alarm, Discriminator, hinge, mean
from kandinsky.train.distil.ladd import MOSTLY_CLEAN, made_by
from kandinsky.train.distil.teacher import Distilling, DistilRecipe, Teacher, distance, means_of
from kandinsky.train.distil.walk import StudentSteps, Walk
from kandinsky.train.model_recipe import Batch, Batches, learning
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update, at_times
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.times import Times


@dataclass(frozen=True, slots=True)
class DmdSettings:
    """How distributions are matched.

    Attributes:
        every: The student is updated in every so many-th step, the other networks in each.
        simulate: Whether the student learns from states that it reached itself, instead of noised data.
        least, most: Times at which the scores are compared lie between these.
        gan: Weight of the adversarial loss; 0 does without a discriminator.
        renoise: Noise before the discriminator.
    """

    every: int = field(default=5, metadata={"least": 1})
    simulate: bool = True
    least: float = field(default=0.02, metadata={"least": 0, "most": 1})
    most: float = field(default=0.98, metadata={"least": 0, "most": 1})
    gan: float = field(default=0.0, metadata={"least": 0})
    renoise: Times = MOSTLY_CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class DmdRecipe(DistilRecipe):
    """The keys of a recipe; see ``DistilRecipe``.

    Attributes:
        student_steps: How the student will be sampled.
        matching: See ``DmdSettings``.
        times: At which the network of the student's score is trained and compared.
    """

    student_steps: StudentSteps = field(default_factory=StudentSteps)
    matching: DmdSettings = field(default_factory=DmdSettings)
    times: Times = field(default_factory=lambda: Times("uniform"))

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        return ("student", "fake", *(("discriminator",) if self.matching.gan else ()))


class Matching:
    """The distribution matching loss, and that of the score it needs.

    Args:
        denoising: The door of all networks.
        teacher: Its score is the aim.
        fake: Learns the score of what the student makes; begins as the teacher.
        times: Where scores are learned and compared.
        least: No earlier time.
        most: No later time.
    """

    def __init__(
        self, denoising: Denoising, teacher: Teacher, fake: nn.Module, times: Times, *, least: float, most: float
    ) -> None:
        self.denoising, self.teacher, self.fake, self.times = denoising, teacher, fake, times
        self.least, self.most = least, most

    def student_loss(self, made_BTHWC: Tensor, batch: Batch, rng: Rng) -> Loss:
        """Its gradient is (made by the student − asked by the teacher), both as clean latents, over their distance."""
        with torch.no_grad():
            noisy, t = self._noised(made_BTHWC, batch, rng, "match")
            real = self.denoising.clean_of(self.teacher.predict(noisy, t, batch.given), noisy, t)
            predicted = self.denoising.predict(self.fake, noisy, t, batch.given)
            fake = self.denoising.clean_of(predicted, noisy, t)
            scale = (made_BTHWC - real).abs().flatten(1).mean(1).clamp_min(1e-4)
            aim = made_BTHWC - (fake - real) / scale[:, None, None, None, None]
        each = 0.5 * means_of((made_BTHWC - aim).square(), batch)
        return Loss(each.mean(), len(each), timed=at_times(t, each.detach()))

    def fake_loss(self, made_BTHWC: Tensor, batch: Batch, rng: Rng) -> Tensor:
        """Denoising of what the student makes."""
        drawn = self.times.draw(rng, batch.numbers, batch.total, shift=self.denoising.shift, stream="fake")
        t = self.denoising.times(drawn.clamp(self.least, self.most)).to(made_BTHWC.device)
        noise = batch.noise(rng, "fake noise")
        predicted = self.denoising.predict(self.fake, self.denoising.noised(made_BTHWC, noise, t), t, batch.given)
        return distance(self.denoising, predicted, self.denoising.target(made_BTHWC, noise, t), t, batch)

    def _noised(self, made: Tensor, batch: Batch, rng: Rng, stream: str) -> tuple[Tensor, Tensor]:
        drawn = self.times.draw(rng, batch.numbers, batch.total, shift=self.denoising.shift, stream=stream)
        t = self.denoising.times(drawn.clamp(self.least, self.most)).to(made.device)
        return self.denoising.noised(made, batch.noise(rng, f"{stream} noise"), t), t


class DmdObjective(Objective):
    """A student, the score of what it makes, and perhaps a discriminator.

    Args:
        student: What learns.
        matching: Scores and their networks.
        batches: Gives a portion of the batch of a step.
        walk: How the student will be sampled.
        settings: See ``DmdSettings``.
        discriminator: Where ``settings.gan`` is above 0.
    """

    def __init__(
        self,
        student: nn.Module,
        matching: Matching,
        batches: Batches,
        walk: Walk,
        settings: DmdSettings,
        discriminator: Discriminator | None = None,
    ) -> None:
        self.student, self.matching, self.batches, self.walk = student, matching, batches, walk
        self.settings, self.discriminator = settings, discriminator
        self.denoising, self.alarm = matching.denoising, Alarm()

    @property
    def updates(self) -> tuple[Update, ...]:
        two = (
            Update("student", self.student, self.settings.every),
            Update("fake", self.matching.fake, averaged=False),
        )
        if self.discriminator is None:
            return two
        return (*two, Update("discriminator", self.discriminator, averaged=False))

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.matching.teacher.network}

    @property
    def carried(self) -> Mapping[str, nn.Module]:
        return {} if self.discriminator is None else {"alarm": self.alarm}

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch:
        return self.batches(step, rng, portion)

    def made(self, batch: Batch, rng: Rng) -> Tensor:
        """Clean latents of the student."""
        return made_by(self.student, self.walk, batch, rng, simulate=self.settings.simulate).clean_BTHWC

    def loss(self, update: str, batch: Batch, rng: Rng) -> Loss:
        batch = batch.to(works_on(self.student))
        weight = len(batch.numbers)
        if update == "student":
            made = self.made(batch, rng)
            loss = self.matching.student_loss(made, batch, rng)
            if self.discriminator is None:
                return loss
            fooled = mean(self._logits(made, batch, rng))
            return replace(loss, value=loss.value - self.settings.gan * fooled)
        with torch.no_grad():
            made = self.made(batch, rng)
        if update == "fake":
            return Loss(self.matching.fake_loss(made, batch, rng), weight)
        real, fake = self._logits(batch.clean_BTHWC, batch, rng), self._logits(made, batch, rng)
        return Loss(hinge(real, fake), weight, self.alarm(real, fake))

    def _logits(self, clean: Tensor, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        assert self.discriminator is not None
        drawn = self.settings.renoise.draw(
            rng, batch.numbers, batch.total, shift=self.denoising.shift, stream="renoise"
        )
        t = self.denoising.as_noisy(drawn).to(clean.device)
        noisy = self.denoising.noised(clean, batch.noise(rng, "renoise"), t)
        found: dict[str, Tensor] = self.discriminator(noisy, t, batch.given)
        return found


def train(recipe: DmdRecipe, run: Run) -> Path:
    """Distil a model by distribution matching.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be distilled this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
        BackendError: An adversarial loss is asked for, and the model's family has no discriminator heads.
    """
    ready = Distilling(recipe, run)
    denoising, settings = ready.ready.denoising, recipe.matching
    fake = learning(ready.ready.copy())
    discriminator = None
    if settings.gan:
        with loop.seeded(recipe.loop.seed):
            discriminator = Discriminator(denoising, ready.teacher.network)
    matching = Matching(denoising, ready.teacher, fake, recipe.times, least=settings.least, most=settings.most)
    walk = Walk(denoising, recipe.student_steps)
    objective = DmdObjective(ready.student, matching, ready.ready.batches, walk, settings, discriminator)
    return ready.train(objective, recipe.student_steps)
