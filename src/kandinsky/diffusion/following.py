"""What is known of a result, in the state of a sampling run: clean, or with the noise that the state has at each time.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kandinsky.model.denoiser import Known, State


def first_step(known: Known, times: Tensor, strength: float) -> int:
    """The first step that is taken: the first whose time is not above the strength; the last for very small ones.

    Args:
        known: What is known; where no run begins from it, all steps are taken.
        times: Of the steps, falling.
        strength: The time that a run begins at.
    """
    if not known.begin:
        return 0
    return first_step_from(times, strength)


def first_step_from(times: Tensor, strength: float) -> int:
    """The first step that is taken of a run that begins from what is known; as ``first_step``."""
    return min(int((times > strength + 1e-6).sum()), len(times) - 2)


@dataclass(frozen=True, slots=True)
class Following:
    """Pins a state to what is known.

    Source: Lugmayr et al., RePaint, algorithm 1 (the known part at each level of noise); Meng et al., SDEdit (a run
        that begins from a noised source). Both for any sampler, by its own way of adding noise.

    Attributes:
        known: What is known.
        noise: The noise of the run, by track; the known part keeps it from the first step to the last.
        mix: (clean latent, noise, t) to the latent at time t.
        end: The last time of the run; there, what is known is exact, though some schedules have a little noise.
    """

    known: Known
    noise: State
    mix: Callable[[Tensor, Tensor, Tensor], Tensor]
    end: Tensor

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """A clean latent as the state has it at time t."""
        t, end = t.to(clean.device), self.end.to(clean.device)
        return torch.where(t > end, self.mix(clean, noise.to(clean), t), clean)

    def begin(self, t: Tensor) -> State:
        """The state at the first time of the run."""
        begin: Mapping[str, Tensor] = self.known.begin
        return {name: self.noised(begin[name].to(x), x, t) if name in begin else x for name, x in self.noise.items()}

    def pin(self, state: State, t: Tensor) -> State:
        """The state at time t with what is known in its place; exactly the known latent at the end."""
        out = dict(self.known.pin(state))
        for name, mask in self.known.follow.items():
            x = out[name]
            clean = self.known.clean[name].to(x)
            out[name] = torch.where(mask.to(x.device), self.noised(clean, self.noise[name], t), x)
        return out
