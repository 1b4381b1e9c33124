"""VBench's totals and distances of feature sets against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.evaluate.distance import frechet, kernel
from kandinsky.evaluate.vbench import DIMENSIONS, totals


def test_ends_of_every_dimension_are_the_ends_of_the_total() -> None:
    assert totals({name: one.most for name, one in DIMENSIONS.items()}).total == pytest.approx(1)
    assert totals({name: one.least for name, one in DIMENSIONS.items()}).total == pytest.approx(0)


def test_the_total_is_counted_as_the_leaderboard_does() -> None:
    """By hand: all dimensions 0.8 but for dynamic degree 0.4."""
    made = totals({name.replace(" ", "_"): 0.4 if name == "dynamic degree" else 0.28 if "style" in name
                   or name == "overall consistency" else 0.8 for name in DIMENSIONS})  # fmt: skip
    quality = (
        (0.8 - 0.1462) / 0.8538 + (0.8 - 0.2615) / 0.7385 + (0.8 - 0.6293) / 0.3707 + (0.8 - 0.706) / 0.2915
        + 0.8 + 0.8 + 0.5 * 0.4
    ) / 6.5  # fmt: skip
    semantic = (5 * 0.8 + 0.8 / 0.8222 + (0.28 - 0.0009) / 0.2846 + 2 * 0.28 / 0.364) / 9
    assert made.quality == pytest.approx(quality) and made.semantic == pytest.approx(semantic)
    assert made.total == pytest.approx((4 * quality + semantic) / 5)


def test_cosines_below_zero_and_heads_above_one_are_counted() -> None:
    least = {name: one.least for name, one in DIMENSIONS.items()}
    made = totals(least | {"temporal style": -0.0364, "aesthetic quality": 1.3})
    assert made.semantic == pytest.approx(-0.1 / 9) and made.quality == pytest.approx(1.3 / 6.5)


def test_what_was_not_measured_is_not_zero() -> None:
    raw = {name: 0.9 for name, one in DIMENSIONS.items() if one.group == "quality"} | {"scene": 0.5}
    made = totals(raw)
    assert made.quality is not None and made.semantic is None and made.total is None
    assert "object class" in made.missing and "scene" not in made.missing


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"beauty": 0.5}, "dimension `beauty` is none of VBench's"),
        ({"scene": 10**400}, "is 1000.*…: use a finite number"),
        ({"scene": True}, "is True: use a finite number"),
        ({"scene": float("nan")}, "is nan"),
    ],
)
def test_wrong_values_are_refused(raw: dict[str, float], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        totals(raw)


def test_the_frechet_distance_of_shifted_and_scaled_sets() -> None:
    """Closed forms: a shift by m adds |m|²; a scale s of a set with covariance C adds (s - 1)² tr C."""
    rows = np.random.default_rng(0).normal(size=(500, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
    centred = rows - rows.mean(axis=0)
    trace = np.trace(np.cov(centred, rowvar=False))
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-9 * trace)
    assert frechet(rows, rows + 3) == pytest.approx(6 * 9)
    assert frechet(centred, 2 * centred) == pytest.approx(trace)
    assert frechet(rows, rows[:200]) == pytest.approx(frechet(rows[:200], rows))


def test_the_frechet_distance_with_fewer_clips_than_features() -> None:
    """Singular covariances: no imaginary part, nothing that is not finite."""
    generator = np.random.default_rng(2)
    few, others = generator.normal(size=(5, 40)), generator.normal(size=(7, 40))
    assert 0 < frechet(few, others) < 1e3 and frechet(few, few) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    generator = np.random.default_rng(3)
    equal = [kernel(*generator.normal(size=(2, 30, 8))) for _ in range(80)]
    assert abs(np.mean(equal)) < 3 * np.std(equal) / np.sqrt(80)
    assert kernel(generator.normal(size=(30, 8)), generator.normal(size=(30, 8)) + 1) > 5 * np.std(equal)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "two or more rows"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "3 and 2 columns"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "not finite"),
        (np.zeros(4), np.zeros((4, 3)), "two or more rows"),
    ],
)
def test_features_that_cannot_be_compared(one: np.ndarray, other: np.ndarray, said: str) -> None:
    for distance in (frechet, kernel):
        with pytest.raises(RequestError, match=said):
            distance(one, other)
