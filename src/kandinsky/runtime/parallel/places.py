"""Where a process' part of a tensor lies in the whole: what tensor parallelism and shards leave it, by plain numbers.

A part is some stretches of axis 0, one behind the other, and one stretch of axis 1. Checkpoints are written and read by
it, so that one written by any number of processes is read by any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Split:
    """How a tensor is divided.

    Attributes:
        shape: Of the whole.
        axis: That tensor parallelism divides, 0 or 1; None where it leaves it whole.
        fused: Layers in one along axis 0, each of which is divided by itself.
        parts: By tensor parallelism.
        shards: Of what tensor parallelism leaves, along axis 0, as FSDP cuts them.
    """

    shape: tuple[int, ...]
    axis: int | None = None
    fused: int = 1
    parts: int = 1
    shards: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether every process has all of it."""
        return self.shards == 1 and (self.parts == 1 or self.axis is None)

    def place(self, shard: int = 0, part: int = 0) -> Place:
        """What the process of these coordinates has."""
        if not self.shape:
            return Place((), ((0, 1),))
        rows, columns = [(0, self.shape[0])], None
        if self.axis == 0 and self.parts > 1:
            each = self.shape[0] // self.fused
            size = each // self.parts
            rows = [(n * each + part * size, n * each + (part + 1) * size) for n in range(self.fused)]
        elif self.axis == 1 and self.parts > 1:
            size = self.shape[1] // self.parts
            columns = (part * size, (part + 1) * size)
        if self.shards > 1:
            count = sum(stop - start for start, stop in rows)
            size = math.ceil(count / self.shards)
            rows = list(_cut(rows, min(count, shard * size), min(count, (shard + 1) * size)))
        return Place(self.shape, tuple(rows), columns)


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a tensor.

    Attributes:
        shape: Of the whole.
        rows: Stretches of axis 0 (start, stop), as they stand one behind the other in the part.
        columns: Stretch of axis 1; None = all.
    """

    shape: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    columns: tuple[int, int] | None = None

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Place:
        """All of a tensor."""
        return Split(shape).place()

    def boxes(self) -> Iterator[tuple[slice, tuple[slice, ...]]]:
        """For each stretch of rows, where it stands in the part, and where in the whole (axes 0 and 1)."""
        if not self.shape:
            return
        start = 0
        across = (slice(*self.columns),) if self.columns else ()
        for first, last in self.rows:
            yield slice(start, start + last - first), (slice(first, last), *across)
            start += last - first

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Copy the part to its place."""
        if not self.shape:
            whole.copy_(part)
        for own, box in self.boxes():
            whole[box].copy_(part[own])

    def take(self, whole: Tensor, part: Tensor) -> None:
        """Copy the part from its place."""
        if not self.shape:
            part.copy_(whole)
        for own, box in self.boxes():
            part[own].copy_(whole[box])

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the part."""
        if not self.shape:
            return ()
        rows = sum(stop - start for start, stop in self.rows)
        if self.columns is None:
            return (rows, *self.shape[1:])
        return (rows, self.columns[1] - self.columns[0], *self.shape[2:])


def _cut(rows: list[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """What lies between two places, counted along the stretches."""
    passed = 0
    for first, last in rows:
        low, high = max(start - passed, 0), min(stop - passed, last - first)
        if low < high:
            yield first + low, first + high
        passed += last - first
