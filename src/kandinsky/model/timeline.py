"""Prompts by time: what a clip shows from which moment on, one prompt fading into the next. No torch.

Moments are seconds as numbers, or text as places in time are written elsewhere: ``"5s"`` seconds, ``"60"`` frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.checks import shown
from kandinsky.model.given import moment

MOST_PROMPTS = 64  # of one clip


@dataclass(frozen=True, slots=True)
class PromptAt:
    """A prompt for a part of a clip.

    Attributes:
        prompt: What it shows there.
        at: Where it begins: seconds, or text such as ``"5s"`` or, in frames, ``"60"``.
        until: Where it ends, and the clip's own prompt holds again; None = where the next one begins.

    Raises:
        RequestError: A value has the wrong type or form.
    """

    prompt: str
    at: float | str
    until: float | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise RequestError(f"a prompt at `{shown(self.at)}` says nothing: give text")
        for value in (self.at, *([] if self.until is None else [self.until])):
            seconds(value, fps=1)

    @classmethod
    def parse(cls, text: str) -> PromptAt:
        """Read `TIME PROMPT` or `TIME:TIME PROMPT`, such as `5s a cat`.

        Raises:
            RequestError: The text has another form.
        """
        place, _, prompt = text.strip().partition(" ")
        at, mark, until = place.partition(":")
        if not prompt.strip() or not at or (mark and not until):
            raise RequestError(
                f"`{shown(text)}` is no prompt with a time: use `5s a cat`, or `5s:8s a cat` for a part of the clip"
            )
        return cls(prompt.strip(), at, until or None)

    def plain(self) -> dict[str, Any]:
        """Plain values, from which ``prompts_at`` makes it again."""
        return {"prompt": self.prompt, "at": self.at} | ({} if self.until is None else {"until": self.until})

    def written(self) -> str:
        """As ``parse`` reads it."""
        ends = [one if isinstance(one, str) else f"{one:g}s" for one in (self.at, self.until) if one is not None]
        return f"{':'.join(ends)} {self.prompt}"


@dataclass(frozen=True, slots=True)
class Play:
    """What a chunk of a world that can be played shows: a prompt, and what is done in it.

    Attributes:
        prompt: What is there.
        action: One of the card's `roll.actions`.
    """

    prompt: str
    action: str


Shows = str | Play
"""A prompt, with an action where there are some."""


def prompt_of(shows: Shows) -> str:
    """The prompt alone."""
    return shows.prompt if isinstance(shows, Play) else shows


def seconds(value: float | str, *, fps: float) -> float:
    """A moment in seconds.

    Raises:
        RequestError: It is neither a number of seconds from 0 on nor such text.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value < float("inf"):
            return float(value)
    elif isinstance(value, str):
        number, is_seconds = moment(value, "the time of a prompt")
        if number >= 0:
            return number if is_seconds else number / fps
    raise RequestError(f"the time of a prompt is `{shown(value)}`: use seconds from 0 on, such as `5` or `5s`")


def check_length(seconds: Any) -> None:
    """Refuse a length of a stream that is none.

    Raises:
        RequestError: It is neither None nor a number above 0.
    """
    if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < float("inf")):
        raise RequestError(
            f"seconds `{shown(seconds)}` must be a number above 0, or be left out for a stream without end"
        )


def prompts_at(values: Any) -> tuple[PromptAt, ...]:
    """Prompts by time from what may stand for them: values, texts, pairs, or mappings as ``PromptAt.plain`` makes them.

    Args:
        values: Some of these.

    Returns:
        The prompts.

    Raises:
        RequestError: One has another form, or there are too many.
    """
    if values is None:
        return ()
    if isinstance(values, str | PromptAt | Mapping):
        values = [values]
    if not isinstance(values, Iterable):
        raise RequestError(f"`prompt_at` must be a list of prompts with their times, not `{shown(values)}`")
    made = tuple(map(_prompt_at, values))
    if len(made) > MOST_PROMPTS:
        raise RequestError(f"`prompt_at` lists {len(made)} prompts: {MOST_PROMPTS} are allowed")
    return made


def _prompt_at(value: Any) -> PromptAt:
    if isinstance(value, PromptAt):
        return value
    if isinstance(value, str):
        return PromptAt.parse(value)
    if isinstance(value, Mapping):
        if {"prompt", "at"} <= set(value) <= {"prompt", "at", "until"}:
            return PromptAt(**value)
    elif isinstance(value, Sequence) and 2 <= len(value) <= 3:
        return PromptAt(*value)
    raise RequestError(f"`{shown(value)}` is no prompt with its time: use pairs such as `('a cat', 5)`")


@dataclass(frozen=True, slots=True)
class PromptSchedule:
    """Which prompts hold when.

    Attributes:
        changes: From which second on each holds, rising from 0; each until the next.
        fade: Seconds over which each fades in.
    """

    changes: tuple[tuple[float, str], ...]
    fade: float = 0.0

    @property
    def prompts(self) -> tuple[str, ...]:
        """Each prompt once, in the order they first hold."""
        return tuple(dict.fromkeys(prompt for _, prompt in self.changes))

    def at(self, second: float) -> dict[str, float]:
        """The share of each prompt at a time; together 1."""
        shares: dict[str, float] = {}
        for begin, prompt in self.changes:
            if second < begin - 1e-9 and shares:
                break
            own = 1.0 if not self.fade or not shares else min(1.0, (second - begin) / self.fade)
            shares = {name: share * (1 - own) for name, share in shares.items()}
            shares[prompt] = shares.get(prompt, 0.0) + own
        return {name: share for name, share in shares.items() if share > 0}

    def over(self, begin: float, end: float, fps: float) -> dict[str, float]:
        """The mean share of each prompt over the frames from one second to another."""
        frames = range(round(begin * fps), max(round(end * fps), round(begin * fps) + 1))
        found: dict[str, float] = {}
        for frame in frames:
            for name, share in self.at(frame / fps).items():
                found[name] = found.get(name, 0.0) + share / len(frames)
        return found


def timeline(
    prompt: str, later: Sequence[PromptAt], *, length: float, fps: float, fade: float | None = None
) -> PromptSchedule:
    """The timeline of a clip.

    Args:
        prompt: Its own prompt: it holds where no other does.
        later: The others.
        length: Seconds of the clip.
        fps: Frames per second.
        fade: Seconds of a cross-fade.

    Returns:
        The timeline.

    Raises:
        RequestError: Two hold at once, one lies outside of the clip, or the fade is longer than it.
    """
    if fade is not None and not 0 <= fade <= length:
        raise RequestError(f"fade `{fade:g}` is out of range: use 0 to {length:.4g} seconds, the length of the clip")
    spans = []
    for one in later:
        begin = seconds(one.at, fps=fps)
        end = None if one.until is None else seconds(one.until, fps=fps)
        if end is not None and end <= begin:
            raise RequestError(f"the prompt `{shown(one.prompt)}` is asked for from {begin:g} to {end:g} s: nothing")
        if begin >= length or (end or 0) > length + 1 / fps:
            told = f"{begin:g} s" if begin >= length else f"{begin:g} to {end:g} s"
            raise RequestError(
                f"the prompt `{shown(one.prompt)}` is asked for at {told}, outside of a clip of {length:.4g} s: use "
                "times within it, or more seconds"
            )
        spans.append((begin, end, one.prompt))
    spans.sort(key=lambda span: span[0])
    for a, b in itertools.pairwise(spans):
        if b[0] == a[0] or (a[1] is not None and b[0] < a[1]):
            raise RequestError(
                f"the prompts `{shown(a[2])}` and `{shown(b[2])}` are both asked for at {b[0]:g} s: use two times"
            )
    changes = [(0.0, prompt)]
    for number, (begin, end, text) in enumerate(spans):
        if begin == 0:
            changes.pop()
        changes.append((begin, text))
        following = spans[number + 1][0] if number + 1 < len(spans) else length
        if end is not None and end < following:
            changes.append((end, prompt))
    return PromptSchedule(tuple(changes), fade or 0.0)
