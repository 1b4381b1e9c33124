"""How much work a training does: examples, tokens and operations, told by those who do it, for the log.

A data set tells what it gives (``done(samples=…, tokens=…)``), a denoiser's door what a pass computes; the loop asks
for the sum (``counted``). Nobody who tells has to know who listens, and nobody needs to listen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Work:
    """What was done.

    Attributes:
        samples: Examples that were learned from.
        tokens: That the network sees of them, once each.
        flops: Operations of the networks, forwards and backwards, without what is computed again.
    """

    samples: int = 0
    tokens: int = 0
    flops: float = 0.0

    def add(self, other: Work) -> None:
        """Take another's work as one's own."""
        self.samples += other.samples
        self.tokens += other.tokens
        self.flops += other.flops


_LISTENING: ContextVar[Work | None] = ContextVar("work", default=None)


@contextmanager
def counted() -> Iterator[Work]:
    """Add up what is done within the block."""
    work = Work()
    token = _LISTENING.set(work)
    try:
        yield work
    finally:
        _LISTENING.reset(token)


def done(samples: int = 0, tokens: int = 0, flops: float = 0.0) -> None:
    """Tell of work that was done."""
    if (work := _LISTENING.get()) is not None:
        work.add(Work(samples, tokens, flops))
