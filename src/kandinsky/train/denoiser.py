"""Recipes of kind `denoiser`: train a catalogue model's denoiser on captioned images and videos.

The network learns what its sampler asks it for: the velocity of flow matching, or noise or v on the sampler's schedule.
Pre-training, fine-tuning and adapters differ in their settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from kandinsky.train.denoising import Denoising
from kandinsky.train.model_recipe import Batch, Batches, ModelRecipe, Prepared
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.recipe import Run
from kandinsky.train.times import Times


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserRecipe(ModelRecipe):
    """The keys of a recipe; see ``ModelRecipe``."""


class DenoiserObjective(Objective):
    """Denoising of latents: mean squared error of the prediction, where nothing is known.

    Args:
        denoising: The door of the network.
        network: What learns.
        batches: Gives a portion of the batch of a step.
        times: Where the loss is taken.
    """

    def __init__(self, denoising: Denoising, network: nn.Module, batches: Batches, times: Times) -> None:
        self.denoising, self.network, self.batches, self.times = denoising, network, batches, times

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch:
        return self.batches(step, rng, portion)

    def loss(self, update: str, batch: Batch, rng: Rng) -> Loss:
        batch = batch.to(next(self.network.parameters()).device)
        clean, noise = batch.clean_BTHWC, batch.noise(rng)
        shift = self.denoising.shift
        drawn = self.times.draw(rng, batch.numbers, batch.total, shift=shift)
        if self.times.by_frame:
            drawn = self.times.spread(drawn, clean.shape[1], rng, batch.numbers, shift=shift)
        t = self.denoising.times(drawn).to(clean.device)
        noisy = self.denoising.noised(clean, noise, t)
        predicted = self.denoising.predict(self.network, noisy, t, batch.given)
        return Loss(error_of(predicted, self.denoising.target(clean, noise, t), batch), len(batch.numbers))


def error_of(predicted: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """``errors_of``, averaged over clips."""
    return errors_of(predicted, target, batch).mean()


def errors_of(predicted: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """Mean squared error of each clip, [B], where nothing is known of it."""
    error = (predicted - target).pow(2)
    if (learned := batch.learned) is None:
        return error.flatten(1).mean(1)
    weight = learned.expand_as(error).to(error)
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)


def train(recipe: DenoiserRecipe, run: Run) -> Path:
    """Train a model's denoiser.

    Returns:
        The weight file written, `dit.safetensors`, with the official tensor names.

    Raises:
        RequestError: The model cannot be trained this way, or the data cannot be read.
        WeightsError: Weights are missing or broken.
    """
    ready = Prepared(recipe, run)
    objective = DenoiserObjective(ready.denoising, ready.network, ready.batches, recipe.times)
    return ready.write(ready.train(objective)["network"])
