"""What all ways of distilling share: a frozen teacher with guidance, recipes that name one, steps between noise levels.

Nothing here knows a family or a process: a deterministic step from t to s is x_s = α_s·clean + σ_s·noise for flow
matching, noise prediction and v-prediction alike, with the shares α, σ of the model's sampler.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kandinsky.diffusion.guidance import Guidance
from kandinsky.errors import RequestError
from kandinsky.train.denoising import Denoising, Given, Untold
from kandinsky.train.distil.walk import StudentSteps, Walk
from kandinsky.train.model_recipe import (
    Batch,
    Clip,
    ClipBatches,
    HeldClips,
    ModelRecipe,
    Prepared,
    PromptedData,
    learning,
)
from kandinsky.train.objective import Objective
from kandinsky.train.recipe import Run
from kandinsky.train.samples import Manner
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import load_into

LARGEST_WEIGHT = 100.0  # of an error of noise, near the end where the clean latent hardly shows


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilRecipe(ModelRecipe):
    """The keys of every recipe that distils; ``model`` is the teacher.

    Attributes:
        data: See ``PromptedData``; a student without guidance never runs without a prompt.
        guidance: The teacher's guidance scale, which the student needs no more; the model's own where absent.
        negative_prompt: What the teacher's guidance contrasts the prompt with.
        student: Weight file that the student begins with; the teacher's weights where absent.
        teacher_dtype: Type of the teacher's weights.
    """

    data: PromptedData
    guidance: float | None = field(default=None, metadata={"least": 1})
    negative_prompt: str = ""
    student: str | None = None
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.student is not None and self.adapter is not None:
            raise RequestError("an `adapter` begins with the teacher's own weights: leave `student` or `adapter` out")

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        return ("student",)

    @property
    def helpers(self) -> tuple[str, ...]:
        """Networks that do not learn."""
        return ("teacher",)


class Teacher:
    """A network that is learned from, with guidance; no gradient goes through it.

    Args:
        denoising: The door of the network.
        network: Of the teacher.
        guidance: Scale; 1 disables it.
        negative: Embeddings that the prompt is contrasted with.
    """

    def __init__(
        self, denoising: Denoising, network: nn.Module, guidance: float = 1.0, negative: Untold | None = None
    ) -> None:
        self.denoising, self.network = denoising, network
        self.guidance, self.negative = Guidance(guidance), negative

    @torch.no_grad()
    def predict(self, noisy_BTHWC: Tensor, t: Tensor, given: Given, *, guided: bool = True) -> Tensor:
        """The prediction, guided unless that is left out: v_u + w·(v_c − v_u)."""
        conditional = self.denoising.predict(self.network, noisy_BTHWC, t, given)
        if not guided or not self.guidance.is_on:
            return conditional
        if self.negative is None:
            raise RequestError(f"guidance `{self.guidance.weight}` needs embeddings of a negative prompt, or use 1.0")
        text = self.negative.of(noisy_BTHWC).expand(len(noisy_BTHWC)).to(noisy_BTHWC.device)
        other = self.denoising.predict(self.network, noisy_BTHWC, t, Given(text, given.known))
        return self.guidance.combine(conditional, other)


class Distilling:
    """A model that is ready to be distilled.

    Attributes:
        ready: The model and its data.
        student: What learns.
        teacher: What it learns from.
    """

    def __init__(self, recipe: DistilRecipe, run: Run) -> None:
        """Read the teacher, its data and the student's first weights.

        Raises:
            RequestError: The model cannot be distilled this way, or the data cannot be read.
            WeightsError: Weights are missing or broken.
        """
        if recipe.start == "random":
            raise RequestError("a teacher with random weights teaches nothing: leave `start` out")
        self.ready = ready = Prepared(recipe, run)
        card = ready.context.card
        scale = card.sampling.guidance if recipe.guidance is None else recipe.guidance
        network = ready.copy(getattr(torch, recipe.teacher_dtype))
        self.teacher = Teacher(ready.denoising, network, scale, self._negative(recipe))
        self.student = ready.network
        if recipe.student is not None:
            load_into(self.student, Path(recipe.student), keymap=keymap_of(card.part("dit")))
            learning(self.student)

    def batches(self, synthetic: int = 0) -> ClipBatches:
        """Batches of the data, or of what the teacher makes of its prompts in so many steps."""
        batches = self.ready.batches
        if not synthetic:
            return batches
        ready, device = self.ready, self.ready.run.device
        walk = Walk(ready.denoising, StudentSteps(synthetic))
        ready.scaling.prepare(self.teacher.network, trains=False)
        made, clips = [], ready.clips
        for number, clip in enumerate(clips):
            given = Given(clip.text).to(device)
            draws = walk.draws(clip.latent.shape[1:], [self.ready.recipe.loop.seed * len(clips) + number])
            latent = walk.sampled(
                lambda x, t, given=given: self.teacher.predict(x, t, given),  # type: ignore[misc]
                draws.to(device),
            )
            made.append(Clip(latent.cpu(), clip.texts[:1], clip.captions[:1]))
        return ready.batches_of(HeldClips(made, ready.empty))

    def _negative(self, recipe: DistilRecipe) -> Untold:
        if not recipe.negative_prompt.strip():
            return self.ready.empty
        context = self.ready.context
        if context.part("text").contrasting:
            raise RequestError(
                f"`{context.card.id}` makes embeddings of a negative prompt for each prompt anew: leave it out"
            )
        with context.placement.hold("text") as encoder, torch.no_grad():
            clip, still = (encoder.encode([recipe.negative_prompt], still=one) for one in (False, True))
        return Untold(clip.to("cpu", torch.float32), still.to("cpu", torch.float32))

    def train(self, objective: Objective, steps: StudentSteps | None = None) -> Path:
        """Run the loop.

        Args:
            objective: Its first update is the student's.
            steps: How the student is sampled; as its teacher, but without guidance, where absent.

        Returns:
            The weight file of the student.
        """
        manner = Manner(guidance=1.0) if steps is None else Manner(steps.steps, steps.sampler, guidance=1.0)
        return self.ready.write(self.ready.train(objective, manner)["student"])


def landing(denoising: Denoising, noisy: Tensor, t: Tensor, later: Tensor, to: Tensor) -> Tensor:
    """The prediction whose deterministic step from ``noisy`` at times t to times ``to`` ends in ``later``.

    Source: Salimans and Ho 2022 (arXiv 2202.00512), appendix G; the same formula holds for flow matching.

    Args:
        denoising: The noise process.
        noisy: Latents at times t.
        t: [B] or [B, T].
        later: Latents at times ``to``.
        to: Below t.
    """
    (signal, spread), (signal_to, spread_to) = denoising.shares(t), denoising.shares(to)
    ratio = spread_to / spread
    clean = (later - ratio * noisy) / (signal_to - ratio * signal)
    return denoising.target(clean, (noisy - signal * clean) / spread, t)


def distance(
    denoising: Denoising, predicted: Tensor, target: Tensor, t: Tensor, batch: Batch, *, huber: float = 0.0
) -> Tensor:
    """Error of predictions where nothing is known, averaged over clips; it weighs the same for every kind of them.

    An error of noise is counted as that of v would be, 1/α² times as much, up to a limit.

    Args:
        denoising: The noise process.
        predicted: By the student.
        target: What it should be.
        t: Where.
        batch: Says what is known.
        huber: Above 0, the pseudo-Huber distance √(e² + c²) − c with this c in the place of e².
    """
    error = predicted - target
    if denoising.predicts == "noise":
        error = error / denoising.shares(t)[0].clamp_min(LARGEST_WEIGHT**-0.5)
    each = (error.square() + huber**2).sqrt() - huber if huber else error.square()
    return means_of(each, batch).mean()


def means_of(each_BTHWC: Tensor, batch: Batch) -> Tensor:
    """Mean over places of which nothing is known, of each clip [B]."""
    if (learned := batch.learned) is None:
        return each_BTHWC.flatten(1).mean(1)
    weight = learned.expand_as(each_BTHWC).to(each_BTHWC)
    return (each_BTHWC * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)


def follow(target: nn.Module, source: nn.Module, decay: float) -> None:
    """Move weights towards another network's: decay·target + (1 − decay)·source."""
    theirs: Mapping[str, Tensor] = dict(source.named_parameters())
    with torch.no_grad():
        for name, p in target.named_parameters():
            p.lerp_(theirs[name].detach().to(p), 1 - decay)
