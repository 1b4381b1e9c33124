"""Totals of VBench, as its leaderboard counts them.

A dimension is normalised to (x - least) / (most - least) and weighted; quality and semantic scores are weighted means,
and the total weights them 4 : 1 (VBench, Huang et al. 2024, and the scripts of its repository). A dimension that was
not measured makes its score unknown: the official script counts it as 0 without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kandinsky.errors import RequestError


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dimension's part in the totals.

    Attributes:
        group: The score it belongs to.
        least: Raw value that counts as 0.
        most: Raw value that counts as 1.
        weight: In the mean of its group.
    """

    group: Literal["quality", "semantic"]
    least: float = 0.0
    most: float = 1.0
    weight: float = 1.0


DIMENSIONS: Mapping[str, Dimension] = {
    "subject consistency": Dimension("quality", 0.1462),
    "background consistency": Dimension("quality", 0.2615),
    "temporal flickering": Dimension("quality", 0.6293),
    "motion smoothness": Dimension("quality", 0.706, 0.9975),
    "aesthetic quality": Dimension("quality"),
    "imaging quality": Dimension("quality"),
    "dynamic degree": Dimension("quality", weight=0.5),
    "object class": Dimension("semantic"),
    "multiple objects": Dimension("semantic"),
    "human action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial relationship": Dimension("semantic"),
    "scene": Dimension("semantic", 0.0, 0.8222),
    "appearance style": Dimension("semantic", 0.0009, 0.2855),
    "temporal style": Dimension("semantic", 0.0, 0.364),
    "overall consistency": Dimension("semantic", 0.0, 0.364),
}
QUALITY_SHARE = 4, 1


@dataclass(frozen=True, slots=True)
class Totals:
    """Scores of a model, 0 to 1.

    Attributes:
        quality: Weighted mean of the dimensions of quality; None if one is missing.
        semantic: Mean of the dimensions of meaning; None if one is missing.
        total: Of both; None if one is missing.
        missing: Dimensions that were not measured.
        normalised: Normalised value of each dimension that was.
    """

    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]
    normalised: Mapping[str, float]


def totals(raw: Mapping[str, float]) -> Totals:
    """Scores from raw values of dimensions.

    Args:
        raw: Value by dimension, 0 to 1; names with spaces or underscores.

    Returns:
        The scores.

    Raises:
        RequestError: A dimension is unknown, or its value is not from 0 to 1.
    """
    values: dict[str, float] = {}
    for given, value in raw.items():
        name = given.replace("_", " ")
        if name not in DIMENSIONS:
            raise RequestError(
                f"dimension `{given}` is none of VBench's: use {', '.join(f'`{d}`' for d in DIMENSIONS)}"
            )
        if not (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
            raise RequestError(f"dimension `{given}` is {value}: use a number from 0 to 1")
        values[name] = float(value)
    normalised = {
        name: (values[name] - one.least) / (one.most - one.least) for name, one in DIMENSIONS.items() if name in values
    }
    missing = tuple(name for name in DIMENSIONS if name not in values)

    def score(group: str) -> float | None:
        members = {name: one.weight for name, one in DIMENSIONS.items() if one.group == group}
        if any(name in missing for name in members):
            return None
        return sum(normalised[name] * weight for name, weight in members.items()) / sum(members.values())

    quality, semantic = score("quality"), score("semantic")
    known = quality is not None and semantic is not None
    total = (QUALITY_SHARE[0] * quality + QUALITY_SHARE[1] * semantic) / sum(QUALITY_SHARE) if known else None  # type: ignore[operator]
    return Totals(quality, semantic, total, missing, normalised)
