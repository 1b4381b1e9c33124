"""Recipes of kind `guidance-distillation`: a student that gives in one pass what guidance takes two for.

Source: Meng et al. 2022 (arXiv 2210.03142), section 3.1, for a fixed scale; Kandinsky 5 technical report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from kandinsky.train.denoising import Denoising
from kandinsky.train.distil.teacher import Distilling, DistilRecipe, Teacher, distance
from kandinsky.train.model_recipe import Batch, Batches, by_time
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.times import Times


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceRecipe(DistilRecipe):
    """The keys of a recipe; see ``DistilRecipe``."""


class GuidanceObjective(Objective):
    """The student's prediction with the prompt is to be the teacher's guided one.

    Args:
        denoising: The door of both networks.
        student: What learns.
        teacher: With guidance.
        batches: Gives a portion of the batch of a step.
        times: Where the loss is taken.
    """

    def __init__(
        self, denoising: Denoising, student: nn.Module, teacher: Teacher, batches: Batches, times: Times
    ) -> None:
        self.denoising, self.student, self.teacher = denoising, student, teacher
        self.batches, self.times = batches, times

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("student", self.student),)

    @property
    def frozen(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher.network}

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch:
        return self.batches(step, rng, portion)

    def loss(self, update: str, batch: Batch, rng: Rng) -> Loss:
        batch = batch.to(works_on(self.student))
        drawn = self.times.draw(rng, batch.numbers, batch.total, shift=self.denoising.shift)
        t = self.denoising.times(drawn).to(batch.clean_BTHWC.device)
        noisy = self.denoising.noised(batch.clean_BTHWC, batch.noise(rng), t)
        target = self.teacher.predict(noisy, t, batch.given)
        predicted = self.denoising.predict(self.student, noisy, t, batch.given)
        timed = by_time(predicted, target, t, batch)
        return Loss(distance(self.denoising, predicted, target, t, batch), len(batch.numbers), timed=timed)


def train(recipe: GuidanceRecipe, run: Run) -> Path:
    """Distil a model's guidance.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be distilled this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
    """
    ready = Distilling(recipe, run)
    objective = GuidanceObjective(
        ready.ready.denoising, ready.student, ready.teacher, ready.ready.batches, recipe.times
    )
    return ready.train(objective)
