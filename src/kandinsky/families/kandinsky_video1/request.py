"""Request fields of keyframe models: frame rate and motion by name, two more guidance scales. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky.engine.request import Job, checked_weight, either, latent_of, refuse_foreign, resolve_clip
from kandinsky.errors import RequestError
from kandinsky.model.card import Card, Keyframes
from kandinsky.model.values import Request

OWN = ("fps", "motion", "image_guidance", "interpolation_guidance")


@dataclass(frozen=True, slots=True)
class KeyframeChoice:
    """Request fields of keyframe models, beyond those of every model.

    Attributes:
        rate: Name of the frame rate.
        passes: How often the gaps between frames are filled.
        motion: Name of the amount of motion; None for models without this input.
        image_guidance: Guidance scale of the first frame.
        interpolation_guidance: Guidance scale of the frames around a gap; 1 disables it.
    """

    rate: str
    passes: int
    motion: str | None
    image_guidance: float
    interpolation_guidance: float

    def settings(self, job: Job) -> dict[str, Any]:
        """The values that determine the job's result, under the names a recipe uses."""
        told = {} if self.motion is None else {"motion": self.motion, "image_guidance": self.image_guidance}
        return job.plain_settings() | {"rate": self.rate, "interpolation_guidance": self.interpolation_guidance, **told}


def resolve_keyframes(request: Request, card: Card, needs_image: bool = True) -> Job:
    """``engine.request.resolve`` for keyframe models: the frame rate decides the number of frames."""
    refuse_foreign(request, card, own=OWN)
    keyframes = keyframes_of(card)
    choice = _choice(request, card, keyframes)
    plain = resolve_clip(request.with_values(**dict.fromkeys(OWN)), card, needs_image)
    frames, fps = frames_after(keyframes, choice.passes), float(keyframes.fps[choice.rate])
    shape = dataclasses.replace(plain.shape, frames=frames)
    return dataclasses.replace(
        plain, shape=shape, latent=latent_of(shape, card), fps=fps, seconds=round(frames / fps, 3), extra=choice
    )


def keyframes_of(card: Card) -> Keyframes:
    """The keyframe settings of a card.

    Raises:
        RequestError: The model has none.
    """
    if card.keyframes is None:
        raise RequestError(f"`{card.id}` makes no key frames")
    return card.keyframes


def frames_after(keyframes: Keyframes, passes: int) -> int:
    """Frames of a clip whose gaps were filled ``passes`` times: three frames into each."""
    out: int = (keyframes.count - 1) * 4**passes + 1
    return out


def _choice(request: Request, card: Card, keyframes: Keyframes) -> KeyframeChoice:
    if request.seconds is not None and request.seconds != card.clip.seconds:
        raise RequestError(f"the length of `{card.id}` is fixed: leave the seconds out; `fps` decides how many frames")
    rate = _name("fps", request.fps, keyframes.fps, keyframes.default_fps, card)
    gaps = checked_weight("interpolation guidance", request.interpolation_guidance, keyframes.guidance, card.sampling)
    first = keyframes.first_frame
    if first is None:
        for name in ("motion", "image_guidance"):
            if getattr(request, name) is not None:
                raise RequestError(f"`{card.id}` takes no {name.replace('_', ' ')}: leave it out")
        return KeyframeChoice(rate, list(keyframes.fps).index(rate), None, 1.0, gaps)
    motion = _name("motion", request.motion, first.motion, first.default_motion, card)
    image_guidance = checked_weight("image guidance", request.image_guidance, first.image_guidance, card.sampling)
    return KeyframeChoice(rate, list(keyframes.fps).index(rate), motion, image_guidance, gaps)


def _name(what: str, given: object, names: Mapping[str, int], default: str, card: Card) -> str:
    if given is None:
        return default
    if not isinstance(given, str) or given not in names:
        raise RequestError(f"{what} `{given}` is not supported by `{card.id}`: use {either(tuple(names))}")
    return given
