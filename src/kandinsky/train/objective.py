"""What is trained: an ``Objective`` names the networks that learn, each with its own optimiser and loss.

A step of the one loop (``train/loop.py``) takes each update in turn: guidance distillation has one, adversarial
distillation two (student, discriminator), DMD2 three. An objective never sees an optimiser, a rank or a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.printing import counted

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Portion:
    """A share of a step's batch: that of one process and one micro-batch.

    Attributes:
        index: Which one, from 0.
        count: How many there are in a step.
    """

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The part of a global batch that belongs to this portion; portions differ by at most one item."""
        start, stop = (len(items) * i // self.count for i in (self.index, self.index + 1))
        return items[start:stop]


def check_portions(accumulate: int, batch: int, *, what: str = "clip", processes: int = 1) -> None:
    """Refuse a batch of which a portion would be empty.

    Args:
        accumulate: Micro-batches of each process.
        batch: What a batch has.
        what: Its name, of one.
        processes: That take portions of their own.

    Raises:
        RequestError: There are more portions than there is in a batch.
    """
    if accumulate * processes <= batch:
        return
    each = "" if processes == 1 else f" on each of {processes} processes"
    raise RequestError(
        f"`loop.accumulate` is {accumulate}{each}, and a batch has {counted(batch, what)}: use a larger `data.batch`, "
        f"or fewer micro-batches{'' if processes == 1 else ' or processes'}"
    )


@dataclass(frozen=True, slots=True)
class Rng:
    """The random numbers of a step; they depend on nothing but (seed, step).

    Numbers of an example come from a generator of its own, so a step is the same however its batch is divided among
    processes and micro-batches.
    """

    seed: int
    step: int

    def generator(self, stream: int) -> torch.Generator:
        """One of the step's eight generators. 0 is for what goes into the batch, 1 for the loss, 2 for dropout.

        Args:
            stream: 0 to 7.
        """
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) * 8 + stream)

    def example(self, number: int, stream: str = "") -> torch.Generator:
        """The generator of one example of the step's global batch.

        Args:
            number: Its place in the global batch.
            stream: What the numbers are for, such as `noise`; other names give other numbers.
        """
        name = f"{self.seed}/{self.step}/{number}/{stream}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1)


class Timed(NamedTuple):
    """The error of one example, or of one of its frames, at the time where it was taken; for the log.

    Attributes:
        time: 0 to 1.
        error: Its share of the loss.
        weight: Of an example 1, of its frames 1 together.
    """

    time: float
    error: float
    weight: float = 1.0


def at_times(t_B: Tensor, errors_B: Tensor, *, weight: float = 1.0) -> list[Timed]:
    """The error of each example at its time."""
    return [Timed(*pair, weight) for pair in zip(t_B.tolist(), errors_B.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a portion.

    Attributes:
        value: Scalar, a mean over the portion.
        weight: What that mean weighs among the portions of the step, such as its number of examples.
        figures: For the log.
        timed: Errors of the examples by time, for the log.
    """

    value: Tensor
    weight: float = 1.0
    figures: Mapping[str, float] = field(default_factory=dict)
    timed: Sequence[Timed] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """One thing that learns.

    Attributes:
        name: In checkpoints, logs and the recipe's `updates`.
        network: Its parameters that require gradients are trained. Read when it is asked for, since sharding replaces
            parameters.
        every: It is updated in every so many-th step.
        averaged: Whether an average of its weights is kept and returned.
    """

    name: str
    network: nn.Module
    every: int = 1
    averaged: bool = True


class Objective(Protocol):
    """What is trained; classes derive from it for the defaults."""

    @property
    def updates(self) -> tuple[Update, ...]:
        """What learns, in the order in which a step updates it."""
        ...

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        """Networks that are used and not trained, such as a teacher; the loop moves and shards them."""
        return {}

    @property
    def carried(self) -> Mapping[str, nn.Module]:
        """Networks that change without a gradient, such as an average that a loss aims at; checkpoints hold them."""
        return {}

    def batch(self, step: int, rng: Rng, portion: Portion) -> Any:
        """A share of the batch of a step; depends on nothing but the arguments."""
        ...

    def loss(self, update: str, batch: Any, rng: Rng) -> Loss:
        """The loss that one update descends."""
        ...

    def after(self, step: int) -> None:
        """Called once the updates of a step are done."""
        return None


class One(Objective):
    """An objective of one network whose batches are not divided.

    Args:
        inner: See ``Simple``.
    """

    def __init__(self, inner: Simple) -> None:
        self.inner = inner

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.inner.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Any:
        if portion.count != 1:
            raise RequestError("batches of this kind of recipe are not divided: set `loop.accumulate` to 1")
        return self.inner.batch(step, rng.generator(0))

    def loss(self, update: str, batch: Any, rng: Rng) -> Loss:
        return self.inner.loss(batch, rng.generator(1))


class Simple(Protocol):
    """What ``One`` is made of. ``network`` holds exactly the trainable parameters (others have requires_grad False)."""

    @property
    def network(self) -> nn.Module: ...

    def batch(self, step: int, generator: torch.Generator) -> Any: ...

    def loss(self, batch: Any, generator: torch.Generator) -> Loss: ...
