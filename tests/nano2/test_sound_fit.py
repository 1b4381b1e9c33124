"""Measures of audio for clips of the second Nano: each says what it should of audio that is known."""

from __future__ import annotations

import numpy as np
import pytest

from kandinsky.lab.nano.emoji import FPS, FRAMES
from kandinsky.lab.nano.measure_sound import SAMPLES
from kandinsky.lab.nano.sound_data import RATE, hit
from kandinsky.lab.nano2.measure_sound import LANDS_S, fit_of, texts_of, wanted_rustle


def blinking(at: int) -> np.ndarray:
    """A clip that changes for five frames from one on, and else stands still."""
    clip = np.full((FRAMES, 16, 16, 3), 200, np.uint8)
    clip[at : at + 5 : 2] = 120
    return clip


def struck(at_s: float) -> np.ndarray:
    out = np.zeros(SAMPLES, np.float32)
    times = np.arange(SAMPLES - int(at_s * RATE)) / RATE
    out[int(at_s * RATE) :] = 8000 * hit("drum", 400.0, times, np.random.default_rng(0))
    return out


def test_a_rustle_follows_its_own_clip_and_not_another() -> None:
    clips = [blinking(3), blinking(15)]
    fit = fit_of(clips, [wanted_rustle(clip) for clip in clips])
    assert fit.follows is not None and fit.follows > 0.95
    assert fit.another is not None and fit.another < 0.2
    assert fit.silent == 0 and fit.lands is None


def test_a_jump_lands_where_it_is_struck() -> None:
    clips = [blinking(11), blinking(11)]
    fit = fit_of(clips, [struck(LANDS_S + 0.03), struck(LANDS_S - 0.5)], lands=True)
    assert fit.lands == pytest.approx(0.5) and fit.onsets == pytest.approx(1)
    assert pytest.approx(FPS * LANDS_S) == (FRAMES - 1) / 2


def test_silence_of_what_stands_still_is_silence() -> None:
    fit = fit_of([blinking(FRAMES)], [np.zeros(SAMPLES, np.int16)])
    assert fit.silent == 1 and fit.onsets == 0 and fit.change == 0 and fit.follows is None


def test_the_groups_are_those_that_each_nano_can_show() -> None:
    groups = texts_of(8, first=False)
    assert list(texts_of(8, first=True)) == ["animated"] and {"further", "still", "jumps", "fades in"} <= set(groups)
    assert not set(groups["animated"]) & {*groups["further"], *groups["still"]}
