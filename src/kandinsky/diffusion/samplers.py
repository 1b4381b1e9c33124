"""Samplers by name. A card names its sampler; the loop's times, noise and step follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from kandinsky.diffusion import cosine
from kandinsky.diffusion.cogvideox import LEVELS, CogVideoXSchedule, Ddim, Renoise
from kandinsky.diffusion.cosine import Ancestral, CosineSchedule
from kandinsky.diffusion.scaled_linear import Deterministic, Plms, ScaledLinearSchedule
from kandinsky.diffusion.schedule import flow_times
from kandinsky.diffusion.steps import Euler, Step
from kandinsky.errors import RequestError

if TYPE_CHECKING:
    from kandinsky.model.denoiser import Predicts


class Noising(Protocol):
    """What a network is trained to undo."""

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor, /) -> Tensor:
        """A clean latent with the amount of noise of time t."""
        ...


class Straight:
    """The path of flow matching: the shares of latent and noise are 1 − t and t."""

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(clean, noise, t.to(clean))


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a model gets from noise to a latent.

    Attributes:
        times: (steps, shift) → falling times [steps + 1].
        step: (times, shift, fresh draws or None) → the step.
        unused: Draws of a sample's generator before the one that is the initial state.
        fresh: Whether each step but the last needs a draw of its own.
        begin: (first draws, times) → the state; by default it is the last of them.
        predicts: What the network predicts.
        noising: The noising of training, from the shift.
    """

    times: Callable[[int, float], Tensor]
    step: Callable[[Tensor, float, Tensor | None], Step]
    unused: int = 0
    fresh: bool = False
    predicts: Predicts = "noise"
    begin: Callable[[Tensor, Tensor], Tensor] = lambda draws, times: draws[-1]
    noising: Callable[[float], Noising] = lambda shift: Straight()

    def target(self, clean: Tensor, noise: Tensor, t: Tensor, shift: float) -> Tensor:
        """What the network is to predict of ``noising(shift).noised(clean, noise, t)``."""
        if self.predicts == "v":  # signal · noise − spread · clean
            return self.noising(shift).noised(noise, -clean, t)
        return {"velocity": noise - clean, "noise": noise, "clean": clean}[self.predicts]

    def start(self, draws_NBTHWC: Tensor, times: Tensor) -> Tensor:
        """The state at the first time, of all draws of a run."""
        return self.begin(draws_NBTHWC[: self.unused + 1], times)

    def draws(self, steps: int) -> int:
        """Number of draws from each sample's generator: unused ones, the initial state, fresh noise."""
        return self.unused + 1 + (steps - 1 if self.fresh else 0)


def _renoise(times: Tensor, shift: float, draws_NBTHWC: Tensor | None) -> Step:
    return Renoise(CogVideoXSchedule(snr_shift=shift), times, _fresh_draws(times, draws_NBTHWC))


def _cogvideox(shift: float) -> CogVideoXSchedule:
    return CogVideoXSchedule(snr_shift=shift)


def _cogvideox_times(steps: int, shift: float) -> Tensor:
    return _cogvideox(shift).times(steps)


def _fresh_draws(times: Tensor, draws_NBTHWC: Tensor | None) -> Tensor:
    """The draws, checked.

    Raises:
        RequestError: There is not one noise for each step but the last.
    """
    given = 0 if draws_NBTHWC is None else len(draws_NBTHWC)
    if draws_NBTHWC is None or given != len(times) - 2:
        raise RequestError(f"a run of {len(times) - 1} steps needs {len(times) - 2} fresh draws, not {given}")
    return draws_NBTHWC


def _ancestral(
    levels: Callable[[int], list[int]],
    *,
    quantile: float | None,
    predicts: Literal["noise", "v"] = "noise",
    zero_snr: bool = False,
    own_table: bool = False,
) -> Sampler:
    """Times and step on the cosine schedule. ``own_table``: a table of as many levels as there are steps."""

    def schedule(steps: int) -> CosineSchedule:
        return CosineSchedule(steps if own_table else LEVELS, zero_snr, predicts)

    def step(times: Tensor, shift: float, draws_NBTHWC: Tensor | None) -> Step:
        return Ancestral(schedule(len(times) - 1), times, _fresh_draws(times, draws_NBTHWC), quantile)

    return Sampler(
        lambda steps, shift: schedule(steps).times(levels(steps)),
        step,
        fresh=True,
        predicts=predicts,
        noising=lambda shift: schedule(LEVELS),
    )


def _flash_begin(draws_NBTHWC: Tensor, times: Tensor) -> Tensor:
    """As officially, the first estimate is noise itself, and more noise is mixed into it as at every step."""
    return CosineSchedule().noised(draws_NBTHWC[0], draws_NBTHWC[1], times[0])


SAMPLERS = {
    "flow": Sampler(flow_times, lambda times, shift, draws: Euler(), predicts="velocity"),
    # Official quirk: a first draw is made and has no influence, since the first level holds no signal.
    "cogvideox-renoise": Sampler(_cogvideox_times, _renoise, unused=1, fresh=True, predicts="v", noising=_cogvideox),
    "cogvideox-ddim": Sampler(
        _cogvideox_times, lambda times, shift, draws: Ddim(_cogvideox(shift)), predicts="v", noising=_cogvideox
    ),
    "pndm": Sampler(
        lambda steps, shift: ScaledLinearSchedule().twice_at_second(steps),
        lambda times, shift, draws: Plms(ScaledLinearSchedule(), times),
        noising=lambda shift: ScaledLinearSchedule(),
    ),
    "ddim": Sampler(
        lambda steps, shift: ScaledLinearSchedule().times(steps),
        lambda times, shift, draws: Deterministic(ScaledLinearSchedule()),
        noising=lambda shift: ScaledLinearSchedule(),
    ),
    "kandinsky3": _ancestral(cosine.from_the_top, quantile=0.99),
    "kandinsky3-ddpm": _ancestral(cosine.leading, quantile=None),  # as Diffusers' folder of Kandinsky 3 says
    "kandinsky3-inpainting": _ancestral(cosine.from_the_top, quantile=0.95),
    "kandinsky3-flash": Sampler(
        lambda steps, shift: CosineSchedule().times(cosine.distilled(steps)),
        lambda times, shift, draws: Renoise(CosineSchedule(), times, _fresh_draws(times, draws)),
        unused=1,
        fresh=True,
        begin=_flash_begin,
        noising=lambda shift: CosineSchedule(),
    ),
    "kandinsky-video-1.0": _ancestral(cosine.every_level, quantile=0.98, own_table=True),
    "kandinsky-video-1.0-interpolation": _ancestral(cosine.every_level, quantile=0.98, predicts="v", own_table=True),
    "kandinsky-video-1.1": _ancestral(cosine.leading, quantile=None, zero_snr=True),
    "kandinsky-video-1.1-interpolation": _ancestral(cosine.trailing, quantile=None, predicts="v", zero_snr=True),
}


def sampler(name: str) -> Sampler:
    """The sampler a card names.

    Raises:
        RequestError: The name is unknown.
    """
    if name not in SAMPLERS:
        known = ", ".join(f"`{known}`" for known in SAMPLERS)
        raise RequestError(f"sampling.sampler `{name}` is unknown: use one of {known}")
    return SAMPLERS[name]
