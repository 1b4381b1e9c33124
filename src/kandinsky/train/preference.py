"""Recipes of kind `preference`: learn from pairs of clips of which people liked one better (direct preference).

The network is to explain the winner better than the reference does, and the loser worse, where explaining is the error
of its prediction; for velocity, noise and v alike. The reference is the network as it was: without its adapter, or a
frozen copy.
Source: Diffusion-DPO (arXiv 2311.12908, equation 14); for flow matching with a constant weight, arXiv 2501.13918.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.train import pairs
from kandinsky.train.denoising import Denoising
from kandinsky.train.model_recipe import Batch, Clip, ClipBatches, ModelRecipe, Prepared, errors_of
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Timed, Update
from kandinsky.train.recipe import Run
from kandinsky.train.times import Times

Reference = Callable[[nn.Module], AbstractContextManager[nn.Module]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRecipe(ModelRecipe):
    """The keys of a recipe; `data.source` is as ``train/pairs.py`` says, `data.drop_text` is best 0.

    Attributes:
        beta: How much of the reference is given up for the preference; larger keeps nearer to it.
        supervised: Share of the plain denoising loss of the winners, which keeps them likely.
    """

    beta: float = field(default=500.0, metadata={"above": 0})
    supervised: float = field(default=0.0, metadata={"least": 0})


class PairBatches:
    """Batches of pairs whose winners, and whose losers, are of one shape.

    Args:
        pairs: At least one.
        batches: Puts clips together.
    """

    def __init__(self, pairs: Sequence[tuple[Clip, Clip]], batches: ClipBatches) -> None:
        self.pairs, self.batches = pairs, batches
        groups: dict[tuple[torch.Size, ...], list[tuple[Clip, Clip]]] = defaultdict(list)
        for pair in pairs:
            groups[_shapes(pair)].append(pair)
        self.groups = dict(groups)

    def __call__(self, step: int, rng: Rng, portion: Portion) -> tuple[Batch, Batch]:
        """A portion of the winners and of the losers of a step."""

        def drawn(count: int, number: int) -> int:
            return int(torch.randint(count, (), generator=rng.example(number, "clip")))

        first = self.pairs[drawn(len(self.pairs), 0)]
        like = self.groups[_shapes(first)]
        numbers = portion.of(range(self.batches.settings.batch))
        chosen = [first if n == 0 else like[drawn(len(like), n)] for n in numbers]
        winners, losers = zip(*chosen, strict=True)
        return self.batches.of_clips(winners, rng, numbers), self.batches.of_clips(losers, rng, numbers)


class PreferenceObjective(Objective):
    """Direct preference.

    Args:
        denoising: The door of the network.
        network: What learns.
        reference: Gives the network as it was, for a block.
        batches: Gives a portion of the pairs of a step.
        times: Where the errors are taken; winner and loser of a pair share time and noise.
        beta: As ``PreferenceRecipe``; ``supervised`` too.
        frozen: The reference's network, where it is one of its own.
    """

    def __init__(
        self,
        denoising: Denoising,
        network: nn.Module,
        reference: Reference,
        batches: Callable[[int, Rng, Portion], tuple[Batch, Batch]],
        times: Times,
        *,
        beta: float,
        supervised: float = 0.0,
        frozen: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.denoising, self.network, self.reference = denoising, network, reference
        self.batches, self.times, self.beta, self.supervised = batches, times, beta, supervised
        self._frozen = frozen or {}

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return self._frozen

    def batch(self, step: int, rng: Rng, portion: Portion) -> tuple[Batch, Batch]:
        return self.batches(step, rng, portion)

    def loss(self, update: str, batch: tuple[Batch, Batch], rng: Rng) -> Loss:
        device = next(self.network.parameters()).device
        numbers, total = batch[0].numbers, batch[0].total
        drawn = self.times.draw(rng, numbers, total, shift=self.denoising.shift)
        t = self.denoising.times(drawn).to(device)
        gains, own = [], []
        for one in batch:
            one = one.to(device)
            clean, noise = one.clean_BTHWC, one.noise(rng)
            noisy, target = self.denoising.noised(clean, noise, t), self.denoising.target(clean, noise, t)
            with torch.no_grad(), self.reference(self.network) as before:
                expected = errors_of(self.denoising.predict(before, noisy, t, one.given), target, one)
            errors = errors_of(self.denoising.predict(self.network, noisy, t, one.given), target, one)
            gains.append(errors - expected)
            own.append(errors)
        margin: Tensor = gains[1] - gains[0]  # how much better winners are explained, compared with the reference
        value = -F.logsigmoid(self.beta / 2 * margin).mean() + self.supervised * own[0].mean()
        figures = {"margin": float(margin.mean().detach()), "accuracy": float((margin > 0).float().mean())}
        timed = [Timed(*pair) for pair in zip(t.tolist(), own[0].tolist(), strict=True)]
        return Loss(value, len(numbers), figures, timed)


def train(recipe: PreferenceRecipe, run: Run) -> Path:
    """Train a model's denoiser on preferences.

    Returns:
        The weight file written, or the adapter's.

    Raises:
        RequestError: The model cannot be trained this way, or the pairs cannot be read.
        WeightsError: Weights are missing or broken.
    """
    ready = Prepared(recipe, run, pairs.find)
    both = list(zip(ready.clips[::2], ready.clips[1::2], strict=True))
    objective = PreferenceObjective(
        ready.denoising,
        ready.network,
        ready.reference,
        PairBatches(both, ready.batches),
        recipe.times,
        beta=recipe.beta,
        supervised=recipe.supervised,
        frozen=ready.reference_networks,
    )
    return ready.write(ready.train(objective)["network"])


def _shapes(pair: tuple[Clip, Clip]) -> tuple[torch.Size, ...]:
    return tuple(clip.latent.shape for clip in pair)
