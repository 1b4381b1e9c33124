"""Numbers from files: whether a value is one that can be counted with."""

from __future__ import annotations

import math


def finite(value: object) -> float | None:
    """A value of JSON as a number.

    Args:
        value: Anything.

    Returns:
        The number; None for what is none, is not finite, or is too large for floating point.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # whole numbers have no bound in JSON
        return None
    return number if math.isfinite(number) else None
