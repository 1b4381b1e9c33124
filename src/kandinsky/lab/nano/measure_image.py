"""Measures of image → video on nano: is the picture kept, and does it come alive as the real clip does?

Two groups. ``words``: the first frame of a concept over a colour it was never trained on, with its label as the prompt,
English and Russian in turn. ``picture alone``: first frames of clips that no training ever saw, and no words at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kandinsky.lab.nano import captions
from kandinsky.lab.nano.concepts import LANGUAGES
from kandinsky.lab.nano.emoji import Clips, Scene, composite
from kandinsky.lab.nano.measure import NanoJudge, motion, shrink
from kandinsky.lab.nano.splits import autoencoder_rows

# pictures uint8 [H, W, 3], prompts, seeds → uint8 clips [M, T, H, W, 3]
Animate = Callable[[Sequence[np.ndarray], Sequence[str], Sequence[int]], np.ndarray]


@dataclass(frozen=True, slots=True)
class ImageCase:
    """A picture, what is said of it, and the real clip it is the first frame of, uint8 [T, H, W, 3]."""

    prompt: str
    clip_THWC: np.ndarray

    @property
    def picture_HWC(self) -> np.ndarray:  # noqa: N802 - carries its axes
        out: np.ndarray = self.clip_THWC[0]
        return out


@dataclass(frozen=True, slots=True)
class ImageFigures:
    """first_frame_db: PSNR of the first frame made against the picture given.
    nearer_than_still: share of clips nearer to the real clip than the picture held still is (24 × 24 pixels).
    motion_ratio: medians of the motion, made over real.
    """

    clips: int
    first_frame_db: float
    nearer_than_still: float
    motion_ratio: float


def choose_cases(
    judge: NanoJudge, clips: Clips, cache: Path, per_group: int | None = None
) -> dict[str, list[ImageCase]]:
    """The cases by group, evenly thinned to a number, the same on every machine."""
    words = []
    for number, concept in enumerate(judge.entries):
        held, lang = captions.held_colours(concept), LANGUAGES[number % len(LANGUAGES)]
        colour = held[number % len(held)]
        prompt = f"{concept.label(lang)} {captions.background(colour, lang)}"
        words.append((prompt, judge.rgba[number], colour))
    alone = [
        ("", np.asarray(clips.rgba_NTHWC[row]), number % len(captions.COLOURS))
        for number, row in enumerate(autoencoder_rows(cache)[1])
    ]
    groups = {}
    for name, listed in (("words", words), ("picture alone", alone)):
        keep = min(per_group or len(listed), len(listed))
        chosen = [listed[int(i * len(listed) / keep)] for i in range(keep)]
        groups[name] = [
            ImageCase(prompt, composite(rgba, Scene(captions.COLOURS[colour].rgb), side=judge.side))
            for prompt, rgba, colour in chosen
        ]
    return groups


def judge_images(
    animate: Animate,
    groups: dict[str, list[ImageCase]],
    *,
    batch: int = 16,
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, ImageFigures]:
    """Animate and judge all groups. Case i of a group uses seed ``seed + i``."""
    result, done, total = {}, 0, sum(len(cases) for cases in groups.values())
    for name, cases in groups.items():
        made: list[np.ndarray] = []
        for at in range(0, len(cases), batch):
            part = cases[at : at + batch]
            seeds = [seed + at + i for i in range(len(part))]
            made += list(animate([case.picture_HWC for case in part], [case.prompt for case in part], seeds))
            done += len(part)
            if on_batch:
                on_batch(done, total)
        result[name] = image_figures(made, cases)
    return result


def image_figures(made: Sequence[np.ndarray], cases: Sequence[ImageCase]) -> ImageFigures:
    """Compare clips [T, H, W, 3] with the cases they were made from."""
    decibels, nearer = [], []
    for clip, case in zip(made, cases, strict=True):
        error = np.square(clip[0].astype(float) - case.picture_HWC).mean()
        decibels.append(10 * math.log10(255**2 / max(error, 1e-3)))
        real = shrink(case.clip_THWC)
        still = shrink(np.repeat(case.clip_THWC[:1], len(case.clip_THWC), axis=0))
        nearer.append(bool((shrink(clip) - real).pow(2).mean() < (still - real).pow(2).mean()))
    return ImageFigures(
        clips=len(cases),
        first_frame_db=float(np.mean(decibels)),
        nearer_than_still=float(np.mean(nearer)),
        motion_ratio=float(np.median([motion(c) for c in made]) / np.median([motion(c.clip_THWC) for c in cases])),
    )
