"""The shipped nano-v2a: small, deterministic, and its sound follows the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kandinsky
from kandinsky import catalogue
from kandinsky.catalogue import load
from kandinsky.engine.pipeline import VideoToAudioPipeline
from kandinsky.families.nano.clip_encoder import NanoClipEncoderParams
from kandinsky.lab.nano.emoji import FPS
from kandinsky.lab.nano.measure_sound import SAMPLES, SoundCase, group_of, measure
from kandinsky.lab.nano.sound_data import RATE, WORDS, SoundData
from kandinsky.model.values import Request, Video

MODEL = "nano-v2a"
FOLDER = Path(kandinsky.__file__).parent / "assets" / MODEL
SEEDS = range(8)


@pytest.fixture(scope="module")
def pipe() -> VideoToAudioPipeline:
    return load(MODEL)


@pytest.fixture(scope="module")
def cases() -> list[SoundCase]:
    """Shapes that were never trained on, where things touch."""
    made = SoundData(None, held=True).clips(SEEDS, side=96, samples=SAMPLES, kind="contact")
    return [
        SoundCase(n, group_of(scene), frames, scene, scene.word, sound.astype(np.int16))
        for n, (frames, scene, sound) in enumerate(zip(made.frames_BTHWC, made.scenes, made.waveform_BS, strict=True))
    ]


def test_the_files_are_small_and_their_card_is_there() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) <= 6_000_000
    text = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for heading in ("## Data", "## Licence", "## Recipe", "## Quality", "## Limits"):
        assert heading in text


def test_words_of_the_card_are_those_of_the_data() -> None:
    words = NanoClipEncoderParams.from_dict(catalogue.find(MODEL).text.params).words
    assert [tuple(entry.split("|")) for entry in words] == list(WORDS.values())


@pytest.mark.slow
def test_hits_are_heard_when_things_touch(pipe: VideoToAudioPipeline, cases: list[SoundCase]) -> None:
    requests = [
        Request(MODEL, case.prompt, video=Video(case.frames_THWC, FPS, seed=0), seed=case.number) for case in cases
    ]
    made = pipe.run_batch([pipe.resolve(request) for request in requests], at_once=len(cases))
    assert all(one.audio.rate == RATE and abs(one.audio.seconds - 25 / 12) < 1e-3 for one in made)
    figures = measure([one.audio.samples_SC[:, 0] for one in made], cases)
    assert figures.onset_f1 is not None and figures.onset_f1 >= 0.7
    assert figures.onset_f1_other is not None and figures.onset_f1_other <= 0.5


@pytest.mark.slow
def test_a_still_picture_is_silent_and_the_same_seed_sounds_the_same(
    pipe: VideoToAudioPipeline, cases: list[SoundCase]
) -> None:
    still = Video(np.repeat(cases[0].frames_THWC[:1], 25, axis=0), FPS, seed=0)
    moving = Video(cases[0].frames_THWC, FPS, seed=0)
    quiet, loud, again = (pipe(video=film, seed=3).audio.samples_SC for film in (still, moving, moving))
    assert np.array_equal(loud, again)
    assert np.abs(quiet).max() < 0.1 * np.abs(loud).max()
