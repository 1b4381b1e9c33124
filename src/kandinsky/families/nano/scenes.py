"""What a clip shows, in words and in exact numbers.

A ``Scene`` says it in words: one to three subjects, where they stand, how large they are, what they stand before, how
the whole moves and how the camera does. ``track`` turns that into numbers for every frame, so whoever draws a scene
and whoever describes it to the network agree to the last digit. Nothing about a scene is left to chance once it is
drawn. No torch.

Places and sizes are shares of the frame's side, x to the right and y downwards; a size is the side of the subject's
image. Legend: S subjects, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kandinsky.families.nano.params import MOST_SUBJECTS as MOST_SUBJECTS

Backdrop = Literal["plain", "gradient", "halves", "ground"]
BACKDROPS: tuple[Backdrop, ...] = ("plain", "gradient", "halves", "ground")
HORIZON = 0.65
"""Where the ground begins."""
RGB: tuple[tuple[int, int, int], ...] = (
    (214, 40, 40),
    (245, 140, 30),
    (250, 218, 60),
    (50, 160, 75),
    (140, 210, 250),
    (40, 75, 205),
    (125, 55, 180),
    (250, 150, 195),
    (120, 75, 45),
    (255, 255, 255),
    (15, 15, 15),
    (135, 135, 135),
)
"""Colours of backgrounds: red, orange, yellow, green, light blue, blue, purple, pink, brown, white, black, grey."""
COLOURS, WHITE = len(RGB), 9
"""How many there are, and the number of the one that is usual."""

# centre and size of the subject by the word for its place
PLACES: dict[str, tuple[float, float, float]] = {
    "middle": (0.5, 0.5, 0.8),
    "left": (0.3, 0.5, 0.58),
    "right": (0.7, 0.5, 0.58),
    "top": (0.5, 0.3, 0.58),
    "bottom": (0.5, 0.7, 0.58),
}
CORNERS: dict[str, tuple[float, float, float]] = {
    f"{row} {column}": (PLACES[column][0], PLACES[row][1], PLACES[row][2])
    for row in ("top", "bottom")
    for column in ("left", "right")
}
"""The same of places that have no word of their own in the memory: a scene's place is None there."""
SIZES: dict[str, float] = {"small": 0.45, "large": 1.05}
MOTIONS = ("moves right", "moves left", "moves up", "moves down", "jumps", "spins", "grows", "shrinks", "fades in")
CAMERAS = ("zoom in", "zoom out", "pan left", "pan right")
# centres and size of several subjects by their arrangement
ARRANGEMENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "one": ((0.5, 0.5, 0.8),),
    "side by side": ((0.26, 0.5, 0.47), (0.74, 0.5, 0.47)),
    "one above the other": ((0.5, 0.26, 0.47), (0.5, 0.74, 0.47)),
    "three in a row": ((0.18, 0.5, 0.32), (0.5, 0.5, 0.32), (0.82, 0.5, 0.32)),
}
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""Of skin, as Unicode names them; the first has the number 1."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing.

    Args:
        concept: Its number among the concepts; None for something that no word names: an emoji in training, of which
            ``row`` is the number.
        x: Where its middle is before anything moves, from the left.
        y: The same from the top.
        size: How large it is before anything moves.
        tone: Of its skin, the number in ``TONES`` plus one; 0 for the colours it has by itself.
    """

    concept: int | None
    x: float = 0.5
    y: float = 0.5
    size: float = 0.8
    row: int | None = None
    tone: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A clip in words, with the exact places of its subjects.

    Args:
        backdrop: Kind of background; all but "plain" have a second colour.
        colours: Numbers of colours, as in the list of words.
        place: The word for where the subject stands; None where no word fits the exact numbers.
        size: The word for how large it is; None likewise.
    """

    subjects: tuple[Subject, ...]
    backdrop: Backdrop = "plain"
    colours: tuple[int, int | None] = (WHITE, None)
    arrangement: str = "one"
    place: str | None = "middle"
    size: str | None = None
    motion: str | None = None
    camera: str | None = None


def track(scene: Scene, frames: int = 25) -> np.ndarray:
    """Where the subjects are in every frame.

    Returns:
        float64 [S, T, 5]: x, y, size, clockwise angle in radians, opacity.
    """
    p = np.arange(frames) / max(1, frames - 1)
    out = np.empty((len(scene.subjects), frames, 5))
    for row, subject in zip(out, scene.subjects, strict=True):
        x, y, size, angle, opacity = (np.full(frames, v) for v in (subject.x, subject.y, subject.size, 0.0, 1.0))
        match scene.motion:
            case "moves right" | "moves left":
                x, size = x + (0.48 * p - 0.24) * (1 if scene.motion == "moves right" else -1), size * 0.7
            case "moves down" | "moves up":
                y, size = y + (0.48 * p - 0.24) * (1 if scene.motion == "moves down" else -1), size * 0.7
            case "jumps":
                y, size = y + 0.12 - 0.26 * np.abs(np.sin(2 * math.pi * p)), size * 0.75
            case "spins":
                angle, size = 2 * math.pi * p, size * 0.75
            case "grows":
                size = size * (0.4 + 0.7 * p)
            case "shrinks":
                size = size * (1.1 - 0.7 * p)
            case "fades in":
                opacity = np.minimum(1.0, p / 0.7)
        match scene.camera:
            case "zoom in" | "zoom out":
                zoom = 0.7 + 0.6 * p if scene.camera == "zoom in" else 1.3 - 0.6 * p
                x, y, size = 0.5 + (x - 0.5) * zoom, 0.5 + (y - 0.5) * zoom, size * zoom
            case "pan left" | "pan right":  # the camera turns left: the subject drifts to the right
                x, size = x + (0.4 * p - 0.2) * (1 if scene.camera == "pan left" else -1), size * 0.8
        row[:] = np.stack([x, y, size, angle, opacity], axis=-1)
    return out


def plain_scene(concept: int, colour: int) -> Scene:
    """One subject in the middle before one colour: what a prompt that says nothing more means."""
    return Scene((Subject(concept),), colours=(colour, None))
