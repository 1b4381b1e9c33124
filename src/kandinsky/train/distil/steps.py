"""Recipes of kind `step-distillation`: a student that takes one step where its teacher takes several.

- ``progressive``: one student step is two of the teacher's, then the student becomes the teacher of the next level
  (Salimans and Ho 2022, arXiv 2202.00512).
- ``consistency``: within each step of the student's sampler, all points of the teacher's path lead to the same end
  (trajectory-segmented consistency distillation, Hyper-SD, arXiv 2404.13686). The segments are the sampler's own steps,
  so that each step of generation is one jump that was trained.
- ``regression``: the end of the teacher's path through each step, from noised data or, with ``from_noise``, along whole
  paths from noise (piecewise rectified flow, arXiv 2405.07510).
A sampler that mixes fresh noise in at every step asks the student for clean latents: there each step leads to the end
of the whole path, and `progressive` does not apply. The paths of a guided teacher are not those of any one
distribution: where one ends, noised again, would be guided a second time. So keep the teacher's own sampler where the
guidance scale is far from 1.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kandinsky.diffusion.samplers import sampler as known_sampler
from kandinsky.errors import RequestError
from kandinsky.train.denoising import Denoising
from kandinsky.train.distil.teacher import Distilling, DistilRecipe, Teacher, distance, follow, landing
from kandinsky.train.distil.walk import StudentSteps, Walk, per_clip
from kandinsky.train.model_recipe import Batch, Batches, by_time
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepSettings:
    """How steps are distilled.

    Attributes:
        method: See above.
        levels: Numbers of steps, one after the other, such as 64, 32, 16; the last is the student's.
        level_steps: Training steps of each level but the last, which lasts to the end.
        sampler: The student's, where it is not the teacher's.
        parts: Teacher steps within one of the student's; `progressive` has two.
        target_decay: Of the averaged student that `consistency` aims at.
        huber: Above 0, the pseudo-Huber distance with this constant in the place of the squared error.
        from_noise: Of `regression`, whether paths begin with noise and go through all steps.
    """

    method: Literal["progressive", "consistency", "regression"] = "consistency"
    levels: tuple[int, ...] = field(default=(16,), metadata={"least": 1})
    level_steps: int = field(default=5000, metadata={"least": 1})
    sampler: str | None = None
    parts: int = field(default=4, metadata={"least": 1})
    target_decay: float = field(default=0.95, metadata={"least": 0, "most": 1})
    huber: float = field(default=0.0, metadata={"least": 0})
    from_noise: bool = False

    def __post_init__(self) -> None:
        if not self.levels:
            raise RequestError("`levels` is empty: name numbers of steps, the student's last")
        if self.method == "progressive" and (odd := [two for two in pairwise(self.levels) if two[0] != 2 * two[1]]):
            raise RequestError(
                f"`levels` has {odd[0][1]} after {odd[0][0]}: with method `progressive` each is half of the one before"
            )
        if self.sampler is not None:
            known_sampler(self.sampler)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecipe(DistilRecipe):
    """The keys of a recipe; see ``DistilRecipe`` and ``StepSettings``, without ``times``: the levels say them."""

    steps: StepSettings
    unused: ClassVar[frozenset[str]] = frozenset({"times", "branch"})

    @property
    def reached(self) -> int:
        """The last of the levels that this many training steps come to."""
        return self.steps.levels[min((self.loop.steps - 1) // self.steps.level_steps, len(self.steps.levels) - 1)]


class StepObjective(Objective):
    """Fewer steps to the same end.

    Args:
        denoising: The door of all networks.
        student: What learns.
        teacher: What it learns from; guidance becomes part of the student.
        batches: Gives a portion of the batch of a step.
        settings: See ``StepSettings``.
    """

    def __init__(
        self, denoising: Denoising, student: nn.Module, teacher: Teacher, batches: Batches, settings: StepSettings
    ) -> None:
        self.denoising, self.student, self.teacher = denoising, student, teacher
        self.batches, self.settings = batches, settings
        self.walks = [Walk(denoising, StudentSteps(n, settings.sampler)) for n in settings.levels]
        self.parts = 2 if settings.method == "progressive" else settings.parts
        self.to_the_end = self.walks[0].rules.fresh
        if self.to_the_end and (settings.method == "progressive" or settings.from_noise):
            raise RequestError(
                "a sampler with fresh noise at every step cannot follow whole paths: use method `consistency` or "
                "`regression` without `from_noise`"
            )
        self.fine = [walk.refined(self.parts) for walk in self.walks]
        self.target = _averaged(student) if settings.method == "consistency" else None

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("student", self.student),)

    @property
    def frozen(self) -> dict[str, nn.Module]:
        return {} if self.settings.method == "progressive" else {"teacher": self.teacher.network}

    @property
    def carried(self) -> dict[str, nn.Module]:
        if self.settings.method == "progressive":
            return {"teacher": self.teacher.network}
        return {} if self.target is None else {"target": self.target}

    def level(self, step: int) -> int:
        """Which of the levels a training step belongs to."""
        return min(step // self.settings.level_steps, len(self.walks) - 1)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch:
        return self.batches(step, rng, portion)

    def loss(self, update: str, batch: Batch, rng: Rng) -> Loss:
        batch = batch.to(works_on(self.student))
        level = self.level(rng.step)
        walk, fine = self.walks[level], self.fine[level].to(batch.clean_BTHWC.device)
        # from the second level on the teacher is a student itself, which has guidance in it
        guided = self.settings.method != "progressive" or level == 0
        if self.settings.method == "consistency":
            value, timed = self._consistent(batch, rng, fine, walk.steps)
        elif self.settings.from_noise:
            value, timed = self._whole_path(batch, rng, fine, walk, guided=guided)
        else:
            segment = per_clip(rng, batch.numbers, walk.steps, "segment").to(fine.device)
            noisy = self.denoising.noised(batch.clean_BTHWC, batch.noise(rng), fine[segment * self.parts])
            value, _, timed = self._one_step(batch, noisy, segment, fine, guided=guided)
        return Loss(value, len(batch.numbers), {"student steps": float(walk.steps)}, timed)

    def after(self, step: int) -> None:
        if self.target is not None:
            follow(self.target, self.student, self.settings.target_decay)
        if self.settings.method == "progressive" and self.level(step + 1) != self.level(step):
            follow(self.teacher.network, self.student, 0.0)

    def _end(self, segment: Tensor, fine: Tensor) -> Tensor:
        """Where the student's step ends, as a place among the fine times."""
        return torch.full_like(segment, len(fine) - 1) if self.to_the_end else (segment + 1) * self.parts

    def _teach(self, batch: Batch, noisy: Tensor, t: Tensor, to: Tensor, *, guided: bool) -> Tensor:
        prediction = self.teacher.predict(noisy, t, batch.given, guided=guided)
        return self.denoising.moved(prediction, noisy, t, to)

    def _one_step(
        self, batch: Batch, noisy: Tensor, segment: Tensor, fine: Tensor, *, guided: bool
    ) -> tuple[Tensor, Tensor, list[Timed]]:
        """Loss of a student step from the beginning of a segment, where the teacher's path ends, errors by time."""
        first, end, x = segment * self.parts, self._end(segment, fine), noisy
        for part in range(int((end - first).max())):
            here, on = (first + part).minimum(end), (first + part + 1).minimum(end)
            later = self._teach(batch, x, fine[here.minimum(end - 1)], fine[on], guided=guided)
            x = torch.where((here < end)[:, None, None, None, None], later, x)
        t, end = fine[first], fine[end]
        target = landing(self.denoising, noisy, t, x, end)
        predicted = self.denoising.predict(self.student, noisy, t, batch.given)
        timed = by_time(predicted, target, t, batch)
        return distance(self.denoising, predicted, target, t, batch, huber=self.settings.huber), x, timed

    def _whole_path(
        self, batch: Batch, rng: Rng, fine: Tensor, walk: Walk, *, guided: bool
    ) -> tuple[Tensor, list[Timed]]:
        x, losses, timed = walk.begin(batch, rng), [], list[Timed]()
        for number in range(walk.steps):
            value, x, own = self._one_step(
                batch, x, torch.full((len(x),), number, device=fine.device), fine, guided=guided
            )
            losses.append(value)
            timed += [one._replace(weight=one.weight / walk.steps) for one in own]
        return torch.stack(losses).mean(), timed

    def _consistent(self, batch: Batch, rng: Rng, fine: Tensor, steps: int) -> tuple[Tensor, list[Timed]]:
        assert self.target is not None
        segment = per_clip(rng, batch.numbers, steps, "segment").to(fine.device)
        part = per_clip(rng, batch.numbers, self.parts, "part").to(fine.device)
        here = segment * self.parts + part
        t, on, end = fine[here], fine[here + 1], fine[self._end(segment, fine)]
        noisy = self.denoising.noised(batch.clean_BTHWC, batch.noise(rng), t)
        later = self._teach(batch, noisy, t, on, guided=True)
        with torch.no_grad():
            at_end = on == end
            seen = torch.where(at_end, t, on)  # where the path has ended, nothing is asked
            prediction = self.denoising.predict(self.target, later, seen, batch.given)
            jumped = self.denoising.moved(prediction, later, seen, end)
            aim = torch.where(at_end[:, None, None, None, None], later, jumped)
        target = landing(self.denoising, noisy, t, aim, end)
        predicted = self.denoising.predict(self.student, noisy, t, batch.given)
        value = distance(self.denoising, predicted, target, t, batch, huber=self.settings.huber)
        return value, by_time(predicted, target, t, batch)


def _averaged(student: nn.Module) -> nn.Module:
    """A copy that can follow a student: float32 where that learns."""
    made = copy.deepcopy(student).eval()
    for p in made.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return made


def train(recipe: StepRecipe, run: Run) -> Path:
    """Distil a model to fewer steps.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be distilled this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
    """
    if recipe.reached != recipe.steps.levels[-1]:
        log.warning(
            "the training ends with %d steps of the student: it needs more than %d training steps for %d",
            recipe.reached, recipe.steps.level_steps * (len(recipe.steps.levels) - 1), recipe.steps.levels[-1],
        )  # fmt: skip
    ready = Distilling(recipe, run)
    objective = StepObjective(ready.ready.denoising, ready.student, ready.teacher, ready.ready.batches, recipe.steps)
    return ready.train(objective, StudentSteps(recipe.steps.levels[-1], recipe.steps.sampler))
