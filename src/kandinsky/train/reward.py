"""Recipes of kind `reward`: clips are sampled, decoded and judged, and gradients go back through the last steps.

Loss = (1 − reward) + β · Σ ‖prediction − prediction of the reference‖² over the steps with gradients (DRaFT-K).
Source: DRaFT (arXiv 2309.17400); Kandinsky 5.0 report (arXiv 2511.14993): K = 10, β = 0.02, a reward that compares with
the real clip of the prompt.

Legend: B batch; T H W C frames, rows, columns, channels; pixels in [0, 1] where rewards see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kandinsky.errors import RequestError
from kandinsky.printing import escaped
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.model_recipe import Batch, ClipBatches, ModelRecipe, Prepared, PromptedData
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.preference import Reference
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.weights.untrusted import first_line


class Reward(Protocol):
    """Judges clips; differentiable."""

    def __call__(self, made_BTHWC: Tensor, prompts: Sequence[str], real: Callable[[], Tensor], /) -> Tensor:
        """How good clips are, [B], about 0 to 1.

        Args:
            made_BTHWC: Pixels in [0, 1].
            prompts: What they were made for.
            real: Gives the data's own clips of these prompts, for rewards that compare.
        """
        ...


def brightness(made_BTHWC: Tensor, prompts: Sequence[str], real: Callable[[], Tensor]) -> Tensor:
    """Mean of all pixels."""
    return made_BTHWC.flatten(1).mean(1)


def colour(made_BTHWC: Tensor, prompts: Sequence[str], real: Callable[[], Tensor]) -> Tensor:
    """Colourfulness (Hasler and Süsstrunk 2003), 0 for grey; about 1 for the strongest colours of photographs."""
    red, green, blue = made_BTHWC.flatten(1, 3).unbind(-1)
    first, second = red - green, 0.5 * (red + green) - blue
    spread = (first.var(1) + second.var(1) + 1e-8).sqrt()
    return spread + 0.3 * (first.mean(1).square() + second.mean(1).square() + 1e-8).sqrt()


def sharpness(made_BTHWC: Tensor, prompts: Sequence[str], real: Callable[[], Tensor]) -> Tensor:
    """Mean contrast of neighbouring pixels, ten times."""
    down = (made_BTHWC[:, :, 1:] - made_BTHWC[:, :, :-1]).abs().flatten(1).mean(1)
    right = (made_BTHWC[:, :, :, 1:] - made_BTHWC[:, :, :, :-1]).abs().flatten(1).mean(1)
    return 5 * (down + right)


def likeness(made_BTHWC: Tensor, prompts: Sequence[str], real: Callable[[], Tensor]) -> Tensor:
    """1 less the mean distance from the real clip."""
    return 1 - (made_BTHWC - real()).abs().flatten(1).mean(1)


BUILT_IN: Mapping[str, Reward] = {
    "brightness": brightness,
    "colour": colour,
    "sharpness": sharpness,
    "likeness": likeness,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRecipe(ModelRecipe):
    """The keys of a recipe; of the data, captions are the prompts and clips are what rewards may compare with.

    Attributes:
        data: See ``PromptedData``.
        reward: `brightness`, `colour`, `sharpness`, `likeness`, or `module:function` as ``Reward`` says, which is run.
        steps: Of the sampler.
        last: So many of them carry gradients.
        beta: Weight of the distance from the reference.
        guidance: Classifier-free guidance scale while sampling.
        decoded: So many latent frames, from the first, are decoded and judged; all where absent.
        checkpointed: Compute each step again in the backward pass instead of keeping what it made.
    """

    data: PromptedData
    reward: str
    steps: int = field(default=16, metadata={"least": 1, "most": 1000})
    last: int = field(default=10, metadata={"least": 1})
    beta: float = field(default=0.02, metadata={"least": 0})
    guidance: float = field(default=1.0, metadata={"least": 0})
    decoded: int | None = field(default=None, metadata={"least": 1})
    checkpointed: bool = True
    unused: ClassVar[frozenset[str]] = frozenset({"times", "branch"})

    @property
    def helpers(self) -> tuple[str, ...]:
        """Networks that do not learn."""
        return ("autoencoder", *self.reference)


class RewardObjective(Objective):
    """Sampling towards a reward.

    Args:
        denoising: The door of the network.
        network: What learns.
        reference: Gives the network as it was, for a block.
        decode: Clean latents to pixels in [-1, 1], differentiable.
        reward: Judges them.
        batches: Gives a portion of the batch of a step.
        settings: Steps and weights.
        frozen: Networks that are used: the decoder's, the reference's.
    """

    def __init__(
        self,
        denoising: Denoising,
        network: nn.Module,
        reference: Reference,
        decode: Callable[[Tensor], Tensor],
        reward: Reward,
        batches: ClipBatches,
        settings: RewardRecipe,
        *,
        frozen: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.denoising, self.network, self.reference, self.decode = denoising, network, reference, decode
        self.reward, self.batches, self.settings, self._frozen = reward, batches, settings, frozen or {}
        self.schedule = denoising.rules.times(settings.steps, denoising.shift)

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return self._frozen

    def batch(self, step: int, rng: Rng, portion: Portion) -> Batch:
        return self.batches(step, rng, portion)

    def loss(self, update: str, batch: Batch, rng: Rng) -> Loss:
        batch = batch.to(works_on(self.network))
        x, strayed = self.sampled(batch, rng)
        made = self._pixels(x)

        def real() -> Tensor:
            with torch.no_grad():
                return self._pixels(batch.clean_BTHWC)

        reward = self.reward(made, batch.captions, real)
        if reward.shape != (len(made),):
            raise RequestError(
                f"the reward has shape {list(reward.shape)}, not one number for each of {len(made)} clips"
            )
        value = (1 - reward.float()).mean() + self.settings.beta * strayed
        return Loss(value, len(made), {"reward": float(reward.mean().detach()), "strayed": float(strayed.detach())})

    def sampled(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
        """Latents made of noise, and how far the network strayed from the reference on the way, summed over steps."""
        x, given = batch.noise(rng), batch.given
        strayed = x.new_zeros(())
        times = [(t, to) for t, to in zip(self.schedule[:-1], self.schedule[1:], strict=True)]
        for number, (t, to) in enumerate(times):
            if number < len(times) - self.settings.last:
                with torch.no_grad():
                    x, _ = self._step(x, t, to, given)
            elif self.settings.checkpointed:
                x, distance = checkpoint(self._step, x, t, to, given, True, use_reentrant=False)
                strayed = strayed + distance
            else:
                x, distance = self._step(x, t, to, given, True)
                strayed = strayed + distance
        return given.known.pin({self.denoising.track: x})[self.denoising.track], strayed

    def _step(self, x: Tensor, t: Tensor, to: Tensor, given: Given, compare: bool = False) -> tuple[Tensor, Tensor]:
        at, until = (time.to(x).expand(len(x)) for time in (t, to))
        prediction = self._guided(self.network, x, at, given)
        distance = x.new_zeros(())
        if compare and self.settings.beta:
            with torch.no_grad(), self.reference(self.network) as before:
                expected = self._guided(before, x, at, given)
            distance = (prediction - expected).square().mean()
        if float(to) == 0:
            return self.denoising.clean_of(prediction, x, at), distance
        return self.denoising.moved(prediction, x, at, until), distance

    def _guided(self, network: nn.Module, x: Tensor, t: Tensor, given: Given) -> Tensor:
        told = self.denoising.predict(network, x, t, given)
        scale = self.settings.guidance
        if scale == 1:
            return told
        empty = Given(self.batches.empty.of(x).to(x.device).expand(len(x)), given.known)
        untold = self.denoising.predict(network, x, t, empty)
        return untold + scale * (told - untold)

    def _pixels(self, latents_BTHWC: Tensor) -> Tensor:
        return (self.decode(latents_BTHWC[:, : self.settings.decoded]).float() / 2 + 0.5).clamp(0, 1)


def train(recipe: RewardRecipe, run: Run) -> Path:
    """Train a model's denoiser towards a reward.

    Returns:
        The weight file written, or the adapter's.

    Raises:
        RequestError: The model cannot be trained this way, or the reward cannot be used.
        WeightsError: Weights are missing or broken.
    """
    reward = find(recipe.reward)
    ready = Prepared(recipe, run)
    with ready.context.placement.hold("vae") as autoencoder:
        frozen = {"autoencoder": autoencoder, **ready.reference_networks}
        objective = RewardObjective(
            ready.denoising,
            ready.network,
            ready.reference,
            autoencoder.decode,
            reward,
            ready.batches,
            recipe,
            frozen=frozen,
        )
        return ready.write(ready.train(objective)["network"])


def find(name: str) -> Reward:
    """A reward by its name, or a function by `module:function`, whose module is imported.

    Raises:
        RequestError: There is none.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise RequestError(f"reward `{escaped(name)}` is unknown: use {', '.join(BUILT_IN)}, or `module:function`")
    try:
        found = getattr(import_module(module), function)
    except Exception as error:
        raise RequestError(f"reward `{escaped(name)}` cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise RequestError(f"reward `{escaped(name)}` is no function")
    chosen: Reward = found
    return chosen
