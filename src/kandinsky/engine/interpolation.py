"""How a family that supports it raises a clip's frame rate (``Family.interpolate``). No torch.

Legend: T frames; H W rows and columns; C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kandinsky.engine.request import checked_seed, checked_weight
from kandinsky.errors import RequestError
from kandinsky.model.card import Card

if TYPE_CHECKING:
    from kandinsky.diffusion.sample import OnStep
    from kandinsky.engine.pipeline import Pipeline
    from kandinsky.model.values import Video

log = logging.getLogger(__name__)
# A pass puts three frames between two and so quadruples the rate; for other rates the frames nearest in time are kept.
PER_PASS, PASSES = 4, 2
FACTORS = (2, 4, 8, 16)
SEED = 0


@dataclass(frozen=True, slots=True)
class Raise:
    """How a clip's frame rate is raised.

    Attributes:
        factor: 2, 4, 8 or 16.
        fps: Frames per second, instead of a factor.
        prompt: What the clip shows, for models whose interpolation uses it; may be empty.
        steps: Sampling steps of each pass; None = the card's.
        guidance: Guidance scale of each pass; None = the card's, 1 disables it.
        seed: Seed of the noise.
    """

    factor: int = 4
    fps: float | None = None
    prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    seed: int = SEED

    def check(self, card: Card) -> None:
        """Check the values against a model.

        Raises:
            RequestError: The model has no interpolation network, or a value is not allowed.
        """
        if card.family.interpolate is None or card.keyframes is None:
            raise RequestError(f"`{card.id}` has no interpolation network: use `kandinsky-video-1.1`")
        if self.factor not in FACTORS:
            raise RequestError(f"factor `{self.factor}` is not possible: use 2, 4, 8 or 16, or `fps`")
        if self.steps is not None and not 1 <= self.steps <= card.sampling.max_steps:
            raise RequestError(f"steps `{self.steps}` are not possible: use 1 to {card.sampling.max_steps}")
        checked_weight("guidance", self.guidance, card.keyframes.guidance, card.sampling)
        checked_seed(self.seed)
        if self.prompt.strip() and not card.keyframes.guides_text:
            log.warning("the prompt has no effect: the interpolation of `%s` is not told any", card.id)

    def rate(self, given_fps: float) -> float:
        """The frame rate that results.

        Args:
            given_fps: Frames per second of the input.

        Returns:
            Frames per second of the result.

        Raises:
            RequestError: The rate cannot be reached.
        """
        if self.fps is None:
            return given_fps * self.factor
        most = given_fps * PER_PASS**PASSES
        if not given_fps < self.fps <= most:
            raise RequestError(
                f"`{self.fps:g}` frames a second are not possible for a clip of {given_fps:g}: "
                f"use more than that, up to {most:g}"
            )
        return self.fps


def nearest_frames(times_s: Sequence[float], seconds: float, fps: float) -> list[int]:
    """Which frame is shown at each moment of a constant rate: the one nearest in time, the last one to the very end.

    Args:
        times_s: When each frame is shown, in seconds, increasing from 0.
        seconds: Duration of the whole clip.
        fps: The constant rate, in frames per second.

    Returns:
        Indices of frames.
    """
    import numpy as np

    shown = np.asarray(times_s)
    moments = np.arange(max(1, round(seconds * fps))) / fps
    after = np.clip(np.searchsorted(shown, moments), 1, len(shown) - 1)
    is_before = moments - shown[after - 1] <= shown[after] - moments
    return [int(i) for i in after - is_before]


def fitted_size(width: int, height: int, unit: int) -> tuple[int, int]:
    """The nearest size whose sides are multiples of ``unit``, at least one."""
    wide, high = (max(unit, round(side / unit) * unit) for side in (width, height))
    return wide, high


class Interpolate(Protocol):
    """Returns the clip with more frames per second, of the same length and size; see ``interpolate`` of the family."""

    def __call__(
        self,
        pipe: Pipeline,
        video: Video,
        settings: Raise,
        *,
        times_s: Sequence[float] | None = None,
        seconds: float | None = None,
        keep_latent: str | Path | None = None,
        on_step: OnStep | None = None,
    ) -> Video: ...
