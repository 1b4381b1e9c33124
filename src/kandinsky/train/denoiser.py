"""Recipes of kind `denoiser`: train a catalogue model's denoiser on captioned images and videos.

The network learns what its sampler asks it for: the velocity of flow matching, or noise or v on the sampler's schedule.
Pre-training, fine-tuning and adapters differ in their settings alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.train.adversary import UPDATE
from kandinsky.train.auxiliary import Adversary, Auxiliary, SelfPerceptual
from kandinsky.train.denoising import Denoising
from kandinsky.train.loop import seeded
from kandinsky.train.model_recipe import Batch, ModelRecipe, Packed, Prepared, by_time, error_of
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.times import Times


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserRecipe(ModelRecipe):
    """The keys of a recipe; see ``ModelRecipe``.

    Attributes:
        auxiliary: Further losses; see ``train/auxiliary.py``.
    """

    auxiliary: Auxiliary = field(default_factory=Auxiliary)
    teaches: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    undoes: ClassVar[bool] = True
    unused: ClassVar[frozenset[str]] = frozenset()

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the objective's updates."""
        return ("network", UPDATE) if self.auxiliary.adversarial else ("network",)

    @property
    def helpers(self) -> tuple[str, ...]:
        """Networks that do not learn."""
        return self.reference if self.auxiliary.self_perceptual else ()

    def __post_init__(self) -> None:
        if self.data.sequence is not None and (self.auxiliary.self_perceptual or self.auxiliary.adversarial):
            raise RequestError("`auxiliary` losses need clips of one size: leave `data.sequence` out, or them")
        if self.auxiliary.self_perceptual and self.adapter is not None and self.scale.activations != "kept":
            # blocks that are computed again would be so with the adapter, which the reference is without
            raise RequestError(
                "`auxiliary.self_perceptual` looks through the network without its `adapter`, whose blocks are not "
                "computed again: use `scale.activations` `kept`, or leave one of them out"
            )


class DenoiserObjective(Objective):
    """Denoising of latents: mean squared error of the prediction, where nothing is known.

    Args:
        denoising: The door of the network.
        network: What learns.
        batches: Gives a portion of the batch of a step; packed ones are for plain denoising alone.
        times: Where the loss is taken.
        auxiliary: Weights of further losses.
        perceptual: Of ``auxiliary.self_perceptual``.
        adversary: Of ``auxiliary.adversarial``.
        frozen: Networks that these need.
    """

    def __init__(
        self,
        denoising: Denoising,
        network: nn.Module,
        batches: Callable[[int, Rng, Portion], Batch | Packed],
        times: Times,
        auxiliary: Auxiliary | None = None,
        *,
        perceptual: SelfPerceptual | None = None,
        adversary: Adversary | None = None,
        frozen: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.denoising, self.network, self.batches, self.times = denoising, network, batches, times
        self.auxiliary, self.perceptual, self.adversary = auxiliary or Auxiliary(), perceptual, adversary
        self._frozen = frozen or {}

    @property
    def updates(self) -> tuple[Update, ...]:
        own = (Update("network", self.network),)
        return own if self.adversary is None else (*own, Update(UPDATE, self.adversary.network, averaged=False))

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return self._frozen

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch | Packed:
        return self.batches(step, rng, portion)

    def loss(self, update: str, batch: Batch | Packed, rng: Rng) -> Loss:
        batch = batch.to(works_on(self.network))
        if isinstance(batch, Packed):
            return self._packed_loss(batch, rng)
        clean, noise, t, noisy = self._noised(batch, rng)
        with torch.set_grad_enabled(update != UPDATE):
            predicted = self.denoising.predict(self.network, noisy, t, batch.given)
        target = self.denoising.target(clean, noise, t)
        timed = by_time(predicted, target, t, batch)
        if self.perceptual is None and self.adversary is None:
            return Loss(error_of(predicted, target, batch), len(batch.numbers), timed=timed)
        estimate = batch.given.known.pin({self.denoising.track: self.denoising.clean_of(predicted, noisy, t)})[
            self.denoising.track
        ]
        if update == UPDATE:
            assert self.adversary is not None
            return self.adversary.loss(estimate, batch, rng)
        value = error_of(predicted, target, batch)
        figures = {"error": float(value.detach())}
        if self.perceptual is not None:
            seen = self.perceptual(self.network, estimate, batch, rng)
            value = value + self.auxiliary.self_perceptual * seen
            figures["self-perceptual"] = float(seen.detach())
        if self.adversary is not None and rng.step >= self.auxiliary.adversarial_from:
            # what is made of much noise is a mean of clips: it cannot look real
            shares = 1 - t.flatten(1).mean(1) if t.ndim > 1 else 1 - t
            fooled = self.adversary.fooled(estimate, batch, rng, shares)
            value = value + self.auxiliary.adversarial * fooled
            figures["adversarial"] = float(fooled.detach())
        return Loss(value, len(batch.numbers), figures, timed)

    def _noised(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents of a batch, noise, times, and both mixed."""
        clean, noise, shift = batch.clean_BTHWC, batch.noise(rng), self.denoising.shift
        drawn = self.times.draw(rng, batch.numbers, batch.total, shift=shift)
        if self.times.by_frame:
            drawn = self.times.spread(drawn, clean.shape[1], rng, batch.numbers, shift=shift)
        t = self.denoising.times(drawn).to(clean.device)
        return clean, noise, t, self.denoising.noised(clean, noise, t)

    def _packed_loss(self, batch: Packed, rng: Rng) -> Loss:
        """The mean over clips, as for a batch of clips of one shape, from one pass."""
        each = [self._noised(one, rng) for one in batch.each]
        _, _, times, noisy = zip(*each, strict=True)
        predicted = self.denoising.predict_packed(self.network, noisy, times, [one.given for one in batch.each])
        errors, timed = list[Tensor](), list[Timed]()
        for one, prediction, (clean, noise, t, _) in zip(batch.each, predicted, each, strict=True):
            target = self.denoising.target(clean, noise, t)
            errors.append(error_of(prediction, target, one))
            timed += by_time(prediction, target, t, one)
        return Loss(torch.stack(errors).mean(), len(errors), timed=timed)


def train(recipe: DenoiserRecipe, run: Run) -> Path:
    """Train a model's denoiser.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be trained this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
    """
    ready = Prepared(recipe, run)
    wanted = recipe.auxiliary
    perceptual = adversary = None
    if wanted.self_perceptual:
        perceptual = SelfPerceptual(ready.denoising, ready.reference, recipe.times)
    if wanted.adversarial:
        with seeded(recipe.loop.seed):
            adversary = Adversary(ready.denoising, ready.clips[0].latent.shape[-1], wanted.width)
    objective = DenoiserObjective(
        ready.denoising,
        ready.network,
        ready.batches if recipe.data.sequence is None else ready.batches.packed,
        recipe.times,
        wanted,
        perceptual=perceptual,
        adversary=adversary,
        frozen=ready.reference_networks if wanted.self_perceptual else {},
    )
    return ready.write(ready.train(objective)["network"])
