"""Measures of video → audio on nano: does the sound follow the picture?

Clips are drawn by ``data/nano_sound`` from its held part: emoji and shapes that were never trained on, and other random
numbers. Their events are known exactly. Groups:

- ``contact``: things that fall, bounce and collide.   ``appear``: things that are suddenly there.
- ``silent``: things that touch nothing.   ``rustle``: emoji that move by themselves, whose sound has no onsets.
- ``all hits``: the first three as they come. The first line, ``true sound``, puts these clips' own sound through the
  same measures: what a perfect model would reach.

The baseline is the same sounds held against the events of another clip of the group.
Legend: S samples, T frames.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.lab.nano.emoji import FPS, FRAMES
from kandinsky.lab.nano.onsets import Agreement, agree, loudness_steps, onsets, pairs
from kandinsky.lab.nano.sound_data import RATE, WORDS, SoundData, hit, pitch, timbre
from kandinsky.lab.nano.sound_scenes import LARGEST, SMALLEST, Scene
from kandinsky.media.sheet import contact_sheet
from kandinsky.media.spectrogram import SpectrogramParams, image_of_mel, mel_of_waveform
from kandinsky.model.values import Video

HIT_S, PITCH_FROM_S, PITCH_TO_S = 0.08, 0.02, 0.15
LEAD_S = 0.04  # before an onset, when its timbre is compared
MOMENTS = int((LEAD_S + PITCH_TO_S) * RATE)
PITCHES = 24  # that a timbre is struck at, a ninth of an octave apart
SAMPLES = FRAMES * RATE // FPS  # of a clip's length
CLIPS = 300
SHOWN, COLUMNS = 10, 13  # clips on a contact sheet, and frames of each
QUIET = 3.0  # added to levels in int16 units, so that silence has a logarithm

GROUPS = ("contact", "appear", "silent", "rustle")

# frames uint8 of clips, prompts, seeds → sounds, int16 [S]
MakeSounds = Callable[[Sequence[np.ndarray], Sequence[str], Sequence[int]], list[np.ndarray]]


@dataclass(frozen=True, slots=True)
class SoundCase:
    """A clip, what is asked for in words, and what there is to hear."""

    number: int
    group: str
    frames_THWC: np.ndarray
    scene: Scene
    prompt: str
    true_S: np.ndarray

    @property
    def times(self) -> list[float]:
        return [event.time for event in self.scene.events]


@dataclass(frozen=True, slots=True)
class SoundFigures:
    """onset_f1, precision, recall: of onsets within 100 ms of the events.   onset_f1_other: against another clip's.
    timing_ms: mean distance of the matched ones.   false_onsets: a clip, where there is no event.
    loudness_r: correlation of the events' levels in dB, made and true.   pitch_r: of the matched bells' and drums'
    pitches, heard and true, in octaves.
    timbre: share of the matched events whose sound is nearest to the right one, at whatever pitch.
    envelope_r: correlation of the level over the frames, made and true, mean of the clips; envelope_r_other: against
    another clip's sound. None: the group has nothing to measure.
    """

    clips: int
    events: int
    onset_f1: float | None = None
    onset_f1_other: float | None = None
    precision: float | None = None
    recall: float | None = None
    timing_ms: float | None = None
    false_onsets: float | None = None
    loudness_r: float | None = None
    pitch_r: float | None = None
    timbre: float | None = None
    envelope_r: float | None = None
    envelope_r_other: float | None = None


def evaluate_sound(
    model: str,
    *,
    cache: Path,
    clips: int | None,
    groups: Sequence[str] | None,
    batch: int,
    seed: int,
    dtype: str | None,
    sheet: Path | None,
    on_batch: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Measure a model of sound; arguments and result as ``evaluate.run.evaluate``. Raises: RequestError."""
    from kandinsky.catalogue import load
    from kandinsky.engine.pipeline import VideoToAudioPipeline
    from kandinsky.families.kandinsky4_v2a.stages import spectrogram_params
    from kandinsky.model.card import sound_of
    from kandinsky.model.values import Request

    for name in groups or ():
        if name not in GROUPS:
            raise RequestError(f"there is no group `{name}`: use {', '.join(f'`{one}`' for one in GROUPS)}")
    pipe = load(model, dtype=dtype)
    assert isinstance(pipe, VideoToAudioPipeline)
    params = spectrogram_params(pipe.card)
    if params.sample_rate != RATE:
        raise RequestError(f"`{model}` sounds at {params.sample_rate} Hz: this measure wants {RATE} Hz")
    cases = choose_cases(cache, clips or CLIPS)
    cases = [case for case in cases if groups is None or case.group in groups]
    seconds = 0.0
    shown: list[tuple[np.ndarray, np.ndarray]] = []

    def make(frames: Sequence[np.ndarray], prompts: Sequence[str], seeds: Sequence[int]) -> list[np.ndarray]:
        nonlocal seconds
        began = time.monotonic()
        films = [Video(one, FPS, seed=0) for one in frames]
        requests = [
            Request(model, prompt, video=film, seed=number)
            for film, prompt, number in zip(films, prompts, seeds, strict=True)
        ]
        made = pipe.run_batch([pipe.resolve(request) for request in requests], at_once=batch)
        seconds += time.monotonic() - began
        sounds = [one.audio.samples_SC[:, 0] for one in made]
        shown.extend(zip(frames, sounds, strict=True))
        return sounds

    figures = judge_sounds(make, cases, batch=batch, seed=seed, on_batch=on_batch)
    if sheet is not None:
        sound_sheet(shown[:SHOWN], [case.true_S for case in cases], params, sound_of(pipe.card).max_value).save(sheet)
    sampling = pipe.card.sampling
    return {
        "model": model,
        "groups": {name: asdict(values) for name, values in figures.items()},
        "seconds_a_clip": seconds / max(1, len(shown)),
        "settings": {
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "seed": seed,
            "dtype": pipe.precision.name,
            "threads": torch.get_num_threads(),
        },
    }


def group_of(scene: Scene) -> str:
    if scene.clip_THWC is not None:
        return "rustle"
    if not scene.events:
        return "silent"
    return "appear" if scene.events[0].kind == "appear" else "contact"


def choose_cases(cache: Path, count: int, *, side: int = 96) -> list[SoundCase]:
    """The first so many held-out clips. Words are named in English and Russian in turn."""
    data = SoundData(cache, held=True)
    cases = []
    for number in range(count):
        clips = data.clips([number], side=side, samples=SAMPLES)
        scene = clips.scenes[0]
        prompt = WORDS[scene.word][number % 2] if scene.word else ""
        true_S = np.clip(np.round(clips.waveform_BS[0]), -32768, 32767).astype(np.int16)
        cases.append(SoundCase(number, group_of(scene), clips.frames_BTHWC[0], scene, prompt, true_S))
    return cases


def judge_sounds(
    make: MakeSounds,
    cases: Sequence[SoundCase],
    *,
    batch: int = 16,
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, SoundFigures]:
    """Make the sound of every case and measure it, group by group."""
    sounds: list[np.ndarray] = []
    for start in range(0, len(cases), batch):
        some = cases[start : start + batch]
        frames, prompts = [case.frames_THWC for case in some], [case.prompt for case in some]
        sounds += make(frames, prompts, [seed + case.number for case in some])
        if on_batch:
            on_batch(min(start + batch, len(cases)), len(cases))
    hits = [number for number, case in enumerate(cases) if case.group != "rustle"]
    out = {}
    if hits:
        out["true sound"] = measure([cases[n].true_S for n in hits], [cases[n] for n in hits])
        out["all hits"] = measure([sounds[n] for n in hits], [cases[n] for n in hits])
    for group in GROUPS:
        if mine := [number for number, case in enumerate(cases) if case.group == group]:
            out[group] = measure([sounds[n] for n in mine], [cases[n] for n in mine])
    return out


def measure(sounds: Sequence[np.ndarray], cases: Sequence[SoundCase]) -> SoundFigures:
    """Hold sounds against their clips."""
    sounds = [np.asarray(sound, np.float32)[:SAMPLES] for sound in sounds]
    events = sum(len(case.scene.events) for case in cases)
    envelopes = [envelope(sound) for sound in sounds]
    wanted = [envelope(case.true_S.astype(np.float32)) for case in cases]
    with_sound = [n for n, one in enumerate(wanted) if one.std() > 0]
    others = [(n, with_sound[(place + 1) % len(with_sound)]) for place, n in enumerate(with_sound)]
    figures = {
        "envelope_r": _mean([correlation(envelopes[n], wanted[n]) for n in with_sound]),
        "envelope_r_other": _mean([correlation(envelopes[n], wanted[m]) for n, m in others]),
    }
    if all(case.group == "rustle" for case in cases):
        return SoundFigures(len(cases), events, **figures)
    found = [onsets(sound, RATE) for sound in sounds]
    quiet = [len(some) for some, case in zip(found, cases, strict=True) if not case.scene.events]
    figures["false_onsets"] = _mean(quiet)
    if not events:
        return SoundFigures(len(cases), events, **figures)
    right, wrong = Agreement(), Agreement()
    apart: list[float] = []
    levels: list[tuple[float, float]] = []
    pitches: list[tuple[float, float]] = []
    timbres: list[bool] = []
    for n, case in enumerate(cases):
        right += agree(found[n], case.times)
        wrong += agree(found[n], cases[(n + 1) % len(cases)].times)
        for i, j in pairs(found[n], case.times):
            event, at = case.scene.events[j], found[n][i]
            apart.append(abs(at - event.time))
            levels.append((level(sounds[n], at), level(case.true_S, event.time)))
            name = timbre(event, case.scene.word)
            if name != "clap":
                pitches.append((math.log2(heard_pitch(sounds[n], at)), math.log2(pitch(event.radius))))
            timbres.append(nearest_timbre(sounds[n], at) == name)
    return SoundFigures(
        len(cases),
        events,
        onset_f1=right.f1,
        onset_f1_other=wrong.f1,
        precision=right.precision,
        recall=right.recall,
        timing_ms=None if not apart else 1000 * float(np.mean(apart)),
        loudness_r=correlation(*np.array(levels).T) if len(levels) > 2 else None,
        pitch_r=correlation(*np.array(pitches).T) if len(pitches) > 2 else None,
        timbre=_mean(timbres),
        **figures,
    )


def envelope(sound_S: np.ndarray) -> np.ndarray:
    """Level of each frame's time, [T]: the logarithm of its root mean square; silence is 0."""
    pieces = sound_S[: len(sound_S) // FRAMES * FRAMES].reshape(FRAMES, -1).astype(np.float64)
    out: np.ndarray = np.log1p(np.sqrt(np.square(pieces).mean(1)) / QUIET)
    return out


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where one of them does not vary."""
    one, other = one - one.mean(), other - other.mean()
    spread = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / spread if spread > 0 else 0.0


def level(sound_S: np.ndarray, at: float) -> float:
    """dB of what begins at a time, over the first moments."""
    start = max(0, int(at * RATE))
    piece = sound_S[start : start + int(HIT_S * RATE)].astype(np.float64)
    return 20 * math.log10(QUIET + math.sqrt(float(np.mean(piece**2)))) if len(piece) else 0.0


def heard_pitch(sound_S: np.ndarray, at: float) -> float:
    """The strongest frequency between 150 and 1700 Hz, in Hz, of what begins at a time and was not there before."""
    count = int((PITCH_TO_S - PITCH_FROM_S) * RATE)

    def spectrum(start: float) -> np.ndarray:
        begin = max(0, int(start * RATE))
        piece = np.zeros(count)
        taken = sound_S[begin : begin + count]
        piece[: len(taken)] = taken
        return np.abs(np.fft.rfft(piece * np.hanning(count), 4 * count))

    gained = spectrum(at + PITCH_FROM_S) - spectrum(at - PITCH_TO_S)
    frequencies = np.fft.rfftfreq(4 * count, 1 / RATE)
    inside = (frequencies >= 150) & (frequencies <= 1700)
    return float(frequencies[inside][np.argmax(gained[inside])])


def nearest_timbre(sound_S: np.ndarray, at: float) -> str:
    """Which timbre, struck at whatever pitch, is most like what begins at a time: mel bands of the first moments."""
    begin = max(0, int((at - LEAD_S) * RATE))
    piece = np.zeros(MOMENTS, np.float32)
    taken = sound_S[begin : begin + MOMENTS]
    piece[: len(taken)] = taken
    made = _shape(piece)
    distances = {name: np.abs(shapes - made).mean(axis=(1, 2)).min() for name, shapes in _strokes().items()}
    return min(distances, key=distances.__getitem__)


@functools.cache
def _strokes() -> dict[str, np.ndarray]:
    """Every timbre at every pitch, as ``_shape`` has them, [pitches, M, T]."""
    times = np.arange(MOMENTS - int(LEAD_S * RATE)) / RATE
    out = {}
    for name in WORDS:
        rng, shapes = np.random.default_rng(0), []
        for frequency in np.geomspace(pitch(LARGEST), pitch(SMALLEST), PITCHES):
            stroke = np.zeros(MOMENTS, np.float32)
            stroke[-len(times) :] = 4000 * hit(name, float(frequency), times, rng)
            shapes.append(_shape(stroke))
        out[name] = np.stack(shapes)
    return out


def _shape(sound_S: np.ndarray) -> np.ndarray:
    """Mel bands over time, brought to the same mean: how loud it is does not count."""
    steps = loudness_steps(sound_S, RATE).numpy()
    out: np.ndarray = steps - steps.mean()
    return out


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def sound_sheet(
    shown: Sequence[tuple[np.ndarray, np.ndarray]],
    true: Sequence[np.ndarray],
    params: SpectrogramParams,
    max_value: float,
) -> Image.Image:
    """Clips as rows: some frames, below them the picture of the sound that was made, and of the true one."""

    def strip(sound_S: np.ndarray, width: int) -> Image.Image:
        mel = mel_of_waveform(torch.from_numpy(sound_S.astype(np.float32))[None], params)
        return Image.fromarray(image_of_mel(mel, params, max_value=max_value)[0].numpy()).resize((width, 48))

    rows: list[Image.Image] = []
    for (frames_THWC, sound_S), true_S in zip(shown, true, strict=False):
        frames = contact_sheet(frames_THWC, columns=COLUMNS)
        frames = frames.resize((frames.width // 2, frames.height // 2))
        rows += [frames, strip(sound_S, frames.width), strip(true_S, frames.width)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + 2 for row in rows)), "grey")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 2
    return sheet
