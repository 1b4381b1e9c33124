"""Formulas against what the functions of VBench's repository (commit 45e79ec) gave on the same inputs, and totals
against those that its leaderboard published."""

from __future__ import annotations

import numpy as np
import pytest

from kandinsky.evaluate import dimensions
from kandinsky.evaluate.dimensions import Box
from kandinsky.evaluate.vbench import totals

ORDER = (
    "subject consistency", "background consistency", "temporal flickering", "motion smoothness", "dynamic degree",
    "aesthetic quality", "imaging quality", "object class", "multiple objects", "human action", "color",
    "spatial relationship", "scene", "appearance style", "temporal style", "overall consistency",
)  # fmt: skip
# raw values, then quality, semantic and total, in percent, as the leaderboard had them at the end of 2024
PUBLISHED = {
    "VideoCrafter-2.0": (
        (96.85, 98.22, 98.41, 97.73, 42.5, 63.13, 67.22, 92.55, 40.66, 95, 92.92, 35.86, 55.29, 25.13, 25.84, 28.23),
        (82.20, 73.42, 80.44),
    ),
    "CogVideoX-5B": (
        (96.23, 96.52, 98.66, 96.92, 70.97, 61.98, 62.9, 85.23, 62.11, 99.4, 82.81, 66.35, 53.2, 24.91, 25.38, 27.59),
        (82.75, 77.04, 81.61),
    ),
    "Gen-3": (
        (97.1, 96.62, 98.61, 99.23, 60.14, 63.34, 66.82, 87.81, 53.64, 96.4, 80.9, 65.09, 54.57, 24.31, 24.71, 26.69),
        (84.11, 75.17, 82.32),
    ),
    "Kling": (
        (98.33, 97.6, 99.3, 99.4, 46.94, 61.21, 65.62, 87.24, 68.05, 93.4, 89.9, 73.03, 50.86, 19.62, 24.17, 26.42),
        (83.39, 75.68, 81.85),
    ),
    "HunyuanVideo": (
        (97.37, 97.76, 99.44, 98.99, 70.83, 60.36, 67.56, 86.1, 68.55, 94.4, 91.6, 68.68, 53.88, 19.8, 23.89, 26.44),
        (85.09, 75.82, 83.24),
    ),
    "AnimateDiff-V2": (
        (95.3, 97.68, 98.75, 97.76, 40.83, 67.16, 70.1, 90.9, 36.88, 92.6, 87.47, 34.6, 50.19, 22.42, 26.03, 27.04),
        (82.90, 69.75, 80.27),
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_totals_are_those_of_the_leaderboard(model: str) -> None:
    """Raw values are published in hundredths of a percent, and so are totals."""
    raw, expected = PUBLISHED[model]
    made = totals({name: value / 100 for name, value in zip(ORDER, raw, strict=True)})
    found = [100 * (value or 0) for value in (made.quality, made.semantic, made.total)]
    assert found == pytest.approx(expected, abs=0.015)


def frames() -> list[np.ndarray]:
    """Five frames of numbers, 4×5."""
    each = np.arange(4 * 5 * 3)
    return [((each * (7 + t) + 13 * t * t) % 256).astype(np.uint8).reshape(4, 5, 3) for t in range(5)]


def test_flickering_smoothness_and_consistency() -> None:
    clip = np.stack(frames())
    assert dimensions.flickering(clip) == pytest.approx(0.6149019727519914, abs=1e-7)
    made = [np.clip(x.astype(int) + (9 * i - 20), 0, 255).astype(np.uint8) for i, x in enumerate(clip)]
    assert dimensions.smoothness(clip[1::2], np.stack(made)[1::2]) == pytest.approx(0.965, abs=1e-9)
    features = np.array([[1, 2, 3], [2, 2, 1], [-1, -3, 0.5], [3, 1, -2]])
    assert dimensions.consistency(features) == pytest.approx(0.267261266708374, abs=1e-6)


def test_the_strongest_flow() -> None:
    y, x = np.indices((12, 20))
    flow = np.stack([np.sin(x * 0.7) * y * 0.5, np.cos(y * 0.3) * x * 0.4], axis=-1)
    assert dimensions.strongest(flow) == pytest.approx(7.710291657183667, rel=1e-9)
    assert dimensions.strongest(flow, 0.02) == pytest.approx(8.226308830724076, rel=1e-9)


@pytest.mark.parametrize(
    ("strengths", "side", "count", "moves"),
    [
        ([7, 7, 7, 7, 1, 1, 1], 256, 16, True),
        ([7, 7, 7, 6, 1, 1, 1], 256, 16, False),
        ([1.6, 1.4], 64, 8, False),
        ([1.6, 1.6], 64, 8, True),
        ([0.1], 128, 2, True),
        ([3.1] * 4, 128, 14, True),
        ([3.1] * 3, 128, 14, False),
    ],
)
def test_dynamic_degree(strengths: list[float], side: int, count: int, moves: bool) -> None:
    assert dimensions.is_dynamic(strengths, side, count) is moves


@pytest.mark.parametrize(
    ("strengths", "ends", "side", "count", "is_static"),
    [
        ([4, 4, 0, 0], [1, 1], 256, 16, True),
        ([4, 4, 4, 0], [1, 1], 256, 16, False),
        ([0, 0, 0], [11, 13], 256, 16, False),
        ([0, 0, 0], [12, 12], 256, 16, True),
        ([0, 0], [0.1, 0], 256, 3, False),
        ([0, 0], [0, 0], 256, 3, True),
        ([1, 1], [2.9, 3.1], 64, 20, False),
        ([1, 1], [2, 2], 64, 20, True),
    ],
)
def test_the_filter_of_static_clips(
    strengths: list[float], ends: list[float], side: int, count: int, is_static: bool
) -> None:
    assert dimensions.is_static(strengths, ends, side, count) is is_static


@pytest.mark.parametrize(
    ("one", "other", "beside", "above"),
    [
        ((0, 0, 10, 10), (30, 2, 40, 12), 1, 0),
        ((30, 2, 40, 12), (0, 0, 10, 10), 1, 0),
        ((0, 0, 10, 10), (2, 0, 12, 10), 0.15, 0),
        ((0, 0, 10, 10), (1, 25, 11, 40), 0, 1),
        ((0, 0, 10, 10), (10, 10, 20, 20), 0, 0),
        ((3, 1, 15, 9), (0, 0, 10, 10), 0.25, 0),
        ((1, 25, 11, 40), (3, 1, 15, 9), 0, 1),
    ],
)
def test_spatial_relationship(one: tuple[float, ...], other: tuple[float, ...], beside: float, above: float) -> None:
    boxes = Box(*one), Box(*other)
    assert dimensions.placed(*boxes, "left") == dimensions.placed(*boxes, "right") == pytest.approx(beside)
    assert dimensions.placed(*boxes, "above") == dimensions.placed(*boxes, "below") == pytest.approx(above)


REGIONS = [
    [("a red car on a road", "car"), ("a blue sky", "sky")],
    [("a car", "car")],
    [("a bored man", "man"), ("a scarred car", "car")],
    [("green car and red roof", "car")],
    [("a grey car", "car"), ("red bus", "bus")],
    [("", "")],
]


@pytest.mark.parametrize(
    ("thing", "colour", "share"),
    [("car", "red", 3 / 4), ("car", "grey", 1 / 4), ("bus", "red", 1), ("man", "red", 1), ("boat", "red", None)],
)
def test_color(thing: str, colour: str, share: float | None) -> None:
    assert dimensions.coloured(REGIONS, thing, colour) == share


def test_scenes_and_objects() -> None:
    captions = ["a wheat field at dusk", "field of wheat", "a farm", "wheatfield", "the fields, with some wheat"]
    assert [dimensions.in_scene(captions, scene) for scene in ("wheat field", "farm", "alley")] == [4 / 5, 1 / 5, 0]
    seen = [["dog", "cat"], ["cat"], [], ["dog"]]
    assert dimensions.share_of_frames(seen, "dog") == 2 / 4 and dimensions.share_of_frames(seen, "dog", "cat") == 1 / 4


def test_human_action() -> None:
    """As its script has it: one of the five likeliest, of those at 0.85 or more once they are rounded."""
    shares = {"running": 0.99, "jumping": 0.84996, "crying": 0.84994, "yoga": 0.97, "singing": 0.96, "diving": 0.95}
    assert dimensions.acts(shares, "running") and dimensions.acts({"a": 0.84996}, "a")
    assert not dimensions.acts({"a": 0.84994}, "a") and not dimensions.acts(shares, "crying")
    assert not dimensions.acts({**shares, "rowing": 0.94}, "jumping") and not dimensions.acts(shares, "swimming")
