"""Recipes of kind `ladd`: adversarial distillation in latent space to a few steps.

The student makes a clean latent from a noisy one in one step; it is noised again, and a discriminator that looks
through a frozen copy of the teacher tells it from real latents.

Source: LADD (arXiv 2403.12015); the drawings of Kandinsky 4 Flash and Kandinsky 3.1 Flash; for hinge loss, RMSprop,
rates and re-noising, the Kandinsky 5 technical report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from kandinsky.train import loop
from kandinsky.train.denoising import Denoising
from kandinsky.train.distil.discriminator import Alarm, Discriminator, hinge, mean, of_clips, roughness
from kandinsky.train.distil.teacher import Distilling, DistilRecipe
from kandinsky.train.distil.walk import StudentSteps, Walk
from kandinsky.train.model_recipe import Batch, Batches
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update, at_times
from kandinsky.train.optimisers import Change, Decay, Name
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.times import Times

MOSTLY_CLEAN = Times(mean=-4.0, std=1.0, shift=1.0)
DISCRIMINATOR_LR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialLoop(loop.LoopSettings):
    """How a run goes, with the settings of Kandinsky 5 Flash where nothing else is said; see ``LoopSettings``.

    The discriminator's rate is 1e-4, unless `updates` says it.
    """

    lr: float = field(default=1e-6, metadata={"least": 0})
    optimiser: Name = "rmsprop"
    schedule: Decay = "constant"
    weight_decay: float = field(default=0.0, metadata={"least": 0})

    def __post_init__(self) -> None:
        own = self.updates.get("discriminator", Change())
        if own.lr is None:
            object.__setattr__(self, "updates", {**self.updates, "discriminator": replace(own, lr=DISCRIMINATOR_LR)})


@dataclass(frozen=True, slots=True)
class LaddSettings:
    """The adversarial part.

    Attributes:
        renoise: Noise of real and made latents before the discriminator sees them; mostly nearly clean, as the report
            of Kandinsky 5 gives it; times of flow matching, which other schedules take as shares of noise.
        at_student_time: Instead, noise as much as the student was given; what it was given is the real example, as the
            drawing of Kandinsky 4 Flash shows. Examples of which nothing but noise is left there are noised as
            ``renoise`` says, the real ones anew: of noise alone there is nothing to tell.
        simulate: Whether the student learns from states that it reached itself, instead of noised data.
        r1: Weight of the R1 penalty.
        r1_alpha: Size of the noise of its finite difference.
    """

    renoise: Times = MOSTLY_CLEAN
    at_student_time: bool = False
    simulate: bool = False
    r1: float = field(default=0.0, metadata={"least": 0})
    r1_alpha: float = field(default=0.1, metadata={"above": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class LaddRecipe(DistilRecipe):
    """The keys of a recipe; see ``DistilRecipe``, without ``times``: the student's steps say them.

    Attributes:
        loop: See ``AdversarialLoop``.
        student_steps: How the student will be sampled.
        adversarial: See ``LaddSettings``.
        synthetic: Real examples are made by the teacher, in so many guided steps, from the data's prompts; 0 takes the
            data's own.
    """

    loop: AdversarialLoop
    student_steps: StudentSteps = field(default_factory=StudentSteps)
    adversarial: LaddSettings = field(default_factory=LaddSettings)
    synthetic: int = field(default=0, metadata={"least": 0})
    unused: ClassVar[frozenset[str]] = frozenset({"times", "branch"})

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        return ("student", "discriminator")


@dataclass(frozen=True, slots=True)
class Made:
    """What a student was given, and the clean latents it made of it."""

    noisy_BTHWC: Tensor
    t: Tensor
    clean_BTHWC: Tensor


class LaddObjective(Objective):
    """A student and the discriminator of what it makes.

    Args:
        denoising: The door of student and teacher.
        student: What learns.
        discriminator: Its backbone is the frozen teacher.
        batches: Gives a portion of the batch of a step.
        walk: How the student will be sampled.
        settings: See ``LaddSettings``.
    """

    def __init__(
        self,
        denoising: Denoising,
        student: nn.Module,
        discriminator: Discriminator,
        batches: Batches,
        walk: Walk,
        settings: LaddSettings,
    ) -> None:
        self.denoising, self.student, self.discriminator = denoising, student, discriminator
        self.batches, self.walk, self.settings = batches, walk, settings
        self.alarm = Alarm()

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("student", self.student), Update("discriminator", self.discriminator, averaged=False))

    @property
    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.discriminator.backbone}

    @property
    def carried(self) -> dict[str, nn.Module]:
        return {"alarm": self.alarm}

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch:
        return self.batches(step, rng, portion)

    def loss(self, update: str, batch: Batch, rng: Rng) -> Loss:
        batch = batch.to(works_on(self.student))
        weight = len(batch.numbers)
        if update == "student":
            made = made_by(self.student, self.walk, batch, rng, simulate=self.settings.simulate)
            fake = self._judged(made, batch, rng)
            return Loss(-mean(fake), weight, timed=at_times(made.t, -of_clips(fake, weight)))
        with torch.no_grad():
            made = made_by(self.student, self.walk, batch, rng, simulate=self.settings.simulate)
        fake = self._judged(made, batch, rng)
        noisy, t = self._real(made, batch, rng)
        real = self.discriminator(noisy, t, batch.given)
        value, figures = hinge(real, fake), self.alarm(real, fake)
        if self.settings.r1:
            alpha = self.settings.r1_alpha
            moved = self.discriminator(noisy + alpha * batch.noise(rng, "r1"), t, batch.given)
            penalty = roughness(real, moved)
            value, figures = value + self.settings.r1 * penalty, figures | {"r1": float(penalty.detach())}
        return Loss(value, weight, figures)

    def _shows(self, t: Tensor) -> Tensor:
        """Whether something of a latent is left at times t, boolean [B, 1, 1, 1, 1]."""
        return self.denoising.shares(t)[0] > 0

    def _time(self, made: Made, batch: Batch, rng: Rng) -> Tensor:
        times = self.settings.renoise
        drawn = times.draw(rng, batch.numbers, batch.total, shift=self.denoising.shift, stream="renoise")
        renoised = self.denoising.as_noisy(drawn).to(made.t)
        if not self.settings.at_student_time:
            return renoised
        return torch.where(self._shows(made.t).flatten(), made.t, renoised)

    def _judged(self, made: Made, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        t = self._time(made, batch, rng)
        noisy = self.denoising.noised(made.clean_BTHWC, batch.noise(rng, "renoise"), t)
        found: dict[str, Tensor] = self.discriminator(noisy, t, batch.given)
        return found

    def _real(self, made: Made, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        t = self._time(made, batch, rng)
        noisy = self.denoising.noised(batch.clean_BTHWC, batch.noise(rng, "real"), t)
        if self.settings.at_student_time and not self.settings.simulate:
            return torch.where(self._shows(made.t), made.noisy_BTHWC, noisy), t
        return noisy, t


def made_by(student: nn.Module, walk: Walk, batch: Batch, rng: Rng, *, simulate: bool) -> Made:
    """Clean latents that a student makes, from noised data or from states that it reached itself.

    Args:
        student: A gradient goes through its last pass.
        walk: How it will be sampled.
        batch: Data and prompts.
        rng: Of the step. All clips of a step are simulated for the same number of steps.
        simulate: See above.
    """
    denoising, times = walk.denoising, walk.times.to(batch.clean_BTHWC.device)
    if simulate:
        number = int(walk.drawn(rng, [-1], "simulated"))
        noisy = walk.simulated(lambda x, t: denoising.predict(student, x, t, batch.given), batch, rng, number)
        t = times[number].expand(len(noisy))
    else:
        t = times[walk.drawn(rng, batch.numbers).to(times.device)]
        noisy = denoising.noised(batch.clean_BTHWC, batch.noise(rng), t)
    return Made(noisy, t, denoising.clean_of(denoising.predict(student, noisy, t, batch.given), noisy, t))


def train(recipe: LaddRecipe, run: Run) -> Path:
    """Distil a model adversarially.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be distilled this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
        BackendError: The model's family has no discriminator heads.
    """
    ready = Distilling(recipe, run)
    denoising = ready.ready.denoising
    with loop.seeded(recipe.loop.seed):
        discriminator = Discriminator(denoising, ready.teacher.network)
    objective = LaddObjective(
        denoising,
        ready.student,
        discriminator,
        ready.batches(recipe.synthetic),
        Walk(denoising, recipe.student_steps),
        recipe.adversarial,
    )
    return ready.train(objective, recipe.student_steps)
