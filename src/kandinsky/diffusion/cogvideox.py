"""The CogVideoX schedule: 1000 levels of noise, variance preserving, and its two steps.

x = √ā·clean + √(1 − ā)·noise, and the network predicts v = √ā·noise − √(1 − ā)·clean. Inside the library a level is a
time t in [0, 1], 1 = noise: t·1000 − 1 is the index k of the official tables, and t = 0 the clean clip.

Legend: B batch; T H W C latent frames, rows, columns, channels; N draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.model.params import refuse_unknown, without_fixed

LEVELS = 1000
# Diffusers' settings that are fixed in this schedule
FIXED: dict[str, Any] = {
    "num_train_timesteps": LEVELS,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
# settings of what this schedule does not do: clipping the clean estimate
WITHOUT_EFFECT = ("clip_sample_range", "sample_max_value")


@dataclass(frozen=True)
class CogVideoXSchedule:
    """Share of the signal at each level; the table is float64.

    The last level is then brought to no signal at all, keeping the first (zero terminal signal-to-noise ratio).

    Source: Diffusers, CogVideoXDDIMScheduler, with the values of THUDM/CogVideoX-5b.

    Attributes:
        beta_start: First β of the "scaled linear" schedule; the value of CogVideoX-5b, which Kandinsky 4 took.
        beta_end: Last β, likewise.
        snr_shift: > 0; ā becomes ā / (s + (1 − s)·ā): 1 changes nothing, more spends more steps near noise.

    Raises:
        RequestError: The shift is 0 or less.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.snr_shift > 0:
            raise RequestError(f"shift `{self.snr_shift}` is not allowed: use a number above 0; 1 changes nothing")

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> CogVideoXSchedule:
        """Read Diffusers' `scheduler_config.json`; keys that begin with `_` are notes.

        Raises:
            RequestError: A value needs another schedule, or a key is unknown.
        """
        values = without_fixed(values, FIXED, "scheduler value")
        known = ("beta_start", "beta_end", "snr_shift_scale", *WITHOUT_EFFECT)
        refuse_unknown(values, known, "scheduler value")
        return cls(
            float(values.get("beta_start", cls.beta_start)),
            float(values.get("beta_end", cls.beta_end)),
            float(values.get("snr_shift_scale", cls.snr_shift)),
        )

    @property
    def alphas_cumprod(self) -> Tensor:
        """ā of the levels 0 … 999, float64 [1000]."""
        return _signal_shares(self)[1:]

    def times(self, steps: int) -> Tensor:
        """Falling times of a run, float32 [steps + 1], from 1 to 0; "trailing", so that the first is pure noise.

        Quirk: where a level lies between two integers (48 steps: 937.5), the rounding errors of NumPy's ``arange``
        decide, so they are reproduced here.

        Raises:
            RequestError: ``steps`` is below 1 or above 1000.
        """
        if not 1 <= steps <= LEVELS:
            raise RequestError(f"steps `{steps}` are not possible: use 1 to {LEVELS}")
        gap = (LEVELS - LEVELS / steps) - LEVELS
        levels = [round(LEVELS + i * gap) for i in range(steps)]
        return torch.tensor([*levels, 0], dtype=torch.float32) / LEVELS

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ā and √(1 − ā) at time t, float32 of t's shape and device: (1, 0) at t = 0 and (0, 1) at t = 1."""
        share = _signal_shares(self)
        level = level_of(t)
        # roots in float64, then float32: not every device has the larger type
        return share.sqrt().float().to(t.device)[level], (1 - share).sqrt().float().to(t.device)[level]

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """√ā·clean + √(1 − ā)·noise."""
        signal, spread = self.rates(t)
        return signal * clean + spread * noise

    def clean(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """The clean latent implied by x and the prediction v."""
        signal, spread = self.rates(t)
        return signal * x - spread * v

    def noise(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """The noise implied by x and the prediction v."""
        signal, spread = self.rates(t)
        return spread * x + signal * v


@cache
def _signal_shares(schedule: CogVideoXSchedule) -> Tensor:
    """[1001]: entry 0 is the clean clip, entry k + 1 the official ā of index k."""
    roots = torch.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, LEVELS, dtype=torch.float64)
    share = torch.cumprod(1 - roots**2, dim=0)
    share = share / (schedule.snr_shift + (1 - schedule.snr_shift) * share)
    root = share.sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return torch.cat((torch.ones(1, dtype=torch.float64), root**2))


def level_of(t: Tensor) -> Tensor:
    """Index of the level, 0 … 1000, of a time in [0, 1]; the network's own time is this number − 1."""
    return (t.float() * LEVELS).round().long()


class Schedule(Protocol):
    """What re-noising needs of a schedule: the clean latent, and a noised one."""

    def clean(self, x: Tensor, predicted: Tensor, t: Tensor, /) -> Tensor: ...

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Renoise:
    """To the clean estimate, then back to the next level with fresh noise; the last step ends with the estimate.

    Source: ai-forever/Kandinsky-4, kandinsky/t2v_pipeline.py, diffusion_generate_renoise.

    Attributes:
        times: Times of the run, to find the draw of a step; float32 as from ``CogVideoXSchedule.times``.
        draws_NBTHWC: Fresh noise, one draw for each step but the last.
    """

    schedule: Schedule
    times: Tensor
    draws_NBTHWC: Tensor

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        clean = self.clean(x, velocity, t)
        number = int((self.times.to(t_next) > t_next).sum())
        if number > len(self.draws_NBTHWC):
            return clean
        return self.schedule.noised(clean, self.draws_NBTHWC[number - 1].to(clean), t_next)

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        return self.schedule.clean(x, velocity, t)


@dataclass(frozen=True, slots=True)
class Ddim:
    """To the clean estimate, then to the next level with the noise that the network saw; nothing random.

    Source: Diffusers, CogVideoXDDIMScheduler.step with eta 0.
    """

    schedule: CogVideoXSchedule

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return self.schedule.noised(self.clean(x, velocity, t), self.schedule.noise(x, velocity, t), t_next)

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        return self.schedule.clean(x, velocity, t)
