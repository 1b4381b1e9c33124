"""Events of a running engine; closing the iterator that yields them cancels the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from kandinsky.engine.preview import Preview
    from kandinsky.errors import KandinskyError
    from kandinsky.model.card import LatentRGB
    from kandinsky.model.denoiser import State
    from kandinsky.model.values import Soundtrack, VideoStream


@dataclass(frozen=True, slots=True)
class Phase:
    """A stage begins: `encode`, `condition`, `sample`, `decode`, or one of a family's own."""

    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """A sampling step was taken.

    Attributes:
        step: Number of the step, from 1, over all sampling stages of the batch.
        total: Number of all steps.
        clean: Computes the clean latents as currently predicted.
        rgb: Linear map from the model's latents to colours.
    """

    step: int
    total: int
    clean: Callable[[], State]
    rgb: LatentRGB | None = None

    def preview(self) -> Preview:
        """The clean latents as currently predicted, of the generated track; a small image is computed on request."""
        from kandinsky.engine.preview import Preview
        from kandinsky.model.denoiser import AUDIO, VIDEO

        clean = self.clean()
        return Preview.of(clean[VIDEO if VIDEO in clean else AUDIO], self.rgb)

    def image(self, index: int = 0) -> Image:
        """A small image of one clip of the batch, as currently predicted."""
        return self.preview().images[index]


@dataclass(frozen=True, slots=True)
class Piece:
    """Decoded frames of one job, [t, H, W, 3] uint8, in order of time."""

    index: int
    frames_THWC: np.ndarray


@dataclass(frozen=True, slots=True)
class Done:
    """One job is finished. The frames of a clip came as pieces; its stream holds the rest."""

    index: int
    result: VideoStream | Soundtrack


@dataclass(frozen=True, slots=True)
class Failed:
    """One job has no result."""

    index: int
    error: KandinskyError


Event: TypeAlias = Phase | Step | Piece | Done | Failed
