"""Scenes that are heard: contacts at the true moments, the same scene for the same number, sound where it belongs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.lab.nano.emoji import FPS, FRAMES
from kandinsky.lab.nano.sound_data import RATE, SoundData, amplitude, pitch, synthesise
from kandinsky.lab.nano.sound_scenes import (
    FEWEST,
    GAP,
    HELD_SHAPES,
    MOST,
    SHAPES,
    TIMES,
    Body,
    Event,
    Scene,
    Thing,
    draw_scene,
    render,
    simulate,
    sprites,
    told_apart,
)

BOX = (0.0, 0.0, 1.0, 1.0)
DATA = SoundData(None)


def test_a_falling_thing_lands_when_school_physics_says() -> None:
    ball = Body(0.5, 0.3, 0.0, 0.0, 0.1)
    centres, events = simulate([ball], gravity=4.0, bounce=0.5, box=BOX, times=TIMES)
    fall = math.sqrt(2 * 0.6 / 4.0)  # from 0.3 to 0.9, where it touches
    back = 2 * (4.0 * fall * 0.5) / 4.0  # up with half the speed, and down again
    assert [event.time for event in events[:2]] == pytest.approx([fall, fall + back])
    assert events[1].strength == pytest.approx(events[0].strength / 2)
    assert centres[0, 0] == pytest.approx([0.5, 0.3])
    assert centres[0, 3, 1] == pytest.approx(0.3 + 0.5 * 4.0 * (3 / FPS) ** 2)


def test_two_things_collide_once_where_their_edges_meet_and_keep_their_momentum() -> None:
    one, other = Body(0.2, 0.5, 0.4, 0.0, 0.1), Body(0.8, 0.5, -0.2, 0.0, 0.15)
    momentum = one.radius**2 * one.vx + other.radius**2 * other.vx
    _, events = simulate([one, other], gravity=0.0, bounce=1.0, box=BOX, times=TIMES[:12])
    assert [(event.kind, round(event.time, 9)) for event in events] == [("collide", round(0.35 / 0.6, 9))]
    assert one.radius**2 * one.vx + other.radius**2 * other.vx == pytest.approx(momentum)
    assert other.vx - one.vx == pytest.approx(0.6)


@settings(max_examples=30)
@given(st.integers(0, 10**9))
def test_scenes_can_be_told_apart_by_ear_and_nothing_leaves_the_frame(number: int) -> None:
    scene = draw_scene(np.random.default_rng(number), DATA.sprites, "contact")
    times = [event.time for event in scene.events]
    assert FEWEST <= len(times) <= MOST
    assert all(later - earlier >= GAP for earlier, later in itertools.pairwise(times))
    for thing in scene.things:
        low, high = thing.centres_T2.min(0) - thing.radius, thing.centres_T2.max(0) + thing.radius
        assert (low > -1e-4).all() and (high < 1 + 1e-4).all()


def test_events_too_near_to_one_another_are_refused() -> None:
    def at(*times: float) -> list[Event]:
        return [Event(time, "bounce", 0.1, 0.5) for time in times]

    assert told_apart(at(0.5, 1.0))
    assert not told_apart(at(0.5, 0.6))
    assert not told_apart(at(0.05, 1.0))
    assert not told_apart(at())
    assert not told_apart([Event(0.5, "bounce", 0.1, 0.01)])


def test_the_same_number_is_the_same_clip_in_any_batch_and_held_ones_are_others() -> None:
    together = DATA.clips([3, 4, 5], side=24, samples=RATE)
    alone = SoundData(None).clips([4], side=24, samples=RATE)
    assert np.array_equal(together.frames_BTHWC[1], alone.frames_BTHWC[0])
    assert np.array_equal(together.waveform_BS[1], alone.waveform_BS[0])
    assert together.scenes[1].events == alone.scenes[0].events
    held = SoundData(None, held=True)
    assert held.scene(4).events != together.scenes[1].events
    assert set(HELD_SHAPES) < set(SHAPES)
    assert not any(np.array_equal(one, other) for one in held.sprites.rgba_NPPC for other in DATA.sprites.rgba_NPPC)


def test_things_are_drawn_where_they_are() -> None:
    table = sprites(None, held=False)
    centres = np.tile(np.array([[0.25, 0.75]], np.float32), (FRAMES, 1))
    shown = np.arange(FRAMES) >= 10
    frames = render([Scene((255, 255, 255), (Thing(24, 0.1, centres, shown),), floor=0.1)], table, side=40)[0]
    assert (frames[5, :30] == 255).all() and (frames[5, 36:] == round(255 * 0.6)).all()
    changed = np.argwhere((frames[10] != frames[5]).any(-1))
    # centre (10, 30), radius 4: a square from 6 to 13 in x, 26 to 33 in y, and a soft edge
    assert changed.min(0).tolist() == pytest.approx([26, 6], abs=1) and changed.max(0).tolist() == pytest.approx(
        [33, 13], abs=1
    )


def test_a_hit_begins_with_its_event_and_not_a_sample_before() -> None:
    for kind in ("bounce", "collide", "appear"):
        scene = Scene((0, 0, 0), events=(Event(0.50003, kind, 0.1, 1.0),))
        sound = synthesise(scene, np.random.default_rng(0), RATE)
        first = math.ceil(0.50003 * RATE)
        assert not sound[:first].any()
        assert np.abs(sound[first : first + 160]).max() > 0.1 * amplitude(1.0)


def test_larger_things_sound_lower_and_faster_ones_louder() -> None:
    assert pitch(0.07) == pytest.approx(1400) and pitch(0.24) == pytest.approx(220, rel=0.01)
    assert amplitude(1.0) == pytest.approx(10 * amplitude(0.0))

    def strongest(radius: float) -> float:
        sound = synthesise(
            Scene((0, 0, 0), events=(Event(0.1, "appear", radius, 1.0),)), np.random.default_rng(0), RATE
        )
        return float(np.abs(np.fft.rfft(sound)).argmax())

    assert strongest(0.1) == pytest.approx(pitch(0.1), abs=5)
    assert strongest(0.2) == pytest.approx(pitch(0.2), abs=5)


def test_what_moves_by_itself_rustles_and_what_rests_is_silent() -> None:
    clip = np.zeros((FRAMES, 128, 128, 4), np.uint8)
    clip[:, 40:80, 40:80] = 255
    still = synthesise(Scene((0, 0, 0), clip_THWC=clip), np.random.default_rng(0), 2 * RATE)
    assert not still.any()
    moving = clip.copy()
    moving[12:] = np.roll(clip[12:], 60, axis=2)  # one jump, between frames 11 and 12
    sound = synthesise(Scene((0, 0, 0), clip_THWC=moving), np.random.default_rng(0), 2 * RATE)
    loudest = np.abs(sound).argmax() / RATE
    assert 10.5 / FPS < loudest < 12.5 / FPS
