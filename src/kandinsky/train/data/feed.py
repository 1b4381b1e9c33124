"""What a training asks for: the examples of a step, of one process and micro-batch, loaded ahead by workers.

Which examples those are, which of their captions is shown and whether none is, follows from (seed, step) alone; so a
run goes on after any step without a word about its data in the checkpoint, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.model.values import TextEmbeddings
from kandinsky.train.data.batches import Plan
from kandinsky.train.data.captions import Caption, CaptionChoice
from kandinsky.train.data.dataset import EncodedDataset
from kandinsky.train.data.prefetch import Ahead

T = TypeVar("T")


class Share(Protocol):
    """A part of a step's global batch, as ``train.objective.Portion`` is one."""

    def of(self, items: Sequence[T], /) -> Sequence[T]:
        """The items that belong to it."""
        ...


Numbers = Callable[[int, int], torch.Generator]
"""(step, place in the global batch) to the generator of that example's caption."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One example of a step.

    Attributes:
        place: In the step's global batch; random numbers of the example are drawn by it.
        index: In the data set.
        caption: That was drawn; None where it was dropped.
        tensors: `latent` [1, T, H, W, C] and further ones of an encoded data set.
        text: Embeddings of the caption, or of the empty prompt.
    """

    place: int
    index: int
    caption: Caption | None
    tensors: Mapping[str, Tensor]
    text: TextEmbeddings

    @property
    def latent(self) -> Tensor:
        """The clip's latent, [1, T, H, W, C]."""
        return self.tensors["latent"]


class Examples(Protocol):
    """A data set whose examples are loaded by number; it can be pickled."""

    @property
    def shapes(self) -> Sequence[tuple[int, int, int, int]]:
        """Of the latents of all examples."""
        ...

    def captions(self, index: int) -> Sequence[Caption]:
        """Of an example."""
        ...

    def example(self, place: int, index: int, caption: Caption | None) -> Loaded:
        """Load an example with one of its captions, or none. Raises: RequestError where it cannot be read."""
        ...


@dataclass(frozen=True)
class EncodedExamples:
    """Examples of a data set that `kandinsky data encode` made."""

    dataset: EncodedDataset

    @property
    def shapes(self) -> Sequence[tuple[int, int, int, int]]:
        """Of the latents, as the manifest's files say them."""
        return self.dataset.shapes

    def captions(self, index: int) -> Sequence[Caption]:
        """Of a row."""
        return self.dataset.rows[index].captions

    def example(self, place: int, index: int, caption: Caption | None) -> Loaded:
        """Latent and embeddings. Raises: RequestError for a damaged file."""
        text = "" if caption is None else caption.text
        return Loaded(place, index, caption, self.dataset.load(index), self.dataset.text_of(index, text))


@dataclass(frozen=True)
class _Load:
    """Loads the examples of (step, share); for workers."""

    examples: Examples
    plan: Plan
    choice: CaptionChoice
    numbers: Numbers

    def __call__(self, item: tuple[int, Share]) -> list[Loaded]:
        step, share = item
        places = count()
        parts = [[(next(places), index) for index in part] for part in self.plan.parts(step)]
        return [self._one(step, place, index) for part in share.of(parts) for place, index in part]

    def _one(self, step: int, place: int, index: int) -> Loaded:
        captions = self.examples.captions(index)
        chosen = self.choice.choose(captions, self.numbers(step, place))
        return self.examples.example(place, index, None if chosen is None else captions[chosen])


class Feed:
    """The examples of each step, for one process.

    Close it, or use it in a `with` block, so that its workers end.

    Args:
        examples: The data.
        plan: The global batch of every step.
        choice: How captions are drawn.
        numbers: (step, place in the global batch) to that example's generator; can be pickled.
        shares: Those that this process asks for in each step, in their order.
        workers: Processes that load ahead; 0 = none. The results are the same.
    """

    def __init__(
        self,
        examples: Examples,
        plan: Plan,
        choice: CaptionChoice,
        numbers: Numbers,
        shares: Sequence[Share],
        *,
        workers: int = 0,
    ) -> None:
        if not shares:
            raise RequestError("a feed needs at least one share of the batch")
        self.plan = plan
        self._ahead: Ahead[tuple[int, Share], list[Loaded]] = Ahead(
            _Load(examples, plan, choice, numbers), _Next(tuple(shares)), workers=workers
        )

    def __call__(self, step: int, share: Share) -> list[Loaded]:
        """A share of a step's examples; any may be asked for, and the usual next one is loaded ahead.

        Raises:
            RequestError: A file is damaged; named.
            KandinskyError: A worker was killed.
        """
        return self._ahead((step, share))

    def close(self) -> None:
        """End the workers."""
        self._ahead.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Next:
    shares: tuple[Share, ...] = field(default=())

    def __call__(self, item: tuple[int, Share]) -> tuple[int, Share]:
        step, share = item
        place = self.shares.index(share) + 1 if share in self.shares else len(self.shares)
        return (step, self.shares[place]) if place < len(self.shares) else (step + 1, self.shares[0])
