"""Does the sound of ``nano-v2a`` fit clips of the second Nano? It was trained on simpler scenes.

    python -m kandinsky.lab.nano2.measure_sound --out FOLDER [--data DATA] [--beside nano-t2v]

Clips are made from words, and have no sound of their own to compare with. What is known of them:

- *How much the image changes* from frame to frame, which is what a rustle follows (the lower strip of the sheets).
  ``follows``: correlation of the sound's level with the level that this change asks for, mean of the clips;
  ``another``: with that of another clip.
- *When a jump lands*: in the middle of the clip (``scenes.track``). ``lands``: share of the clips with an onset within
  100 ms. ``onsets``: how many a clip.
- *Whether anything moves*. ``silent``: share of the clips whose sound is below −60 dB of full scale.

Groups: things that move by themselves (``animated``, and ``further`` for those that the first Nano does not know),
everyday things that stand still (``still``), and those of ``MOTIONS`` done by still things, where no other motion is.
With ``--data`` (of ``kandinsky data nano``), the held-out clips of ``lab/nano/measure_sound.py`` at 96 and 192 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kandinsky.catalogue import load
from kandinsky.engine.pipeline import GenerationPipeline, VideoToAudioPipeline
from kandinsky.families.kandinsky4_v2a.stages import spectrogram_params
from kandinsky.families.nano.scenes import MOTIONS
from kandinsky.lab.nano.concepts import Concept, load_concepts
from kandinsky.lab.nano.emoji import FPS, FRAMES
from kandinsky.lab.nano.measure_sound import (
    SAMPLES,
    choose_cases,
    correlation,
    envelope,
    judge_sounds,
    sound_sheet,
)
from kandinsky.lab.nano.onsets import agree, onsets
from kandinsky.lab.nano.sound_data import LOUDEST, RATE
from kandinsky.lab.nano2.catalogue import catalogue
from kandinsky.lab.nano2.evaluate import Made
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.model.card import sound_of
from kandinsky.model.values import Request, Video

MODEL = "nano-v2a"
CLIPS, SHOWN = 24, 8  # of a group, and those of them on its sheet
LANDS_S = (FRAMES - 1) / 2 / FPS
SILENT_DB = -60.0
RUSTLE, MOST_CHANGE = 0.06 * LOUDEST, 12.0  # how loud a rustle is at the most, and from which change on


@dataclass(frozen=True, slots=True)
class Fit:
    """How sounds fit their clips; see the head of this file. None: the group has nothing to measure."""

    clips: int
    change: float
    level_db: float
    silent: float
    onsets: float
    follows: float | None = None
    another: float | None = None
    lands: float | None = None


def change_of(clip_THWC: Clip) -> np.ndarray:
    """Mean absolute change from each frame to the next, [T − 1], in levels of 255."""
    frames = clip_THWC.astype(np.float32)
    return np.asarray(np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)))


def wanted_level(clip_THWC: Clip) -> np.ndarray:
    """How loud a clip's change asks a rustle to be, float32 [S], int16 units."""
    centres = (np.arange(1, len(clip_THWC)) - 0.5) / FPS
    loud = np.interp(np.arange(SAMPLES) / RATE, centres, np.minimum(1.0, change_of(clip_THWC) / MOST_CHANGE))
    return (RUSTLE * loud).astype(np.float32)


def wanted_rustle(clip_THWC: Clip) -> np.ndarray:
    """Noise of that level, float32 [S]."""
    noise = np.random.default_rng(0).standard_normal(SAMPLES)
    return (wanted_level(clip_THWC) * noise).astype(np.float32)


def fit_of(clips: Sequence[Clip], sounds: Sequence[np.ndarray], *, lands: bool = False) -> Fit:
    """Measure the sounds of clips, int16 units.

    Args:
        lands: Whether what is shown jumps.
    """
    sounds = [np.asarray(sound, np.float32)[:SAMPLES] for sound in sounds]
    heard, wanted = [envelope(sound) for sound in sounds], [envelope(wanted_level(clip)) for clip in clips]
    moving = [n for n, one in enumerate(wanted) if one.std() > 0]
    others = [moving[(place + 1) % len(moving)] for place in range(len(moving))]
    levels = [20 * np.log10(max(1e-9, float(np.sqrt(np.square(sound / 32768).mean())))) for sound in sounds]
    found = [onsets(sound, RATE) if sound.any() else [] for sound in sounds]
    landed = [agree(some, [LANDS_S]).both for some in found]
    return Fit(
        clips=len(clips),
        change=float(np.mean([change_of(clip).mean() for clip in clips])),
        level_db=float(np.median(levels)),
        silent=float(np.mean([level < SILENT_DB for level in levels])),
        onsets=float(np.mean([len(some) for some in found])),
        follows=float(np.mean([correlation(heard[n], wanted[n]) for n in moving])) if moving else None,
        another=(
            float(np.mean([correlation(heard[n], wanted[m]) for n, m in zip(moving, others, strict=True)]))
            if moving
            else None
        ),
        lands=float(np.mean(landed)) if lands else None,
    )


def thinned(concepts: Sequence[Concept], count: int) -> list[Concept]:
    """So many, evenly taken from all."""
    keep = min(count, len(concepts))
    return [concepts[int(i * len(concepts) / keep)] for i in range(keep)]


def texts_of(count: int, *, first: bool) -> dict[str, list[str]]:
    """What is asked for, by group.

    Args:
        count: Of each group.
        first: Only what the first Nano can show too.
    """

    def named(concepts: Sequence[Concept]) -> list[str]:
        return [f"{one.label('en')} on a white background" for one in thinned(concepts, count)]

    known = len(load_concepts())
    groups = {"animated": named(catalogue()[:known])}
    if first:
        return groups
    still = [one for one in catalogue() if one.group == "still"]
    groups["further"] = named([one for one in catalogue()[known:] if one.group != "still"])
    groups["still"] = named(still)
    for motion in MOTIONS:
        groups[motion] = [
            f"{one.label('en')} {motion} on a white background" for one in thinned(still, max(4, count // 2))
        ]
    return groups


def sounds_of(
    pipe: VideoToAudioPipeline, clips: Sequence[Clip], prompts: Sequence[str], seeds: Sequence[int]
) -> list[np.ndarray]:
    """The sound of every clip, int16 [S]."""
    requests = [
        Request(pipe.card.id, prompt, video=Video(clip, FPS, seed=0), seed=seed)
        for clip, prompt, seed in zip(clips, prompts, seeds, strict=True)
    ]
    made = pipe.run_batch([pipe.resolve(request) for request in requests], at_once=8)
    return [one.audio.samples_SC[:, 0] for one in made]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="nano2-t2v")
    parser.add_argument("--beside", default="nano-t2v")
    parser.add_argument("--sound-model", default=MODEL)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--sounded", type=int, default=120)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sound = load(options.sound_model)
    assert isinstance(sound, VideoToAudioPipeline)
    figures: dict[str, Any] = {}

    def told(name: str, values: dict[str, Any]) -> None:
        figures[name] = values
        shown = ", ".join(f"{k} {v:.2f}" for k, v in values.items() if isinstance(v, int | float))
        sys.stdout.write(f"{name}: {shown}\n")
        sys.stdout.flush()
        (options.out / "figures.json").write_text(json.dumps(figures, indent=1))

    if options.data is not None:
        for side in (96, 192):
            cases = choose_cases(options.data, options.sounded, side=side)
            groups = judge_sounds(lambda *given: sounds_of(sound, *given), cases, batch=8)
            for name, one in groups.items():
                told(f"sounded {side}, {name}", asdict(one))
    for model, first in ((options.model, False), (options.beside, True)):
        if not model:
            continue
        pipe = load(model)
        assert isinstance(pipe, GenerationPipeline)
        for name, texts in texts_of(options.clips, first=first).items():
            clips = Made(pipe)(texts)
            sounds = sounds_of(sound, clips, [""] * len(clips), range(len(clips)))
            told(f"{model}, {name}", asdict(fit_of(clips, sounds, lands=name == "jumps")))
            shown = list(zip(clips, sounds, strict=True))[:SHOWN]
            true = [wanted_rustle(clip) for clip, _ in shown]
            sheet = sound_sheet(shown, true, spectrogram_params(sound.card), sound_of(sound.card).max_value)
            sheet.save(options.out / f"{model}-{name.replace(' ', '-')}.png")


if __name__ == "__main__":
    main()
