"""Samplers by name: what the one loop is given. A card names its sampler; times, noise and step follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kandinsky.diffusion.cogvideox import CogVideoXSchedule, Ddim, Renoise
from kandinsky.diffusion.schedule import flow_times
from kandinsky.diffusion.steps import Euler, Step
from kandinsky.errors import RequestError


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a model walks from noise to a latent.

    times:  (steps, shift) → falling times [steps + 1].
    step:   (times, shift, fresh draws or None) → the step.
    unused: draws of a sample's generator before the one that is the initial state.
    fresh:  whether each step but the last needs a draw of its own.
    """

    times: Callable[[int, float], Tensor]
    step: Callable[[Tensor, float, Tensor | None], Step]
    unused: int = 0
    fresh: bool = False

    def draws(self, steps: int) -> int:
        """How often each sample's generator is asked: unused draws, the state's, the fresh ones."""
        return self.unused + 1 + (steps - 1 if self.fresh else 0)


def _renoise(times: Tensor, shift: float, draws_NBTHWC: Tensor | None) -> Step:
    if draws_NBTHWC is None or len(draws_NBTHWC) != len(times) - 2:
        given = 0 if draws_NBTHWC is None else len(draws_NBTHWC)
        raise RequestError(f"re-noising needs {len(times) - 2} fresh draws for {len(times) - 1} steps, not {given}")
    return Renoise(CogVideoXSchedule(snr_shift=shift), times, draws_NBTHWC)


def _cogvideox_times(steps: int, shift: float) -> Tensor:
    return CogVideoXSchedule(snr_shift=shift).times(steps)


SAMPLERS = {
    "flow": Sampler(flow_times, lambda times, shift, draws: Euler()),
    # Official quirk: a first draw is made and has no influence, since the first level holds no signal.
    "cogvideox-renoise": Sampler(_cogvideox_times, _renoise, unused=1, fresh=True),
    "cogvideox-ddim": Sampler(_cogvideox_times, lambda times, shift, draws: Ddim(CogVideoXSchedule(snr_shift=shift))),
}


def sampler(name: str) -> Sampler:
    """The sampler a card names. Raises: RequestError for a name that is none."""
    if name not in SAMPLERS:
        known = ", ".join(f"`{known}`" for known in SAMPLERS)
        raise RequestError(f"sampling.sampler `{name}` is unknown: use one of {known}")
    return SAMPLERS[name]
