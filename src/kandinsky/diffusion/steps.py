"""One step of a sampler: from the state at t to the state at the next time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Step(Protocol):
    """x at ``t``, the network's answer there, and the two times → x at ``t_next``."""

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor: ...

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The clean latent that the network's prediction implies."""
        ...


@dataclass(frozen=True, slots=True)
class Euler:
    """x + (t_next − t)·v, first order."""

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return x + (t_next - t) * velocity

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        return clean_estimate(x, velocity, t)


def clean_estimate(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The clean latent that a velocity implies: x = (1 − t)·clean + t·noise and v = noise − clean."""
    return x - t * velocity
