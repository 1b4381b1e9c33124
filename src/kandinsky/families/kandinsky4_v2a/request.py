"""Checks a video to audio request against its card and its video, before anything heavy is loaded.

Imports no torch. A video is a file or a clip in memory; of a file only the times of its packets are read here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.engine.request import (
    Job,
    checked_guidance,
    checked_prompt,
    checked_seed,
    checked_steps,
    refuse_foreign,
)
from kandinsky.errors import RequestError
from kandinsky.media.mux import InputVideo, probe
from kandinsky.media.spectrogram_params import SpectrogramParams
from kandinsky.model.card import Card, Sound, sound_of
from kandinsky.model.condition import Condition
from kandinsky.model.values import LatentShape, Request, Video, VideoShape

OWN = ("video", "states")
# fields of a request that mean nothing to an audio model
NOT_OURS = (
    "image", "last_image", "conditions", "prompt_at", "fade", "overlap", "loop", "upscale", "upscale_strength",
    "control", "control_strength", "control_steps", "reference", "reference_strength", "branch", "strength", "mask",
    "mask_grow", "span", "place",
    "resample", "source_prompt", "width", "height", "shift", "cache", "expand", "expanded_prompt",
)  # fmt: skip
LONGEST_S = 24 * 60 * 60  # times in a file may be anything
CLOSE_S = 1e-6  # moments closer than this are equal, since times in files are rounded


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of a video, each of ``length_s``, whose audio is generated one by one.

    Attributes:
        starts_s: Starts in seconds, ascending from 0.
        length_s: Duration of each.
    """

    starts_s: tuple[float, ...]
    length_s: float

    @classmethod
    def over(cls, seconds: float, sound: Sound) -> Windows:
        """As few windows as cover ``seconds``, evenly spread; neighbours share at least the card's overlap."""
        if seconds <= sound.window_s + CLOSE_S:
            return cls((0.0,), max(min(seconds, sound.window_s), sound.least_s))
        count = math.ceil((seconds - sound.overlap_s) / (sound.window_s - sound.overlap_s) - CLOSE_S)
        apart = (seconds - sound.window_s) / (count - 1)
        return cls(tuple(i * apart for i in range(count)), sound.window_s)


@dataclass(frozen=True, slots=True)
class SoundChoice:
    """Values of an audio job beyond those of every job.

    Attributes:
        windows: Windows it is generated in.
        states: A file of precomputed embeddings.
    """

    windows: Windows
    states: Path | None = None

    def settings(self, job: Job) -> dict[str, Any]:
        """The values that determine the job's result, under the names a recipe uses."""
        given = {} if self.states is None else {"states": str(self.states)}
        return {
            "model": job.card.id,
            "prompt": job.prompt,
            "negative_prompt": job.negative_prompt,
            "seed": job.seed,
            "video": {"file": str(job.video.path) if isinstance(job.video, InputVideo) else None},
            "seconds": round(job.seconds, 6),
            "windows": len(self.windows.starts_s),
            "steps": job.steps,
            "guidance": job.guidance,
            "noise": job.sampling.noise,
            **given,
        }


def input_video_of(job: Job) -> InputVideo | Video:
    """The input video of a job.

    Raises:
        RequestError: The job has none.
    """
    if job.video is None:
        raise RequestError(f"this request for `{job.card.id}` brings no video")
    return job.video


def choice_of(job: Job) -> SoundChoice:
    """What a job says of its input video.

    Raises:
        RequestError: The job is for another task.
    """
    if not isinstance(job.extra, SoundChoice):
        raise RequestError(f"this request was checked against `{job.card.id}`, which makes no sound")
    return job.extra


def resolve_sound(request: Request, card: Card, needs_video: bool = True) -> Job:
    """Check a request against its card and its video, and fill in the card's defaults and a random seed.

    Raises:
        RequestError: A value is not allowed; the message says what was given, what is allowed and what to do.
    """
    sound = sound_of(card)
    refuse_foreign(request, card, own=OWN)
    for name in NOT_OURS:
        given = getattr(request, name)
        if given is not None and given is not False and not (isinstance(given, tuple) and not given):
            raise RequestError(f"`{card.id}` makes sound and takes no {name.replace('_', ' ')}: leave it out")
    prompt = checked_prompt(request.prompt, card, may_lack=True)
    steps = checked_steps(request.steps, card, card.sampling)
    guidance, negative = checked_guidance(request.guidance, request.negative_prompt, card.sampling)
    states = None if request.states is None else Path(request.states).expanduser()
    if states is not None and not states.is_file():
        raise RequestError(f"states `{states}` are not there: give a .safetensors file with `image_embeds`")
    if request.video is None and not needs_video:  # for a plan: one window
        video: InputVideo | Video | None = None
        seconds = sound.window_s
    else:
        video = _input_video(request.video, card)
        seconds = _seconds(request.seconds, video)
        if not seconds <= LONGEST_S:
            raise RequestError(f"the clip claims to last {seconds:g} s: sound is made for {LONGEST_S} s at most")
    windows = Windows.over(seconds, sound)
    latent = latent_shape(card, sound, windows)
    side = card.clip.spatial
    return Job(
        card=card,
        prompt=prompt,
        negative_prompt=negative,
        seconds=seconds,
        fps=card.clip.fps,
        shape=VideoShape(1, latent.height * side, latent.width * side),
        latent=latent,
        steps=steps,
        guidance=guidance,
        shift=card.sampling.shift,
        seed=checked_seed(request.seed),
        sampling=card.sampling,
        conditions=() if video is None else (Condition("clip", video),),
        extra=None if video is None else SoundChoice(windows, states),
    )


def latent_shape(card: Card, sound: Sound, windows: Windows) -> LatentShape:
    """The latent of the spectrogram of one window."""
    params, clip = SpectrogramParams.from_dict(sound.spectrogram), card.clip
    columns = -(-params.columns(windows.length_s) // sound.multiple) * sound.multiple
    return LatentShape(1, params.num_frequencies // clip.spatial, columns // clip.spatial, clip.channels)


def times_of(video: InputVideo | Video) -> tuple[float, ...]:
    """When each frame is shown, in seconds from 0."""
    return video.times_s if isinstance(video, InputVideo) else tuple(i / video.fps for i in range(len(video)))


def shown_frames(
    times_s: Sequence[float], start_s: float, length_s: float, sound: Sound
) -> tuple[list[int], list[float]]:
    """Which frames of a video the encoder sees for one window, and when, from the window's start.

    If the video ends within the window, its last frame is repeated. At a constant rate, the frames are those of the
    official rule (numbers spread evenly from first to last and truncated to integers).
    """
    if sound.fps:
        wanted = [start_s + i / sound.fps for i in range(sound.frames)]
        return [_nearest(times_s, moment) for moment in wanted], [moment - start_s for moment in wanted]
    first = _on_screen(times_s, start_s)
    if times_s[first] < start_s - CLOSE_S and first + 1 < len(times_s) and times_s[first + 1] < start_s + length_s:
        first += 1
    last = max(first, bisect_right(times_s, start_s + length_s - 2 * CLOSE_S) - 1)
    step = (times_s[last] - times_s[first]) / (sound.frames - 1)
    wanted = [times_s[first] + i * step for i in range(sound.frames)]
    return [_on_screen(times_s, moment) for moment in wanted], [moment - start_s for moment in wanted]


def _on_screen(times_s: Sequence[float], moment_s: float) -> int:
    return max(0, bisect_right(times_s, moment_s + CLOSE_S) - 1)


def _nearest(times_s: Sequence[float], moment_s: float) -> int:
    before = _on_screen(times_s, moment_s)
    if before + 1 == len(times_s):
        return before
    return before + (times_s[before + 1] - moment_s < moment_s - times_s[before] - CLOSE_S)


def _input_video(video: object, card: Card) -> InputVideo | Video:
    if video is None:
        raise RequestError(f"`{card.id}` makes sound for an input video, and none was given: give `video=…`")
    if isinstance(video, Video):
        if not len(video) or not video.fps > 0:
            raise RequestError(f"a clip of {len(video)} frames at {video.fps:g} a second has no length")
        return video
    if not isinstance(video, str | Path):
        raise RequestError(f"video must be a path or a `Video`, not `{type(video).__name__}`")
    return probe(Path(video).expanduser())


def _seconds(seconds: float | None, video: InputVideo | Video) -> float:
    if seconds is None:
        return video.seconds
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise RequestError(f"seconds `{seconds}` must be a number above 0; left out, all of the video gets audio")
    if seconds > video.seconds + 0.01:
        raise RequestError(
            f"the video lasts {video.seconds:.2f} s, and {seconds:g} s of sound were asked for: ask for no more"
        )
    return min(float(seconds), video.seconds)
