"""Where tiles begin along an axis, for the sampler and for plans. Imports no torch."""

from __future__ import annotations


def starts(size: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Where tiles begin along an axis, as evenly as whole places allow.

    Args:
        size: Places of the axis.
        tile: Places of a tile, at most ``size``.
        overlap: Places that neighbours share at least; less than ``tile``.

    Returns:
        The starts, from 0 to ``size - tile``.
    """
    last = size - tile
    count = 1 + -(-last // (tile - overlap))
    return tuple(round(last * number / (count - 1)) for number in range(count)) if count > 1 else (0,)
