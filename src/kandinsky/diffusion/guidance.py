"""Classifier-free guidance: several denoisers become one. States are tensors, or mappings of tracks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.model.denoiser import each

X = TypeVar("X", bound=Tensor | Mapping[str, Tensor])
# (x, t: float32 scalar in [0, 1]) -> prediction of the same form as x
Denoising = Callable[[X, Tensor], X]


@runtime_checkable
class Pairing(Protocol):
    """A denoiser that can run two passes as one batch."""

    def pair(self, other: Any) -> Callable[[Any, Tensor], tuple[Any, Any]] | None:
        """A callable that returns both predictions, that of ``other`` second; None if they cannot run together."""
        ...


class Mixing(Protocol):
    """A way to combine denoisers: ``combine`` takes the predictions of ``guide``'s denoisers, in the same order."""

    @property
    def guide(self) -> Callable[..., Any]: ...

    @property
    def combine(self) -> Callable[..., Tensor]: ...


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance with a scale; 1.0 disables it, and no second pass runs.

    Source: kandinskylab/kandinsky-5, kandinsky/generation_utils.py, get_velocity.
    """

    weight: float = 1.0

    @property
    def is_on(self) -> bool:
        return abs(self.weight - 1.0) > 1e-6

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """v_u + w·(v_c − v_u), in this order of operations."""
        return unconditional + self.weight * (conditional - unconditional)

    def guide(self, conditional: Denoising[X], unconditional: Denoising[X] | None = None) -> Denoising[X]:
        """The guided denoiser: the conditional one alone when guidance is off.

        Raises:
            RequestError: Guidance is enabled and there is no unconditional denoiser.
        """
        if not self.is_on:
            return conditional
        if unconditional is None:
            raise RequestError(f"guidance `{self.weight}` needs states of the negative prompt: give them, or use 1.0")
        other = unconditional
        pair = conditional.pair(other) if isinstance(conditional, Pairing) else None

        def guided(x: X, t: Tensor) -> X:
            # float32 before the difference: a guidance scale of 5 amplifies rounding errors fivefold
            v_c, v_u = pair(x, t) if pair is not None else (conditional(x, t), other(x, t))
            return each(self.combine, as_state(v_c, x), as_state(v_u, x))

        return guided


@dataclass(frozen=True, slots=True)
class ImageGuidance:
    """Separate guidance scales for prompt and image: passes with neither, with the image alone, and with both.

    Source: ai-forever/KandinskyVideo@914eac1, kandinsky_video/model/diffusion.py, p_sample_loop.
    """

    prompt: float
    image: float

    def guide(self, both: Denoising[X], image_alone: Denoising[X], neither: Denoising[X]) -> Denoising[X]:
        """The guided denoiser."""

        def guided(x: X, t: Tensor) -> X:
            return each(self.combine, *(as_state(one(x, t), x) for one in (both, image_alone, neither)))

        return guided

    def combine(self, both: Tensor, image_alone: Tensor, neither: Tensor) -> Tensor:
        """Compute neither + image·(image alone − neither) + prompt·(both − image alone)."""
        return (1 - self.image) * neither + (self.image - self.prompt) * image_alone + self.prompt * both


def as_state(prediction: X, state: X) -> X:
    """A prediction in the dtype of the state."""
    return each(lambda v, x: v.to(x.dtype), prediction, state)
