"""Measures of pixels and formulas of VBench's dimensions against numbers counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.evaluate import clips, dimensions
from kandinsky.evaluate.dimensions import Box


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    grey = np.full((3, 4, 5, 3), 100, np.uint8)
    assert clips.psnr(grey, grey) == 99.0
    assert clips.psnr(grey, grey + 10) == pytest.approx(20 * math.log10(255 / 10))
    assert clips.psnr(np.zeros_like(grey), np.full_like(grey, 255)) == pytest.approx(0)


def test_ssim_equals_the_formula_window_by_window() -> None:
    a, b = noise(0, 2, 13, 14, 3), noise(1, 2, 13, 14, 3)
    b = (0.7 * a + 0.3 * b).astype(np.uint8)
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / 4.5)
    weights /= weights.sum()
    values = []
    for x, y in zip(a @ clips.LUMA, b @ clips.LUMA, strict=True):
        for i in range(3):
            for j in range(4):
                u, v = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mu, mv = (weights * u).sum(), (weights * v).sum()
                suu, svv = (weights * (u - mu) ** 2).sum(), (weights * (v - mv) ** 2).sum()
                suv = (weights * (u - mu) * (v - mv)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * mu * mv + c1) * (2 * suv + c2) / ((mu**2 + mv**2 + c1) * (suu + svv + c2)))
    assert clips.ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)
    assert clips.ssim(a, a) == pytest.approx(1)


def test_flicker_and_jumps_of_clips_that_move_evenly() -> None:
    ramp = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.full((1, 4, 4, 3), 10, np.uint8)
    assert clips.flicker(ramp) == 0 and clips.first_jump(ramp) == 1
    assert clips.change(ramp) == pytest.approx(np.full(7, 10.0))
    trembling = np.where(np.arange(8)[:, None, None, None] % 2, 20, 0).astype(np.uint8) * np.ones(
        (1, 4, 4, 3), np.uint8
    )
    assert clips.flicker(trembling) == 40
    jumping = ramp.copy()
    jumping[1:] += 90
    assert clips.first_jump(jumping) == 10 and clips.seam(jumping, 1) == 10 and clips.seam(jumping, 4) == 1


def test_drift_is_the_share_of_colours_that_changed() -> None:
    steady = np.full((20, 2, 2, 3), 60, np.uint8)
    assert clips.drift(steady) == 0
    changed = steady.copy()
    changed[-3:, ..., 0] = 200
    assert clips.drift(changed) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: clips.psnr(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 5, 3), np.uint8)), "cannot be compared"),
        (lambda: clips.flicker(np.zeros((2, 4, 4, 3), np.uint8)), "use 3 frames or more"),
        (lambda: clips.change(np.zeros((2, 4, 4, 3), np.float32)), "type float32 is no clip"),
        (lambda: clips.ssim(np.zeros((2, 9, 9, 3), np.uint8), np.zeros((2, 9, 9, 3), np.uint8)), "smaller than"),
        (lambda: clips.seam(np.zeros((5, 4, 4, 3), np.uint8), 5), "no border before frame 5: use 1 to 4"),
        (lambda: dimensions.consistency(np.zeros((3, 4))), "zero or not finite"),
        (lambda: dimensions.consistency(np.ones((1, 4))), "two or more frames"),
        (lambda: dimensions.smoothness(np.zeros((1, 2, 2, 3)), np.zeros((2, 2, 2, 3))), "use equal ones"),
    ],
)
def test_what_is_no_clip_is_refused(call: object, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        call()  # type: ignore[operator]


def test_consistency_counts_the_last_and_the_first_frame() -> None:
    """Frames at 0, 60 and 180 degrees: cosines ½ and ½; -½ (as 0) and -1 (as 0)."""
    angles = np.radians([0, 60, 180])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [2]]
    assert dimensions.consistency(features) == pytest.approx((0.5 + 0) / 2)


def test_flickering_and_smoothness_are_shares_of_the_range() -> None:
    clip = np.zeros((3, 2, 2, 3), np.uint8)
    clip[1] = 51
    assert dimensions.flickering(clip) == pytest.approx(0.8)
    assert dimensions.smoothness(clip[1:2], clip[:1]) == pytest.approx(0.8)


def test_a_clip_is_dynamic_by_its_strongest_motion() -> None:
    flow = np.zeros((10, 10, 2))
    flow[0, :5] = (30.0, 40.0)  # the strongest 5 % of 100 pixels
    assert dimensions.strongest(flow) == 50 and dimensions.strongest(flow, 0.1) == 25
    # 16 frames of a shorter side of 256: four pairs above 6 pixels, or two above 3
    assert dimensions.is_dynamic([7, 7, 7, 7] + [0] * 11, 256, 16)
    assert not dimensions.is_dynamic([7, 7, 7, 6] + [0] * 11, 256, 16)
    assert not dimensions.is_dynamic([7, 7, 7, 7] + [0] * 11, 512, 16)
    assert dimensions.is_static([4, 4] + [0] * 13, [0, 0], 256, 16)
    assert not dimensions.is_static([4, 4, 4] + [0] * 12, [0, 0], 256, 16)


def test_places_of_boxes() -> None:
    left, right, below = Box(0, 0, 10, 10), Box(30, 2, 40, 12), Box(2, 50, 12, 60)
    assert dimensions.placed(left, right, "left") == 1 and dimensions.placed(left, right, "above") == 0
    assert dimensions.placed(below, left, "below") == 1 and dimensions.placed(left, below, "above") == 1
    assert dimensions.placed(left, Box(10, 10, 20, 20), "left") == 0, "exactly diagonal is neither"
    close = Box(5, 0, 15, 10)
    assert dimensions.overlap(left, close) == pytest.approx(50 / 150)
    assert dimensions.placed(left, close, "left") == pytest.approx(0.1 / (1 / 3))
    assert dimensions.overlap(Box(0, 0, 0, 0), Box(0, 0, 0, 0)) == 0


def test_objects_and_colours_are_counted_by_frame() -> None:
    frames = [["dog", "cat"], ["dog"], ["cat"], []]
    assert dimensions.share_of_frames(frames, "dog") == 0.5
    assert dimensions.share_of_frames(frames, "dog", "cat") == 0.25 and dimensions.share_of_frames([], "dog") == 0
    captions = [[("a red car on a road", "car")], [("a car", "car")], [("a blue car", "car"), ("green trees", "tree")]]
    assert dimensions.coloured(captions, "car", "red") == 0.5 and dimensions.coloured(captions, "boat", "red") is None
