"""Formulas of VBench's dimensions, apart from the networks whose outputs they take.

Each takes what a network says about one clip (features, flow, boxes, captions) and returns the clip's raw value, as the
scripts of the VBench repository do; ``vbench.totals`` takes their means over clips. A value from another network than
the official one is to be called "VBench-like".

Legend: T frames; D features; F sampled frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.evaluate.clips import change

Relation = Literal["left", "right", "above", "below"]
COLOURS = (
    "white", "red", "pink", "blue", "silver", "purple", "orange", "green", "gray", "yellow", "black", "grey",
)  # fmt: skip
SURE = 0.85  # of a human action


def consistency(features_TD: np.ndarray) -> float:
    """Subject or background consistency: mean over frames of the cosine with the frame before and with the first one.

    Frames from the second on count; negative cosines count as 0. The official tool averages over the frames of all
    clips, so that clips of different length weigh differently.

    Args:
        features_TD: Features of every frame: DINO ViT-B/16 for the subject, CLIP ViT-B/32 for the background.

    Returns:
        The consistency, 0 to 1.

    Raises:
        RequestError: There are fewer than two frames, or features are zero or not finite.
    """
    features = np.asarray(features_TD, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise RequestError(f"features have the shape {list(features.shape)}: use a row for each of two or more frames")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise RequestError("features are zero or not finite: the frames or the network that reads them are damaged")
    unit = features / lengths
    to_last = np.clip((unit[1:] * unit[:-1]).sum(axis=1), 0, None)
    to_first = np.clip(unit[1:] @ unit[0], 0, None)
    return float(((to_last + to_first) / 2).mean())


def flickering(clip_THWC: np.ndarray) -> float:
    """Temporal flickering of a static clip: 1 where neighbouring frames are equal, 0 where they are opposite.

    Raises:
        RequestError: It is not a uint8 clip of two frames or more.
    """
    return float((255.0 - change(clip_THWC).mean()) / 255.0)


def smoothness(clip_THWC: np.ndarray, made_THWC: np.ndarray) -> float:
    """Motion smoothness: how near an interpolator's frames are to the clip's own.

    Args:
        clip_THWC: The odd frames of a clip (1, 3, …), uint8.
        made_THWC: The same frames, made from the even ones by an interpolation network, uint8.

    Returns:
        The smoothness, 0 to 1.

    Raises:
        RequestError: The shapes differ or there are no frames.
    """
    if np.shape(clip_THWC) != np.shape(made_THWC) or not np.size(clip_THWC):
        raise RequestError(
            f"frames of shape {list(np.shape(clip_THWC))} and {list(np.shape(made_THWC))}: use equal ones"
        )
    difference = np.abs(np.asarray(clip_THWC, dtype=np.int16) - np.asarray(made_THWC, dtype=np.int16))
    return float((255.0 - difference.mean()) / 255.0)


def strongest(flow_HW2: np.ndarray, share: float = 0.05) -> float:
    """Mean length of the strongest part of an optical flow, in pixels; ``is_dynamic`` takes 5 %, ``is_static`` 2 %."""
    lengths = np.sort(np.linalg.norm(np.asarray(flow_HW2, dtype=np.float64), axis=-1).ravel())[::-1]
    return float(lengths[: max(1, int(len(lengths) * share))].mean())


def is_dynamic(strengths: Sequence[float], side: int, frames: int) -> bool:
    """Dynamic degree of one clip: whether enough of its neighbouring frames move; the score is the share of such clips.

    Args:
        strengths: ``strongest`` of the flow between neighbouring frames, sampled at 8 fps.
        side: The shorter side of the frames, in pixels.
        frames: Number of sampled frames.
    """
    return _many(strengths, 6.0 * side / 256.0, round(4 * frames / 16))


def is_static(strengths: Sequence[float], ends: Sequence[float], side: int, frames: int) -> bool:
    """Whether a clip is static, so that its flickering may be measured; ``strongest`` with a share of 2 %.

    Args:
        strengths: Of the flow between neighbouring frames, all of them.
        ends: Of the flow from the first frame to the last, and back.
        side: The shorter side of the frames, in pixels.
        frames: Number of frames. Quirk of the official filter: with fewer than five nothing may move from end to end.
    """
    bound, count = 3.0 * side / 256.0, round(2 * frames / 16)
    return sum(one > bound for one in strengths) <= count and all(one <= bound * count * 2 for one in ends)


def _many(strengths: Sequence[float], least: float, count: int) -> bool:
    return sum(one > least for one in strengths) >= count


@dataclass(frozen=True, slots=True)
class Box:
    """A detected object, in pixels; rows grow downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the middle."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def area(self) -> float:
        """Pixels inside."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    common = max(0.0, width) * max(0.0, height)
    union = one.area + other.area - common
    return common / union if union else 0.0


def placed(one: Box, other: Box, relation: Relation) -> float:
    """Spatial relationship of two boxes: 1 where they lie beside (or above) each other, less where they overlap.

    Quirk of the official tool, which is kept: which of the two lies on which side is not looked at.

    Args:
        one: An object of the prompt.
        other: Another one.
        relation: Where the first object of the prompt lies, seen from the second.

    Returns:
        The score; a frame's is that of its best pair of boxes.
    """
    dx, dy = (abs(a - b) for a, b in zip(one.centre, other.centre, strict=True))
    if not (dx > dy if relation in ("left", "right") else dy > dx):
        return 0.0
    common = overlap(one, other)
    return 1.0 if common < 0.1 else 0.1 / common


def share_of_frames(frames: Sequence[Sequence[str]], *names: str) -> float:
    """Object class and multiple objects: share of frames in which every name was detected.

    Args:
        frames: Names of the objects that were detected in each of the sampled frames.
        names: One object, or several that must be in the same frame.

    Returns:
        The share; 0 without frames.
    """
    found = [all(name in frame for name in names) for frame in frames]
    return sum(found) / len(found) if found else 0.0


def coloured(frames: Sequence[Sequence[tuple[str, str]]], thing: str, colour: str) -> float | None:
    """Color: among frames in which the object is described with any colour, the share with the right one.

    Quirk of the official tool, which is kept: colours are looked for anywhere in a caption, also within words.

    Args:
        frames: Caption and object of each region, in each of the sampled frames.
        thing: The object.
        colour: The colour it should have.

    Returns:
        The share; None where no frame names the object with a colour, which the official tool leaves out.
    """
    named = right = 0
    for regions in frames:
        about = [caption for caption, name in regions if name == thing]
        named += any(one in caption for caption in about for one in COLOURS)
        right += any(colour in caption for caption in about)
    return right / named if named else None


def in_scene(captions: Sequence[str], scene: str) -> float:
    """Scene: share of the sampled frames whose caption has every word of the scene in it; 0 without frames."""
    words = scene.split(" ")
    found = [all(word in caption for word in words) for caption in captions]
    return sum(found) / len(found) if found else 0.0


def acts(shares: Mapping[str, float], action: str) -> bool:
    """Human action of one clip: whether it is among the five likeliest, and at 0.85 or more.

    Args:
        shares: Of each action, 0 to 1, each for itself.
        action: That of the prompt.
    """
    likeliest = sorted(shares, key=lambda name: -shares[name])[:5]
    return action in likeliest and round(shares[action], 4) >= SURE
