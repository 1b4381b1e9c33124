"""Editing by two prompts, without inversion: the difference of what they ask of a noised source moves the source.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(slots=True)
class FlowEdit:
    """A velocity of the edited clip, for the sampling loop with Euler steps from the source itself.

    Source: Kulikov et al., FlowEdit (arXiv 2412.08629), algorithm 1 with one draw of noise a step.

    Attributes:
        target: Denoiser under the prompt.
        source: Denoiser under the prompt of the source.
        clean: Latent of the source, by track.
        draw: Number of the step to noise of the latent's shape.
        pin: Puts what is known into a state, as the denoisers are given it.
    """

    target: Callable[[State, Tensor], State]
    source: Callable[[State, Tensor], State]
    clean: State
    draw: Callable[[int], Tensor]
    pin: Callable[[State], State]
    number: int = field(default=0, init=False)

    def __call__(self, x: State, t: Tensor) -> State:
        """The velocity of the edit at x and t."""
        noise = self.draw(self.number)
        self.number += 1
        noised = {name: (1 - t) * self.clean[name] + t * noise.to(one) for name, one in x.items()}
        edited = {name: noised[name] + (one - self.clean[name]) for name, one in x.items()}
        asked, shown = self.target(self.pin(edited), t), self.source(self.pin(noised), t)
        return {name: asked[name].float() - shown[name].float() for name in x}
