"""Clips longer than a model's longest, as windows that overlap: which latent frames each makes and which it knows.

All windows lie on the grid of the whole clip's latent: its first frame, then one for each group of `temporal` pixel
frames. The first latent frame of a later window stands for the last pixel frame of its group, as a still: so the
window is a clip like those the model was trained on, and its further frames are those of the whole. No torch.

Legend: numbers are latent frames unless they are called pixel frames or seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kandinsky.engine.conditions import pixels_of
from kandinsky.errors import RequestError
from kandinsky.model.condition import Span
from kandinsky.model.given import Control, Reference, Source
from kandinsky.model.timeline import PromptAt, PromptSchedule, seconds, timeline
from kandinsky.model.values import LatentShape, VideoShape

if TYPE_CHECKING:
    from kandinsky.engine.request import Job
    from kandinsky.model.card import Card
    from kandinsky.model.values import Request

LONGEST = 3600.0  # seconds of a clip
SHARE = 1 / 4  # of a window that is known, where the card does not say


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a clip that is sampled as a clip of its own.

    Attributes:
        number: From 0.
        start: Its first frame in the whole clip.
        known: The first frame that it makes; those before are known from the window before.
        stop: The one after its last.
        tail: Of a loop's last window, how many frames at its end are known to be the beginning of the clip; they are
            no part of the result.
    """

    number: int
    start: int
    known: int
    stop: int
    tail: int = 0

    @property
    def frames(self) -> int:
        return self.stop - self.start

    @property
    def makes(self) -> Span:
        """The frames of the result that it makes."""
        return Span(self.known, self.stop - self.tail)


@dataclass(frozen=True, slots=True)
class Long:
    """How a clip is made in windows.

    Attributes:
        windows: The windows, in order of time.
        overlap: Seconds that neighbours share.
        script: Which prompts hold when.
        asked: The prompts by time as they were asked for.
        loop: Whether the end leads to the beginning.
    """

    windows: tuple[Window, ...]
    overlap: float
    script: PromptSchedule
    asked: tuple[PromptAt, ...] = ()
    loop: bool = False

    def settings(self) -> dict[str, Any]:
        """The values that determine the result, under the names a request uses."""
        found: dict[str, Any] = {"overlap": self.overlap} if len(self.windows) > 1 else {}
        if self.asked:
            found |= {"prompt_at": [one.plain() for one in self.asked], "fade": self.script.fade}
        return found | ({"loop": True} if self.loop else {})

    def since(self, window: Window, fps: float, temporal: int) -> int:
        """For how many frames the latest prompt of what a window makes has held before the window's first frame."""
        began = (latent_of(begin, fps, temporal) for begin, _ in self.script.changes)
        return window.start - max(frame for frame in began if frame <= window.known)

    def prompts_of(self, window: Window, fps: float, temporal: int) -> dict[str, float]:
        """The mean share of each prompt over what a window makes."""
        first, end = pixels_of(window.makes, temporal)
        return self.script.over(first / fps, end / fps, fps)


def is_long(request: Request, card: Card, length: float) -> bool:
    """Whether a clip of so many seconds is made in windows."""
    return length > card.clip.max_seconds or bool(request.prompt_at) or request.loop


def long_of(
    request: Request, prompt: str, length: float, shape: VideoShape, card: Card, *, cut: int | None = None
) -> Long | None:
    """The windows of a request; None where the model makes it as a whole.

    Args:
        request: The request.
        prompt: Its checked prompt.
        length: Its seconds.
        shape: Size of the result, as it is made.
        card: The model.
        cut: How many of its frames are kept, if not all.

    Raises:
        RequestError: The model makes no windows, or a value does not suit them.
    """
    if not is_long(request, card, length):
        for name in ("overlap", "fade"):
            if getattr(request, name) is not None:
                raise RequestError(
                    f"`{name}=…` is of clips made in windows, and {length:g} s are made as a whole: leave it out, or "
                    f"ask for more than {card.clip.max_seconds:g} s"
                )
        return None
    check_able(request, card, length)
    if shape.frames == 1:
        raise RequestError(
            "a still image has no time: leave `prompt_at=…` and `loop=True` out, or ask for more seconds"
        )
    if request.expand or request.expanded_prompt is not None:
        raise RequestError("clips made in windows take their prompts as they are: leave `expand=True` out")
    if request.fade is not None and not request.prompt_at:
        raise RequestError("`fade=…` is between prompts, and there is one: give `prompt_at=…`, or leave it out")
    if request.fade and not card.part("text").mixes:
        change = card.clip.temporal / card.clip.fps
        raise RequestError(f"`{card.id}` goes from one prompt to the next in {change:.2g} s: leave `fade=…` out")
    clip = card.clip
    step, unit = clip.temporal, clip.frame_step // clip.temporal
    longest = longest_of(card)
    known = overlap_seconds(request.overlap, card)
    overlap = max(1, math.ceil(known * clip.fps / step - 1e-4))
    tail = overlap if request.loop else 0
    most = (longest - 2 + (0 if request.loop else 1)) // (2 if request.loop else 1)
    if overlap > most:
        raise RequestError(
            f"overlap `{known:g}` s leaves nothing to make in a window of {clip.max_seconds:g} s"
            f"{' that loops' if request.loop else ''}: use up to {most * step / clip.fps:.4g}"
        )
    total = (shape.frames - 1) // step + 1
    if request.loop and total < 3:
        raise RequestError(f"{length:g} s are too short to loop: use {(2 * step + 1) / clip.fps:.3g} and more")
    script = timeline(
        prompt, request.prompt_at, length=(cut or shape.frames) / clip.fps, fps=clip.fps, fade=request.fade
    )
    changes = [latent_of(begin, clip.fps, step) for begin, _ in script.changes]
    # a clip begins with a frame alone and a group, or as many as its grid has, and these see one prompt
    first = min(total, unit + 1)
    for (begin, text), a, b in zip(script.changes, changes, [*changes[1:], total], strict=True):
        if b <= a or b < first:
            least = (first - 1) * step + 1 if a == 0 else step
            raise RequestError(
                f"the prompt `{text}` at {begin:g} s holds for less than {least} frames, which are made together: "
                f"give it {math.ceil(least / clip.fps * 1000) / 1000:.3g} s and more"
            )
    if not script.fade:  # the window before a change is told nothing of the prompt after it
        starts = [((change - 1) * step + 1) / clip.fps if change else 0.0 for change in changes]
        script = replace(script, changes=tuple(zip(starts, (text for _, text in script.changes), strict=True)))
    made = tuple(windows(total, longest=longest, overlap=overlap, tail=tail, breaks=changes, unit=unit))
    while tail > 1 and made[-1].start + made[-1].known <= tail:  # the beginning must be made before it is an end
        tail -= 1
        made = tuple(windows(total, longest=longest, overlap=overlap, tail=tail, breaks=changes, unit=unit))
    if tail and made[-1].start + made[-1].known <= tail:
        raise RequestError(f"{length:g} s are too short to loop: use more seconds")
    return Long(made, known, script, tuple(request.prompt_at), request.loop)


def latent_of(begin: float, fps: float, temporal: int) -> int:
    """The frame that a prompt holds from: that at the nearest border of a group of pixel frames."""
    return max(0, round((begin * fps - 1) / temporal) + 1) if begin else 0


def in_one_go(shape: VideoShape, card: Card, prompt: str = "") -> Long:
    """Windows of a clip under one prompt, whichever; a single one where the model makes so many frames at once."""
    clip = card.clip
    total, known = (shape.frames - 1) // clip.temporal + 1, default_overlap(card)
    overlap = max(1, math.ceil(known * clip.fps / clip.temporal - 1e-4))
    unit = clip.frame_step // clip.temporal
    made = windows(total, longest=max(longest_of(card), 1), overlap=overlap, unit=unit)
    return Long(tuple(made), known, PromptSchedule(((0.0, prompt),)))


def check_able(request: Request, card: Card, length: float) -> None:
    """Refuse models that make no windows, and what is not given to them.

    Raises:
        RequestError: Such a model, or a source.
    """
    clip = card.clip
    asked = "loop=True" if request.loop else "prompt_at=…" if request.prompt_at else ""
    if asked and clip.max_seconds == 0:
        raise RequestError(f"`{card.id}` makes images: leave `{asked}` out, or use a video model")
    if card.roll is not None:
        raise RequestError(
            f"`{card.id}` is autoregressive and makes no windows: stream it, in any length, with prompts that change",
            hint="`kandinsky live` and `Pipeline.stream` do",
        )
    if card.keyframes is not None or not card.goes_on or clip.overlap == 0:
        whole = f"use {clip.min_seconds:g} to {clip.max_seconds:g}, since its clips are made as a whole"
        if asked:
            raise RequestError(
                f"`{card.id}` makes its clips as a whole: leave `{asked}` out, or use another video model"
            )
        raise RequestError(f"`{length:g}` seconds are not supported by `{card.id}`: {whole}")
    if request.video is not None or any(isinstance(one, Source) for one in request.conditions):
        raise RequestError(
            f"a video is changed as a whole, in up to {clip.max_seconds:g} s by `{card.id}`: cut it into parts"
        )
    if (
        request.control is not None
        or request.reference is not None
        or any(isinstance(one, Control | Reference) for one in request.conditions)
    ):
        raise RequestError(
            f"a control or a reference goes with clips of up to {clip.max_seconds:g} s by `{card.id}`: leave it out, "
            "or ask for fewer seconds"
        )


def longest_of(card: Card) -> int:
    """Frames of a model's longest clip."""
    clip = card.clip
    return int(clip.max_seconds * clip.fps + 1e-6) // clip.frame_step * clip.frame_step // clip.temporal + 1


def default_overlap(card: Card) -> float:
    """Seconds that neighbouring windows share if a request does not say."""
    clip = card.clip
    if clip.overlap is not None:
        return clip.overlap
    return round(max(1, int(longest_of(card) * SHARE)) * clip.temporal / clip.fps, 6)


def overlap_seconds(asked: float | str | None, card: Card) -> float:
    """How many seconds neighbouring windows share.

    Raises:
        RequestError: It is no time.
    """
    if asked is None:
        return default_overlap(card)
    try:
        value = seconds(asked, fps=card.clip.fps)
    except RequestError as error:
        raise RequestError(
            f"overlap `{asked}` is no time: use seconds such as `0.5s`, or frames such as `12`"
        ) from error
    if round(value, 6) == 0:
        raise RequestError("overlap `0` would join windows that know nothing of each other: use a time above 0")
    return round(value, 6)  # as recipes say it


def windows(
    total: int, *, longest: int, overlap: int, tail: int = 0, breaks: Iterable[int] = (), unit: int = 1
) -> list[Window]:
    """Cover a clip with windows.

    Args:
        total: Frames of the clip.
        longest: Frames of the longest window.
        overlap: Frames that each window knows of the one before, at least.
        tail: Frames of the beginning that the last window ends with; 0 = no loop.
        breaks: Where a window ends in any case, so that the next one is told something else.
        unit: A window has 1 + a multiple of so many frames.

    Returns:
        The windows. Each but the first few is as long as possible: what it does not make it knows.
    """

    def fitting(frames: int) -> int:
        return (frames - 1) // unit * unit + 1

    longest, least, marks = fitting(longest), min(total, unit + 1), sorted(set(breaks))
    found: list[Window] = []
    end = 0
    while end < total:
        room = longest - overlap if found else longest
        left = total - end
        stop = min([end + room, total, *(mark for mark in marks if mark > end)])
        if not found:
            stop = fitting(max(stop, least))
        if tail and not (found and stop == total and left <= room - tail):
            # the last window needs room for the tail, and the first cannot be the last
            stop = min(stop, max(end + 1, total - 1 if found else max(least, fitting(total // 2 + 1))))
        is_last = stop == total
        closing = tail if is_last else 0
        earliest = found[-1].start if found else 0  # what a window knows is all in the one before
        frames = min(longest, fitting(stop + closing - earliest))
        found.append(Window(len(found), stop + closing - frames, end, stop + closing, closing))
        end = stop
    return found


def job_of(job: Job, window: Window) -> Job:
    """A window as a job of its own, without conditions."""
    step = job.card.clip.temporal
    shape = VideoShape((window.frames - 1) * step + 1, job.shape.height, job.shape.width)
    latent = LatentShape(window.frames, job.latent.height, job.latent.width, job.latent.channels)
    return replace(
        job,
        seconds=(shape.frames - 1) / job.fps,
        shape=shape,
        latent=latent,
        conditions=(),
        long=None,
        begin=window.start,
        cut=None,
    )
