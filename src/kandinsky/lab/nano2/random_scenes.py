"""Random scenes for training; what a scene is stands in ``families/nano/scenes.py``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from kandinsky.families.nano.scenes import (
    ARRANGEMENTS,
    BACKDROPS,
    CAMERAS,
    MOTIONS,
    PLACES,
    SIZES,
    TONES,
    Backdrop,
    Scene,
    Subject,
)
from kandinsky.lab.nano.captions import COLOURS, TRAIN_COLOURS
from kandinsky.lab.nano2.catalogue import catalogue, toned


def draw_scene(
    rng: np.random.Generator, *, concepts: int, wordless: list[int] | None = None, tones: bool = False
) -> Scene:
    """A random scene for training; a concept never meets the background colours that are held out for it.

    Args:
        concepts: Only the first so many are drawn.
        wordless: Rows of clips that are no concepts, drawn instead of one.
        tones: Whether subjects whose skin has tones are drawn in one at times; all else of a scene is as without.
    """
    kind = rng.choice(KINDS, p=SHARES)
    if wordless is not None:
        first = Subject(None, row=int(rng.choice(wordless)))
        kind = "plain" if rng.random() < 0.7 else "free"
    else:
        first = Subject(int(rng.integers(concepts)))
    subjects: tuple[Subject, ...] = (first,)
    place: str | None = "middle"
    size = motion = camera = None
    arrangement = "one"
    if kind == "placed":
        if rng.random() < 0.6:
            place = str(rng.choice(list(PLACES)[1:]))
            subjects = (_at(first, *PLACES[place]),)
        else:
            size = str(rng.choice(list(SIZES)))
            subjects = (_at(first, 0.5, 0.5, SIZES[size]),)
    elif kind == "free":
        place = None
        scale = float(rng.uniform(0.35, 1.1))
        room = max(0.06, 0.5 - scale / 2)
        x, y = (float(0.5 + rng.uniform(-room, room)) for _ in range(2))
        subjects = (_at(first, x, y, scale),)
    elif kind == "motion":
        motion = str(rng.choice(MOTIONS))
    elif kind == "camera":
        camera = str(rng.choice(CAMERAS))
    elif kind == "count":
        arrangement = str(rng.choice(["side by side", "three in a row", "three in a row"]))
        subjects = tuple(_at(first, *at) for at in ARRANGEMENTS[arrangement])
    elif kind == "two":
        arrangement = str(rng.choice(["side by side", "side by side", "one above the other"]))
        second = Subject(int((first.concept or 0) + rng.integers(1, concepts)) % concepts)
        subjects = tuple(_at(s, *at) for s, at in zip((first, second), ARRANGEMENTS[arrangement], strict=True))
    if tones:
        subjects = _in_tones(subjects, rng.spawn(1)[0])
    backdrop: Backdrop = "plain"
    if kind in ("plain", "placed", "two") and rng.random() < 0.3:
        backdrop = BACKDROPS[1 + rng.integers(3)]
    allowed = _colours([s.concept for s in subjects])
    one = int(rng.choice(allowed))
    other = int(rng.choice([c for c in allowed if c != one])) if backdrop != "plain" else None
    return Scene(subjects, backdrop, (one, other), arrangement, place, size, motion, camera)


KINDS = ("plain", "placed", "free", "motion", "camera", "count", "two")
SHARES = (0.42, 0.12, 0.08, 0.14, 0.08, 0.06, 0.10)


TONED = 0.5
"""Share of the subjects that have tones of skin which are drawn in one."""
STILL = "1F64F"
"""Code of the one emoji that moves in its own colours alone: folded hands."""


@cache
def in_tones() -> tuple[int, ...]:
    """Concepts of which there are real clips in every tone of skin."""
    return tuple(number for number in sorted(toned()) if catalogue()[number].hexcode != STILL)


def _in_tones(subjects: tuple[Subject, ...], rng: np.random.Generator) -> tuple[Subject, ...]:
    """The same, each concept that has tones in one of them or in its own colours."""
    drawn = {one.concept: 1 + int(rng.integers(len(TONES))) if rng.random() < TONED else 0 for one in subjects}
    return tuple(replace(one, tone=drawn[one.concept]) if one.concept in in_tones() else one for one in subjects)


def _at(subject: Subject, x: float, y: float, size: float) -> Subject:
    return replace(subject, x=x, y=y, size=size)


def _colours(concepts: list[int | None]) -> list[int]:
    allowed = set(range(len(COLOURS)))
    for concept in concepts:
        if concept is not None:
            allowed &= set(TRAIN_COLOURS(catalogue()[concept]))
    return sorted(allowed) if len(allowed) > 1 else list(range(len(COLOURS)))
