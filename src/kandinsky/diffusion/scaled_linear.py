"""Stable Diffusion's schedule: 1000 levels of noise, and its steps for a network that predicts noise.

x = √ā·clean + √(1 − ā)·noise. Inside the library a level is a time t in [0, 1]: t·1000 − 1 is the index k of the
official tables. A run begins a little below pure noise and ends a little above the clean image, as these models were
trained.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kandinsky.diffusion.cogvideox import LEVELS, level_of
from kandinsky.errors import RequestError
from kandinsky.model.params import refuse_unknown, without_fixed

HISTORY = 4  # number of predictions that the linear multistep method uses
# Diffusers' settings that are fixed in this schedule
FIXED: dict[str, Any] = {
    "num_train_timesteps": LEVELS,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "skip_prk_steps": True,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "thresholding": False,
}
# settings of what this schedule does not do: clipping and thresholding the clean estimate
WITHOUT_EFFECT = ("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio")


@dataclass(frozen=True)
class ScaledLinearSchedule:
    """Share of the signal at each level.

    Source: Diffusers, PNDMScheduler and DDIMScheduler, with the values of Stable Diffusion 1.

    Attributes:
        beta_start: Variance of the noise added at the clean end of the schedule.
        beta_end: Variance of the noise added at the noisy end of the schedule.
        steps_offset: Added to every level of a run.
        set_alpha_to_one: Whether a run ends at no noise at all, or at that of level 0.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps_offset: int = 1
    set_alpha_to_one: bool = False

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> ScaledLinearSchedule:
        """Read Diffusers' `scheduler_config.json`; keys that begin with `_` are notes.

        Raises:
            RequestError: A value needs another schedule, or a key is unknown.
        """
        values = without_fixed(values, FIXED, "scheduler value")
        known = ("beta_start", "beta_end", "steps_offset", "set_alpha_to_one", *WITHOUT_EFFECT)
        refuse_unknown(values, known, "scheduler value")
        return cls(
            float(values.get("beta_start", cls.beta_start)),
            float(values.get("beta_end", cls.beta_end)),
            int(values.get("steps_offset", cls.steps_offset)),
            bool(values.get("set_alpha_to_one", cls.set_alpha_to_one)),
        )

    def times(self, steps: int) -> Tensor:
        """Falling times of a run, float32 [steps + 1], the last one 0; "leading": the levels begin below the highest.

        Raises:
            RequestError: ``steps`` is below 1 or above 1000, or the offset leads beyond the highest level.
        """
        if not 1 <= steps <= LEVELS:
            raise RequestError(f"steps `{steps}` are not possible: use 1 to {LEVELS}")
        levels = [i * (LEVELS // steps) + self.steps_offset for i in reversed(range(steps))]
        if levels[0] >= LEVELS:
            raise RequestError(f"steps `{steps}` are not possible with steps_offset {self.steps_offset}: use fewer")
        return torch.tensor([*(level + 1 for level in levels), 0], dtype=torch.float32) / LEVELS

    def twice_at_second(self, steps: int) -> Tensor:
        """``times`` with the second one twice, as ``Plms`` needs them: float32 [steps + 2]; [2] for one step."""
        times = self.times(steps)
        return times if steps == 1 else torch.cat((times[:2], times[1:]))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ā and √(1 − ā) at time t, float32 of t's shape and device."""
        share = _signal_shares(self)
        level = level_of(t)
        # not every device has float64
        return share.sqrt().float().to(t.device)[level], (1 - share).sqrt().float().to(t.device)[level]

    def clean(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The clean latent implied by x and the predicted noise."""
        signal, spread = self.rates(t)
        return (x - spread * noise) / signal

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """√ā·clean + √(1 − ā)·noise."""
        signal, spread = self.rates(t)
        return signal * clean + spread * noise

    def move(self, x: Tensor, noise: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """The state at ``t_next``, with the same clean latent and the same noise."""
        signal, spread = self.rates(t)
        signal_next, spread_next = self.rates(t_next)
        return signal_next / signal * x + (spread_next - signal_next / signal * spread) * noise


@cache
def _signal_shares(schedule: ScaledLinearSchedule) -> Tensor:
    """[1001]: entry 0 is where a run ends, entry k + 1 the official ā of index k, in float32 as the official tables."""
    roots = torch.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, LEVELS, dtype=torch.float32)
    share = torch.cumprod(1 - roots**2, dim=0).double()
    return torch.cat((torch.ones_like(share[:1]) if schedule.set_alpha_to_one else share[:1], share))


@dataclass(frozen=True, slots=True)
class Deterministic:
    """DDIM without fresh noise: to the next level with the noise that the network saw.

    Source: Diffusers, DDIMScheduler.step with eta 0.
    """

    schedule: ScaledLinearSchedule

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return self.schedule.move(x, velocity, t, t_next)

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        return self.schedule.clean(x, velocity, t)


@dataclass(slots=True)
class Plms:
    """Pseudo linear multistep: the noise is extrapolated from the last four predictions (Adams-Bashforth).

    It has state, so one instance serves one run, from its first step on. The second time is visited twice: with the
    prediction there, the first step is repeated, with the mean of both predictions.
    Source: Diffusers, PNDMScheduler.step_plms; Liu et al., Pseudo Numerical Methods for Diffusion Models, eq. 12.
    """

    schedule: ScaledLinearSchedule
    times: Tensor
    _answers: list[Tensor] = field(default_factory=list)
    _begin: tuple[Tensor, Tensor] | None = None

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """The state at ``t_next``, with the velocities of earlier steps taken into account.

        Raises:
            RequestError: The run does not begin at its first time.
        """
        if not self._answers and t != self.times[0].to(t):
            raise RequestError("this sampler looks back on every step of its run: begin at the first, or use `ddim`")
        if t == t_next and self._begin is not None:
            x, begin = self._begin
            return self.schedule.move(x, (velocity + self._answers[-1]) / 2, begin, t_next)
        if not self._answers:
            self._begin = (x, t)
        self._answers = [*self._answers[1 - HISTORY :], velocity]
        return self.schedule.move(x, self._extrapolated(), t, t_next)

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        return self.schedule.clean(x, velocity, t)

    def _extrapolated(self) -> Tensor:
        match self._answers:
            case [only]:
                return only
            case [b, a]:
                return (3 * a - b) / 2
            case [c, b, a]:
                return (23 * a - 16 * b + 5 * c) / 12
            case [d, c, b, a]:
                return (55 * a - 59 * b + 37 * c - 9 * d) / 24
        raise AssertionError("a history of one to four answers")
