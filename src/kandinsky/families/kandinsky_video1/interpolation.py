"""Raises the frame rate of any clip with a model's interpolation network.

Legend: T frames; H W rows and columns; C channels.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from kandinsky.diffusion.sample import OnStep
from kandinsky.engine.context import Context
from kandinsky.engine.interpolation import PASSES, PER_PASS, Raise, fitted_size, nearest_frames
from kandinsky.engine.pipeline import Pipeline
from kandinsky.engine.stages import decode_pieces
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky_video1.keyframes import encode_image, fill_gaps, gap_states
from kandinsky.families.parts.projected import no_text
from kandinsky.media import recipe
from kandinsky.model.values import TextEmbeddings, Video, VideoStream
from kandinsky.ops.native import library

log = logging.getLogger(__name__)
GAPS_AT_ONCE = 56  # as many as the official code's second pass has of a clip of keyframes


def interpolate(
    pipe: Pipeline,
    video: Video,
    settings: Raise,
    *,
    times_s: Sequence[float] | None = None,
    seconds: float | None = None,
    on_step: OnStep | None = None,
) -> VideoStream:
    """Raise a clip's frame rate, keeping its length and size.

    The given frames pass through the autoencoder too, so that they do not stand out. Sides that are not multiples of 64
    are scaled to the nearest for the network, and back. Long clips are filled in parts that share a given frame.

    Args:
        pipe: The model.
        video: The clip.
        settings: The new rate, and how to sample.
        times_s: When each frame is shown, in seconds from 0, if the rate is not constant.
        seconds: Duration of the clip, if the rate is not constant.
        on_step: Called after each step.

    Returns:
        The clip with more frames per second, decoded as it is consumed.

    Raises:
        RequestError: The clip has fewer than two frames, or a setting is not allowed.
    """
    settings.check(pipe.card)
    keyframes = pipe.card.keyframes
    assert keyframes is not None
    count = len(video.frames_THWC)
    if count < 2:
        raise RequestError("a clip of one frame has no gaps to fill: give one of two frames or more")
    fps = settings.rate(video.fps)
    passes = 1 if fps <= video.fps * PER_PASS else PASSES
    height, width = video.frames_THWC.shape[1:3]
    size = fitted_size(width, height, pipe.card.clip.multiple)
    prompt = settings.prompt if keyframes.guides_text else ""
    context = pipe.context
    states = _states(context, prompt)
    latents = torch.cat([encode_image(context, _resized(frame, size)) for frame in video.frames_THWC], dim=1)
    steps = settings.steps or keyframes.steps
    guidance = keyframes.guidance if settings.guidance is None else settings.guidance
    parts = [_parts((count - 1) * PER_PASS**number) for number in range(passes)]
    done, total = 0, sum(map(len, parts)) * steps
    for number, ranges in enumerate(parts):
        filled = []
        for begin, end in ranges:
            walk = fill_gaps(
                context, latents[:, begin : end + 1], *states, steps_=steps, guidance=guidance, seed=settings.seed,
                number=number, done=done, total=total,
            )  # fmt: skip
            filled.append(pipe.drive(walk, on_step))
            done += steps
        latents = torch.cat([part[:, :-1] for part in filled] + [filled[-1][:, -1:]], dim=1)
    made = _recipe(context, video, settings, {"steps": steps, "interpolation_guidance": guidance, "fps": fps})
    times = np.asarray(times_s if times_s is not None else np.arange(count) / video.fps)
    dense = np.interp(np.arange((count - 1) * PER_PASS**passes + 1) / PER_PASS**passes, np.arange(count), times)
    shown = Counter(nearest_frames(dense, seconds if seconds is not None else count / video.fps, fps))

    def frames() -> Iterator[np.ndarray]:
        number = 0
        for piece in decode_pieces(context, latents[0]):
            for frame in piece:
                if times_shown := shown[number]:
                    yield np.repeat(np.asarray(_resized(frame, (width, height)))[None], times_shown, axis=0)
                number += 1

    return VideoStream(frames(), shown.total(), fps=fps, seed=settings.seed, recipe=made)


def _parts(gaps: int) -> list[tuple[int, int]]:
    """Gaps in parts of nearly the same length: the first frame and the last of each."""
    count = -(-gaps // GAPS_AT_ONCE)
    ends = [gaps * i // count for i in range(count + 1)]
    return list(itertools.pairwise(ends))


def _resized(frame_HWC: np.ndarray, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(frame_HWC)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _states(context: Context, prompt: str) -> tuple[TextEmbeddings, TextEmbeddings]:
    """Embeddings of the prompt and of an empty prompt; the text encoder is read for a prompt only."""
    if not prompt.strip():
        nothing = no_text(int(context.card.dit.params["context_dim"]))
        return nothing, nothing
    text = gap_states(context, prompt)
    return text, no_text(text.tokens_BLC.shape[-1])


def _recipe(context: Context, video: Video, settings: Raise, used: Mapping[str, Any]) -> dict[str, Any]:
    height, width = video.frames_THWC.shape[1:3]
    values = {
        "model": context.name,
        "prompt": settings.prompt,
        "seed": settings.seed,
        "width": width,
        "height": height,
        "interpolated": {"factor": used["fps"] / video.fps, "from": dict(video.recipe)},
        **used,
    }
    device = str(context.placement.device("interpolation"))
    kernels = library.told() if device == "cpu" else None
    dtype = context.precision.name
    return recipe.build(values, revision=context.revision, dtype=dtype, device=device, kernels=kernels)
