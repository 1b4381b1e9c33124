"""The frame rate of any clip raised by a model's interpolation network.

Legend: T frames; H W rows and columns; C channels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kandinsky.cards import Card
from kandinsky.errors import RequestError
from kandinsky.media import recipe
from kandinsky.pipelines.generation import GenerationPipeline, OnStep
from kandinsky.pipelines.keyframes import Progress, encode_picture, fill_gaps, gap_states
from kandinsky.pipelines.latents import write_latent
from kandinsky.text.projected import no_text
from kandinsky.types import TextStates, Video

log = logging.getLogger(__name__)
FACTORS = {4: 1, 16: 2}  # frames come in threes between two, so a rate is raised by 4 a pass
SEED = 0


@dataclass(frozen=True, slots=True)
class Raise:
    """How a clip's frame rate is raised.

    factor: 4 or 16.   prompt: what the clip shows, for models whose interpolation is told; may be empty.
    steps, guidance: of each pass; None = the card's, guidance 1 = off.   seed: of the noise.
    """

    factor: int = 4
    prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    seed: int = SEED

    def check(self, card: Card) -> None:
        """Raises: RequestError for a model without interpolation or a value that is not legal."""
        if card.keyframes is None:
            raise RequestError(f"`{card.id}` has no interpolation network: use `kandinsky-video-1.1`")
        if self.factor not in FACTORS:
            raise RequestError(f"factor `{self.factor}` is not possible: use 4 or 16")
        if self.steps is not None and not 1 <= self.steps <= card.sampling.max_steps:
            raise RequestError(f"steps `{self.steps}` are not possible: use 1 to {card.sampling.max_steps}")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise RequestError(f"guidance `{self.guidance}` is not possible: use 0 or more, 1 is off")
        if self.prompt.strip() and not card.keyframes.guides_text:
            log.warning("the prompt has no effect: the interpolation of `%s` is not told any", card.id)


def fitted_size(width: int, height: int, unit: int) -> tuple[int, int]:
    """The nearest size whose sides are multiples of ``unit``, at least one."""
    wide, high = (max(unit, round(side / unit) * unit) for side in (width, height))
    return wide, high


def interpolate(
    pipe: GenerationPipeline,
    video: Video,
    settings: Raise,
    *,
    keep_latent: str | Path | None = None,
    on_step: OnStep | None = None,
) -> Video:
    """The clip with ``factor`` times the frame rate and the same length; its size is the given one.

    The given frames pass through the autoencoder too, so that they do not stand out. Sides that are no multiples of 64
    are scaled to the nearest for the network, and back.
    Raises: RequestError for a clip of fewer than two frames, or settings that are not legal.
    """
    settings.check(pipe.card)
    keyframes = pipe.card.keyframes
    assert keyframes is not None
    if len(video.frames_THWC) < 2:
        raise RequestError("a clip of one frame has no gaps to fill: give one of two frames or more")
    height, width = video.frames_THWC.shape[1:3]
    size = fitted_size(width, height, pipe.card.clip.multiple)
    pictures = [Image.fromarray(frame) for frame in video.frames_THWC]
    if size != (width, height):
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    prompt = settings.prompt if keyframes.guides_text else ""
    states = _states(pipe, prompt)
    latents = torch.cat([encode_picture(pipe, picture) for picture in pictures], dim=1)
    steps = settings.steps or keyframes.steps
    guidance = keyframes.guidance if settings.guidance is None else settings.guidance
    passes = FACTORS[settings.factor]
    progress = Progress(on_step, passes * steps)
    for number in range(passes):
        latents = fill_gaps(pipe, latents, *states, steps=steps, guidance=guidance, seed=settings.seed, number=number,
                            on_step=progress.stage())  # fmt: skip
    made = _recipe(pipe, video, settings, {"steps": steps, "interpolation_guidance": guidance})
    if keep_latent is not None:
        write_latent(Path(keep_latent), latents[0], made)
    frames = pipe.decode(latents)[0]
    if size != (width, height):
        back = [Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
        frames = np.stack([np.asarray(picture) for picture in back])
    return Video(frames, fps=video.fps * settings.factor, seed=settings.seed, recipe=made)


def _states(pipe: GenerationPipeline, prompt: str) -> tuple[TextStates, TextStates]:
    """States of the prompt and of no text. The text encoder is read for a prompt only."""
    if not prompt.strip():
        nothing = no_text(int(pipe.card.dit.params["context_dim"]))
        return nothing, nothing
    text = gap_states(pipe, prompt)
    return text, no_text(text.tokens_BLC.shape[-1])


def _recipe(pipe: GenerationPipeline, video: Video, settings: Raise, used: Mapping[str, Any]) -> dict[str, Any]:
    height, width = video.frames_THWC.shape[1:3]
    values = {
        "model": pipe.name,
        "prompt": settings.prompt,
        "seed": settings.seed,
        "width": width,
        "height": height,
        "fps": video.fps * settings.factor,
        "interpolated": {"factor": settings.factor, "from": dict(video.recipe)},
        **used,
    }
    device = str(pipe.placement.device("interpolation"))
    return recipe.build(values, revision=pipe.revision, dtype=pipe.precision.name, device=device)
