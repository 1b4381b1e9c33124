"""What the scenes of ``nano_scenes`` sound like, and clips of both: frames, sound, and the true times of the events.

Pitch falls with the size of what sounds, loudness grows with the speed of the impact, timbre says what happened: a
contact with floor or wall is a drum, a collision a clap, an appearance a bell; an emoji that moves by itself rustles,
the louder the more it moves. A word (``WORDS``) asks for one timbre whatever happens.

Legend: B clips, T frames, S samples of sound at ``RATE``, as units of 16-bit PCM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kandinsky.lab.nano.emoji import FPS, FRAMES
from kandinsky.lab.nano.sound_scenes import Event, Scene, draw_scene, render, sprites

RATE = 16000
TAIL = 0.6  # seconds that an event is heard at the most
LOUDEST = 12000.0  # amplitude of the strongest event
RANGE_DB = 20.0  # the faintest is so much quieter
TIMBRES = {"bounce": "drum", "collide": "clap", "appear": "bell"}
# What may be asked for by name, in English and Russian.
WORDS = {"drum": ("drum", "барабан"), "clap": ("clap", "хлопок"), "bell": ("bell", "колокольчик")}
WORDED = 0.2  # share of the clips with a word


@dataclass(frozen=True, slots=True)
class SoundClips:
    """A batch. frames_BTHWC: uint8.   waveform_BS: float32.   scenes: with the events."""

    frames_BTHWC: np.ndarray
    waveform_BS: np.ndarray
    scenes: tuple[Scene, ...]


class SoundData:
    """Clips by number: the same number is the same clip, in any batch and on any machine with the same cache.

    Args: cache: of ``kandinsky data nano``, for emoji; None = drawn shapes only.   held: the part that is never trained
          on: other emoji and shapes, and other random numbers.
    """

    def __init__(self, cache: Path | None, *, held: bool = False) -> None:
        self.held = held
        self.sprites = sprites(cache, held=held)

    def scene(self, number: int, kind: str | None = None) -> Scene:
        return self._drawn(number, kind)[0]

    def clips(self, numbers: Sequence[int], *, side: int, samples: int, kind: str | None = None) -> SoundClips:
        """Clips of these numbers, all of one kind where that is given.

        Args: side: of the frames in pixels.   samples: length of the sound.
        """
        pairs = [self._drawn(number, kind) for number in numbers]
        scenes = tuple(scene for scene, _ in pairs)
        waveforms = [synthesise(scene, rng, samples) for scene, rng in pairs]
        return SoundClips(render(scenes, self.sprites, side=side), np.stack(waveforms), scenes)

    def sounds(self, numbers: Sequence[int], *, samples: int) -> np.ndarray:
        """The sound alone of clips of these numbers, float32 [B, samples]."""
        return np.stack([synthesise(*self._drawn(number), samples) for number in numbers])

    def _drawn(self, number: int, kind: str | None = None) -> tuple[Scene, np.random.Generator]:
        rng = np.random.default_rng((int(self.held), number))
        scene = draw_scene(rng, self.sprites, kind)
        if scene.events and rng.random() < WORDED:
            scene = replace(scene, word=str(rng.choice(list(WORDS))))
        return scene, rng


def pitch(radius: float) -> float:
    """Hz of a thing: 1400 for the smallest, 220 for the largest."""
    return float(1400.0 * (radius / 0.07) ** -1.5)


def amplitude(strength: float) -> float:
    """Of an event's loudest moment, about."""
    return LOUDEST * 10 ** (RANGE_DB * (strength - 1) / 20)


def timbre(event: Event, word: str) -> str:
    return word or TIMBRES[event.kind]


def synthesise(scene: Scene, rng: np.random.Generator, samples: int) -> np.ndarray:
    """The sound of a scene, float32 [samples]; events begin exactly at their times."""
    out = np.zeros(samples + int(TAIL * RATE) + 1, np.float32)
    for event in scene.events:
        # the first sample that is not before the event, and how far behind it that is
        start = int(np.ceil(event.time * RATE))
        times = (np.arange(int(TAIL * RATE)) + (start - event.time * RATE)) / RATE
        if start < samples:
            out[start : start + len(times)] += hit(timbre(event, scene.word), pitch(event.radius), times, rng) * (
                amplitude(event.strength)
            )
    if scene.clip_THWC is not None:
        out[:samples] += rustle(scene.clip_THWC, rng, samples)
    return out[:samples]


def hit(timbre: str, frequency: float, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One stroke of about unit amplitude at times after it, in seconds."""
    fade = np.minimum(1.0, (times[-1] - times) / 0.05)  # no click where the tail is cut
    if timbre == "bell":
        parts = ((1.0, 0.7, 0.25), (2.0, 0.25, 0.15), (3.01, 0.15, 0.1))
        out: np.ndarray = fade * sum(
            level * np.exp(-times / decay) * np.sin(2 * np.pi * frequency * ratio * times)
            for ratio, level, decay in parts
        )
        return out
    if timbre == "drum":
        fall = 0.015 * 0.4 * (1 - np.exp(-times / 0.015))  # it starts 40 % higher and falls to its pitch at once
        tone = np.exp(-times / 0.09) * np.sin(2 * np.pi * frequency * (times + fall))
        out = fade * (0.9 * tone + 0.3 * np.exp(-times / 0.004) * rng.standard_normal(len(times)))
        return out
    noise = _band(rng.standard_normal(len(times)), 2.0 * frequency, 0.6)
    out = fade * (0.8 * np.exp(-times / 0.035) * noise + 0.25 * np.exp(-times / 0.05) * np.sin(
        2 * np.pi * frequency * times
    ))  # fmt: skip
    return out


def rustle(clip_THWC: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Noise as loud as the picture moves, lower for what fills more of the frame."""
    change = motion(clip_THWC)
    centres = (np.arange(1, FRAMES) - 0.5) / FPS
    loud = np.interp(np.arange(samples) / RATE, centres, np.minimum(1.0, change / 12.0))
    covered = float((clip_THWC[..., 3] > 40).mean())
    noise = _band(rng.standard_normal(samples), 2400.0 - 2000.0 * min(1.0, covered), 0.8)
    out: np.ndarray = (0.06 * LOUDEST * loud * noise).astype(np.float32)
    return out


def motion(clip_THWC: np.ndarray) -> np.ndarray:
    """Mean absolute change of premultiplied colours from each frame to the next, [T − 1], in levels of 255."""
    small = clip_THWC[:, ::2, ::2].astype(np.int16)
    out: np.ndarray = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    return out


def _band(noise: np.ndarray, centre: float, octaves: float) -> np.ndarray:
    """Noise of unit variance around a frequency: a bell over the logarithm of the frequency."""
    spectrum = np.fft.rfft(noise)
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)
    with np.errstate(divide="ignore"):
        shape = np.exp(-0.5 * (np.log2(frequencies / centre) / octaves) ** 2)
    out = np.fft.irfft(spectrum * shape, len(noise))
    return out / max(float(out.std()), 1e-9)
