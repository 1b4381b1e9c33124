"""Classifier-free guidance: two denoisers become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from kandinsky.errors import RequestError

# (x_BTHWC, t: float32 scalar in [0, 1]) -> velocity_BTHWC
Denoiser = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Pairing(Protocol):
    """A denoiser that can make two passes at once."""

    def pair(self, other: Denoiser) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """What both give for a state, ``other`` second; None where they cannot run together."""
        ...


class Mixing(Protocol):
    """A way to make one denoiser of several: ``combine`` takes what each of ``guide``'s made, in the same order."""

    @property
    def guide(self) -> Callable[..., Denoiser]: ...

    @property
    def combine(self) -> Callable[..., Tensor]: ...


@dataclass(frozen=True, slots=True)
class Guidance:
    """Weight of the prompt against the negative prompt; 1.0 is off, then no second pass runs.

    Source: kandinskylab/kandinsky-5, kandinsky/generation_utils.py, get_velocity.
    """

    weight: float = 1.0

    @property
    def is_on(self) -> bool:
        return abs(self.weight - 1.0) > 1e-6

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """v_u + w·(v_c − v_u), in this order of operations."""
        return unconditional + self.weight * (conditional - unconditional)

    def guide(self, conditional: Denoiser, unconditional: Denoiser | None = None) -> Denoiser:
        """The guided denoiser: the conditional one alone when guidance is off.

        Raises: RequestError where guidance is on and there is no unconditional denoiser.
        """
        if not self.is_on:
            return conditional
        if unconditional is None:
            raise RequestError(f"guidance `{self.weight}` needs states of the negative prompt: give them, or use 1.0")
        other = unconditional
        pair = conditional.pair(other) if isinstance(conditional, Pairing) else None
        if pair is not None:
            return lambda x_BTHWC, t: self.combine(*(v.to(x_BTHWC.dtype) for v in pair(x_BTHWC, t)))

        def guided(x_BTHWC: Tensor, t: Tensor) -> Tensor:
            # float32 before the difference: at weight 5 rounding errors would be five times as large
            v_c = conditional(x_BTHWC, t).to(x_BTHWC.dtype)
            return self.combine(v_c, other(x_BTHWC, t).to(x_BTHWC.dtype))

        return guided


@dataclass(frozen=True, slots=True)
class ImageGuidance:
    """Weights of a prompt and of an image: a denoiser without either, one with the image, one with both.

    Source: ai-forever/KandinskyVideo@914eac1, kandinsky_video/model/diffusion.py, p_sample_loop.
    """

    prompt: float
    image: float

    def guide(self, both: Denoiser, image_alone: Denoiser, neither: Denoiser) -> Denoiser:
        """The guided denoiser."""

        def guided(x_BTHWC: Tensor, t: Tensor) -> Tensor:
            return self.combine(*(one(x_BTHWC, t).to(x_BTHWC.dtype) for one in (both, image_alone, neither)))

        return guided

    def combine(self, both: Tensor, image_alone: Tensor, neither: Tensor) -> Tensor:
        """neither + image·(image alone − neither) + prompt·(both − image alone)."""
        return (1 - self.image) * neither + (self.image - self.prompt) * image_alone + self.prompt * both
