"""Recipes of kind `preference`: learn from pairs of clips of which people liked one better (direct preference).

The network is to explain the winner better than the reference does, and the loser worse, where explaining is the error
of its prediction; for velocity, noise and v alike. The reference is the network as it was: without its adapter, or a
frozen copy.
Source: Diffusion-DPO (arXiv 2311.12908, equation 14); for flow matching with a constant weight, arXiv 2501.13918.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError
from kandinsky.printing import escaped
from kandinsky.train import pairs
from kandinsky.train.data.batches import Buckets
from kandinsky.train.data.captions import Caption
from kandinsky.train.data.feed import EncodedExamples, Examples, Feed, Loaded
from kandinsky.train.denoising import Denoising
from kandinsky.train.model_recipe import (
    Batch,
    CaptionNumbers,
    ClipBatches,
    ModelRecipe,
    Prepared,
    PromptedData,
    errors_of,
)
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update, at_times
from kandinsky.train.recipe import Run
from kandinsky.train.scale import works_on
from kandinsky.train.times import Times

Reference = Callable[[nn.Module], AbstractContextManager[nn.Module]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRecipe(ModelRecipe):
    """The keys of a recipe; `data.source` is as ``train/pairs.py`` says.

    Attributes:
        data: See ``PromptedData``.
        beta: How much of the reference is given up for the preference; larger keeps nearer to it.
        supervised: Share of the plain denoising loss of the winners, which keeps them likely.
    """

    data: PromptedData
    beta: float = field(default=500.0, metadata={"above": 0})
    supervised: float = field(default=0.0, metadata={"least": 0})
    unused: ClassVar[frozenset[str]] = frozenset({"times.by_frame", "data.tokens", "data.tasks", "branch"})

    @property
    def helpers(self) -> tuple[str, ...]:
        """Networks that do not learn."""
        return self.reference


@dataclass(frozen=True)
class Side:
    """One side of pairs, as a data set; both sides have the winners' captions.

    Attributes:
        examples: Of both sides.
        pairs: Numbers of winner and loser.
        number: Which of them; 0 for winners.
    """

    examples: Examples
    pairs: Sequence[tuple[int, int]]
    number: int

    @property
    def shapes(self) -> Sequence[Any]:
        """Of the latents of both, so that batches are alike in both."""
        every = self.examples.shapes
        return [(*every[winner], *every[loser]) for winner, loser in self.pairs]

    def captions(self, index: int) -> Sequence[Caption]:
        """Of a pair."""
        return self.examples.captions(self.pairs[index][0])

    def example(self, place: int, index: int, caption: Caption | None) -> Loaded:
        """This side of a pair."""
        made = self.examples.example(place, self.pairs[index][self.number], None if self.number else caption)
        if not self.number or caption is None:
            return made
        # the loser may lie there without a caption of its own
        return replace(made, caption=caption, text=self.examples.example(place, self.pairs[index][0], caption).text)


class PairBatches:
    """Batches of pairs whose winners, and whose losers, are of one shape; an epoch shows each pair once.

    Args:
        pairs: Numbers of winner and loser, at least one.
        batches: Puts clips together; its data has both sides.
        seed: Of the order, and of captions.
        shares: Portions that this process asks for in each step, in their order.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        batches: ClipBatches,
        *,
        seed: int = 0,
        shares: Sequence[Portion] = (Portion(),),
    ) -> None:
        self.pairs, self.batches = pairs, batches
        settings, numbers = batches.settings, CaptionNumbers(seed)
        sides = [Side(batches.examples, pairs, number) for number in (0, 1)]
        self.plan = Buckets(sides[0].shapes, batch=settings.batch, seed=seed)
        self.feeds = [
            Feed(side, self.plan, batches.choice, numbers, shares, workers=settings.workers) for side in sides
        ]

    def __call__(self, step: int, rng: Rng, portion: Portion) -> tuple[Batch, Batch]:
        """A portion of the winners and of the losers of a step."""
        total, conditions = len(self.plan(step)), self.batches.conditions[""]
        winners, losers = (self.batches.collated(feed(step, portion), rng, total, conditions) for feed in self.feeds)
        return winners, losers


def paired(names: Sequence[str] | None, count: int) -> list[tuple[int, int]]:
    """Numbers of winner and loser of each pair.

    Args:
        names: Of the examples of an encoded data set, whose folders tell them; None where they follow each other.
        count: Of the examples.

    Raises:
        RequestError: One has no counterpart.
    """
    if names is None:
        return [(number, number + 1) for number in range(0, count, 2)]
    sides: dict[str, dict[str, int]] = {pairs.WINNERS: {}, pairs.LOSERS: {}}
    for number, name in enumerate(names):
        folder, _, rest = name.partition("/")
        if folder not in sides:
            raise RequestError(
                f"`{escaped(name)}` of the encoded data is no pair's: encode a folder with `{pairs.WINNERS}/` and "
                f"`{pairs.LOSERS}/`"
            )
        sides[folder][str(Path(rest).with_suffix(""))] = number
    winners, losers = sides.values()
    if odd := sorted(set(winners) ^ set(losers)):
        raise RequestError(f"`{escaped(odd[0])}` of the encoded data has no counterpart: encode whole pairs")
    return [(winners[name], losers[name]) for name in winners]


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
        device = works_on(self.network)
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
        return Loss(value, len(numbers), figures, at_times(t, own[0]))


def train(recipe: PreferenceRecipe, run: Run) -> Path:
    """Train a model's denoiser on preferences.

    Returns:
        The weight file written, or the adapter's.

    Raises:
        RequestError: The model cannot be trained this way, or the pairs cannot be read.
        WeightsError: Weights are missing or broken.
    """
    ready = Prepared(recipe, run, pairs.find, together=2)
    names = None
    if isinstance(ready.examples, EncodedExamples):
        names = [row.name for row in ready.examples.dataset.rows]
    both = paired(names, len(ready.examples.shapes))
    objective = PreferenceObjective(
        ready.denoising,
        ready.network,
        ready.reference,
        PairBatches(both, ready.batches, seed=recipe.loop.seed, shares=ready.shares),
        recipe.times,
        beta=recipe.beta,
        supervised=recipe.supervised,
        frozen=ready.reference_networks,
    )
    return ready.write(ready.train(objective)["network"])
