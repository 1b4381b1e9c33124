"""The honest measures: each answers as arithmetic says it must on clips made for it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kandinsky.evaluate.clips import first_jump, flicker, psnr, ssim
from kandinsky.lab.nano2.fidelity import fidelity, held_still, jumps, reading


def moving_square(step: int = 2, jitter: int = 0) -> np.ndarray:
    rng = np.random.default_rng(0)
    clip = np.full((25, 64, 64, 3), 40, np.uint8)
    for t in range(25):
        at = 4 + step * t // 2 + int(rng.integers(-jitter, jitter + 1))
        clip[t, 20:40, max(at, 0) : max(at, 0) + 16] = (200, 180, 90)
    return clip


def test_psnr_is_that_of_its_error() -> None:
    real = np.full((3, 8, 8, 3), 100, np.uint8)
    assert psnr(real + 10, real) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(real, real) == 99.0


def test_ssim_tells_structure_from_brightness() -> None:
    real = moving_square()
    rng = np.random.default_rng(1)
    noisy = np.clip(real.astype(int) + rng.integers(-40, 41, real.shape), 0, 255).astype(np.uint8)
    assert ssim(real, real) == pytest.approx(1)
    assert ssim(noisy, real) < 0.6 < ssim(np.clip(real + 5, 0, 255).astype(np.uint8), real)


def test_trembling_flickers_and_a_still_does_not() -> None:
    assert flicker(held_still(moving_square())) == 0
    assert flicker(moving_square(jitter=3)) > 1.5 * flicker(moving_square())


def test_a_jump_after_the_first_frame_is_seen() -> None:
    clip = moving_square()
    assert first_jump(clip) == pytest.approx(1, abs=0.3)
    clip[0] = 250
    assert first_jump(clip) > 10
    rest = np.full((25, 8, 8, 3), 9, np.uint8)
    assert first_jump(rest) == 1
    figures = jumps([clip, rest], [moving_square(), rest])
    assert figures.clips == 2 and figures.over_3 == 0.5 and figures.real < 3


def test_fidelity_ranks_truth_still_and_noise() -> None:
    real = moving_square()
    resting = np.full_like(real, 60)
    wrong = np.full_like(real, 250)
    figures = fidelity([real, held_still(real), wrong, resting], [real, real, real, resting], ["a", "b", "c", "d"])
    assert figures.nearer_than_still == pytest.approx(1 / 3)  # of the three that move
    assert figures.worst[0][0] == "c" and figures.over_20 >= 0.5 and math.isnan(figures.floor_db)
    measured = fidelity([real], [real], ["a"], round_trip=lambda clip: clip)
    assert measured.floor_db == 99 and measured.flicker == pytest.approx(1)
    with pytest.raises(ValueError, match="cannot be compared"):
        fidelity([real[:3]], [real], ["a"])


def test_reading_counts_what_was_meant() -> None:
    assert reading([1, None, 3, 4], [1, None, 2, 4]).right == 0.75
    with pytest.raises(ValueError, match="3 answers for 2"):
        reading([1, 2, 3], [1, 2])
