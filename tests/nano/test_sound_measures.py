"""The measures of sound: they must find what is there, and only that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kandinsky.lab.nano.evaluate import table
from kandinsky.lab.nano.measure_sound import SAMPLES, SoundCase, group_of, judge_sounds, measure
from kandinsky.lab.nano.onsets import Agreement, agree, onsets, pairs
from kandinsky.lab.nano.sound_data import RATE, SoundData


@pytest.fixture(scope="module")
def cases() -> list[SoundCase]:
    """Drawn shapes only, so that no cache is needed; clips of all kinds but rustling ones."""
    data = SoundData(None)
    made = []
    for numbers, kind in ((range(14), None), (range(2), "silent")):
        clips = data.clips(numbers, side=16, samples=SAMPLES, kind=kind)
        made += list(zip(clips.frames_BTHWC, clips.scenes, clips.waveform_BS, strict=True))
    return [
        SoundCase(number, group_of(scene), frames, scene, scene.word, sound.astype(np.int16))
        for number, (frames, scene, sound) in enumerate(made)
    ]


def test_every_true_onset_is_heard_and_no_other(cases: list[SoundCase]) -> None:
    whole = Agreement()
    for case in cases:
        whole += agree(onsets(case.true_S, RATE), case.times, within=0.03)
    assert whole.true > 20
    assert whole.f1 > 0.98


def test_silence_and_steady_sound_have_no_onsets() -> None:
    assert onsets(np.zeros(RATE), RATE) == []
    assert onsets(np.random.default_rng(0).standard_normal(RATE) * 1000, RATE) == []


def test_onsets_are_paired_one_to_one() -> None:
    assert pairs([0.5, 0.55, 1.0], [0.52, 1.2]) == [(0, 0)]
    assert pairs([0.45, 0.6], [0.5, 0.52]) == [(0, 0), (1, 1)]
    both = agree([0.1, 0.9], [0.15, 0.5, 0.95])
    assert (both.precision, both.recall, both.f1) == (1.0, pytest.approx(2 / 3), pytest.approx(0.8))
    assert Agreement().f1 == 0


def test_true_sound_is_measured_as_perfect_and_shuffled_sound_as_chance(cases: list[SoundCase]) -> None:
    right = measure([case.true_S for case in cases], cases)
    assert right.onset_f1 is not None and right.onset_f1 > 0.98
    assert right.onset_f1_other is not None and right.onset_f1_other < 0.45
    assert right.timing_ms is not None and right.timing_ms < 15
    assert right.loudness_r is not None and right.loudness_r > 0.99
    assert right.pitch_r is not None and right.pitch_r > 0.95
    assert right.timbre is not None and right.timbre > 0.95
    assert right.envelope_r == pytest.approx(1)
    shifted = measure([case.true_S for case in cases[1:] + cases[:1]], cases)
    assert shifted.onset_f1 is not None and shifted.onset_f1 < 0.45
    assert shifted.envelope_r is not None and shifted.envelope_r < 0.5


def test_sound_run_backwards_is_measured_as_worse(cases: list[SoundCase]) -> None:
    turned = [case.true_S[::-1].copy() for case in cases]
    worse = measure(turned, cases)
    assert worse.onset_f1 is not None and worse.onset_f1 < 0.6


def test_a_silent_model_finds_nothing_and_breaks_nothing(cases: list[SoundCase]) -> None:
    figures = measure([np.zeros(SAMPLES, np.int16)] * len(cases), cases)
    assert figures.onset_f1 == 0 and figures.recall == 0 and figures.envelope_r == 0
    assert figures.timing_ms is None and figures.pitch_r is None


def test_groups_are_judged_apart_and_printed(cases: list[SoundCase]) -> None:
    asked: list[str] = []

    def make(frames: object, prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        asked.extend(prompts)
        return [cases[seed - 5].true_S for seed in seeds]

    figures = judge_sounds(make, cases, batch=7, seed=5)  # type: ignore[arg-type]
    assert asked == [case.prompt for case in cases]
    assert list(figures)[:2] == ["true sound", "all hits"]
    assert {"contact", "appear"} <= set(figures)
    assert figures["all hits"] == figures["true sound"]
    groups = {name: dataclasses.asdict(values) for name, values in figures.items()}
    result = {"groups": groups, "seconds_a_clip": 1.0, "settings": {}}
    lines = table(result).splitlines()
    assert "onset F1" in lines[0] and lines[2].startswith("| true sound |")
    silent = next(line for line in lines if line.startswith("| silent"))
    assert "–" in silent and "0.00" in silent  # nothing to find, and nothing found
