"""Which stretches of a film are done at once, and which of its frames the encoder is shown."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky import catalogue
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4_v2a.request import (
    Windows,
    choice_of,
    resolve_sound,
    shown_frames,
    times_of,
)
from kandinsky.families.kandinsky4_v2a.stages import faded, spectrogram_params
from kandinsky.media.clip_frames import spread
from kandinsky.model.values import Request, Video
from kandinsky.runtime.randomness import stage_seed

CARD = catalogue.find("kandinsky4-v2a")
SOUND = CARD.sound
FIXED = dataclasses.replace(SOUND, window_s=25 / 12, least_s=25 / 12, overlap_s=0.5, frames=25, fps=12)
quick = settings(max_examples=60)


def clip(frames: int = 24, fps: float = 8) -> Video:
    return Video(np.zeros((frames, 4, 6, 3), np.uint8), fps=fps, seed=0)


@quick
@given(seconds=st.floats(0.05, 300))
def test_windows_cover_the_film_and_overlap(seconds: float) -> None:
    windows = Windows.over(seconds, SOUND)
    assert windows.starts_s[0] == 0 and windows.starts_s[-1] + windows.length_s >= seconds - 1e-6
    assert SOUND.least_s <= windows.length_s <= SOUND.window_s
    for a, b in pairwise(windows.starts_s):
        assert a < b <= a + windows.length_s - SOUND.overlap_s + 1e-6
    needed = 1 if seconds <= 12 else int(np.ceil((seconds - 2) / 10 - 1e-6))
    assert len(windows.starts_s) == needed, "as few as possible"


@pytest.mark.parametrize(("seconds", "length"), [(0.2, 1.0), (1.5, 1.5), (12.0, 12.0), (12.5, 12.0)])
def test_short_films_have_one_window_of_their_length(seconds: float, length: float) -> None:
    assert Windows.over(seconds, SOUND).length_s == length


@pytest.mark.parametrize(("frames", "fps"), [(96, 8.0), (288, 24.0), (359, 29.97), (49, 8.28), (30, 30.0)])
def test_films_of_an_even_rate_are_seen_as_officially(frames: int, fps: float) -> None:
    film = clip(frames, fps)
    numbers, _ = shown_frames(times_of(film), 0.0, film.seconds, SOUND)
    assert numbers == spread(frames, 96)


def test_uneven_rates_are_seen_by_time() -> None:
    times = (0.0, 0.1, 0.2, 0.3, 5.0, 9.0)
    numbers, moments = shown_frames(times, 0.0, 10.0, dataclasses.replace(SOUND, frames=10))
    assert numbers == [0, 3, 3, 3, 3, 4, 4, 4, 4, 5]
    assert moments == pytest.approx(range(10))


def test_a_window_begins_and_ends_with_its_own_frames() -> None:
    times = times_of(clip(240, 10))
    numbers, moments = shown_frames(times, 10.0, 12.0, SOUND)
    assert (numbers[0], numbers[-1]) == (100, 219) and moments[0] == pytest.approx(0) and moments[-1] < 12
    numbers, _ = shown_frames(times, 10.05, 12.0, SOUND)
    assert numbers[0] == 101, "the first frame that begins within it"
    numbers, _ = shown_frames((0.0, 0.1), 5.0, 12.0, SOUND)
    assert set(numbers) == {1}, "a film that stands still"


def test_a_fixed_rate_takes_the_nearest_frame_and_holds_the_last() -> None:
    numbers, moments = shown_frames(times_of(clip(50, 24)), 0.5, FIXED.window_s, FIXED)
    assert numbers[:4] == [12, 14, 16, 18] and numbers[-6:] == [49] * 6 and len(numbers) == 25
    assert moments == pytest.approx([i / 12 for i in range(25)])
    numbers, _ = shown_frames((0.0, 0.05, 0.1, 0.4), 0.0, FIXED.window_s, FIXED)
    assert numbers[:5] == [0, 2, 2, 2, 3], "0.25 s lies in the middle: the earlier one"


def test_only_the_middle_of_what_two_have_in_common_is_faded() -> None:
    one, two = np.full((100, 1), 1.0), np.full((100, 1), 2.0)
    whole = faded([one, two], [0, 40], 20)[:, 0]
    assert len(whole) == 140 and (whole[:60] == 1).all() and (whole[80:] == 2).all()
    assert (whole[60:80] > 1).all() and whole[60:80].max() > 2, "powers add, and not amplitudes"
    three = faded([one, two, one], [0, 80, 160], 20)[:, 0]
    assert len(three) == 260 and (three[:80] == 1).all() and (three[100:160] == 2).all() and (three[180:] == 1).all()


def test_seeds_of_windows_are_far_apart() -> None:
    seeds = {stage_seed(seed, number) for seed in range(50) for number in range(50)}
    assert len(seeds) == 2500 and stage_seed(7, 0) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video": None}, "none was given: give `video=…`"),
        ({"video": 3}, "`video` must be a path or a `Video`"),
        ({"video": "none.mp4"}, "does not exist"),
        ({"seconds": 4}, "lasts 3.00 s, and 4 s of sound"),
        ({"seconds": 0}, "must be a number above 0"),
        ({"seconds": float("nan")}, "must be a finite number"),
        ({"steps": 0}, "use a whole number from 1 to 999"),
        ({"guidance": -1}, "guidance `-1` is out of range: use 0 to 100"),
        ({"seed": -1}, "must be a whole number"),
        ({"prompt": 3}, "`prompt` must be text, not `3`"),
        ({"states": "none.safetensors"}, "states `none.safetensors` are not there"),
        ({"video": Video(np.zeros((0, 4, 6, 3), np.uint8), fps=8, seed=0)}, "has no length"),
    ],
)
def test_requests_are_refused_in_one_line(change: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        resolve_sound(dataclasses.replace(Request(CARD.id, "rain", video=clip()), **change), CARD)
    assert "\n" not in str(error.value)


def test_what_is_left_out_comes_from_the_card() -> None:
    one = resolve_sound(Request(CARD.id, video=clip()), CARD)
    assert (one.steps, one.guidance, one.prompt, one.seconds) == (50, 8.0, "", 3.0)
    assert one.negative_prompt.startswith("hissing noise")
    assert choice_of(one).windows == Windows((0.0,), 3.0) and one.seed >= 0


def test_a_model_of_clips_is_refused() -> None:
    with pytest.raises(RequestError, match="makes no sound"):
        resolve_sound(Request("nano-t2v", video=clip()), catalogue.find("nano-t2v"))


def test_cards_of_sound_are_checked() -> None:
    values = catalogue.to_dict(CARD) | {"sound": dataclasses.asdict(dataclasses.replace(SOUND, overlap_s=12.0))}
    with pytest.raises(RequestError, match="windows longer than overlap_s"):
        catalogue.parse(values, where="x")
    assert catalogue.parse(catalogue.to_dict(CARD), where="x") == CARD


def test_pictures_are_as_long_as_their_sound() -> None:
    shapes = {}
    for seconds in (1.0, 2.5, 12.0):
        one = resolve_sound(Request(CARD.id, video=clip(int(seconds * 8))), CARD)
        shapes[seconds] = one.latent.as_tuple()
        assert (shapes[seconds][2] * 8 - 1) * spectrogram_params(CARD).hop >= seconds * 44100
    assert shapes == {1.0: (1, 64, 16, 4), 2.5: (1, 64, 32, 4), 12.0: (1, 64, 152, 4)}
