"""Near-duplicates: scenes whose perceptual hashes differ in few bits, found by banding, never by comparing all pairs.

A scene has one hash of 64 bits for each of five frames spread evenly. Two scenes are near-duplicates if, over the
hashes that both have, no more than ``bits`` of 64 differ on average, and one lasts no more than 1.25 times as long as
the other. Candidates share a band: one byte of a hash up to 50,000 scenes, two bytes beyond. With bytes, no pair that
differs in fewer bits than there are bands (40 in all five hashes) can be missed; with two bytes, 20.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kandinsky.errors import RequestError

FRAMES = 5
BITS = 6.0
NO_HASH = 0  # of a frame without content: a real hash of 0 has no bit above its median, which cannot be
_LONGER = 1.25
_MANY = 50_000
_ONES = np.array([number.bit_count() for number in range(256)], np.int64)


@dataclass(frozen=True, slots=True)
class Hashed:
    """A scene, for comparison.

    Attributes:
        id: Of the scene.
        hashes: Of its frames; ``NO_HASH`` for one without content.
        seconds: How long it lasts.
        pixels: Of one frame.
    """

    id: str
    hashes: tuple[int, ...]
    seconds: float
    pixels: int


def duplicates(scenes: Sequence[Hashed], bits: float = BITS) -> dict[str, str]:
    """Which scenes repeat another.

    Of scenes that repeat each other, the one with the most pixels is kept, then the longest, then the first by name.

    Args:
        scenes: With ``FRAMES`` hashes each.
        bits: Largest mean distance.

    Returns:
        The id of the scene that is kept, for each that is not.

    Raises:
        RequestError: ``bits`` is not from 0 to 32.
    """
    if not 0 <= bits <= 32:
        raise RequestError(f"`duplicate_bits` must be from 0 to 32, not `{bits}`")
    order = sorted(
        (one for one in scenes if sum(h != NO_HASH for h in one.hashes) * 2 > FRAMES),
        key=lambda one: (-one.pixels, -one.seconds, one.id),
    )
    if not order:
        return {}
    hashes = np.array([one.hashes for one in order], np.uint64)
    seconds = np.array([one.seconds for one in order])
    width = 8 if len(order) <= _MANY else 16
    shelves: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    found: dict[str, str] = {}
    for number, scene in enumerate(order):
        bands = [
            (place, shift, int(value) >> shift & ((1 << width) - 1))
            for place, value in enumerate(scene.hashes)
            if value != NO_HASH
            for shift in range(0, 64, width)
        ]
        candidates = np.unique(np.fromiter((one for band in bands for one in shelves[band]), int))
        if candidates.size:
            candidates = candidates[_alike(seconds[candidates], scene.seconds)]
        if candidates.size:
            apart = distances(hashes[candidates], hashes[number])
            if (best := int(apart.argmin())) >= 0 and apart[best] <= bits:
                found[scene.id] = order[candidates[best]].id
                continue
        for band in bands:  # scenes that are kept alone are compared with
            shelves[band].append(number)
    return found


def distances(many: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Mean number of bits in which hashes differ, over frames that have a hash on both sides.

    Args:
        many: [N, FRAMES], uint64.
        one: [FRAMES], uint64.

    Returns:
        [N]; 64 where no frame can be compared.
    """
    both = (many != NO_HASH) & (one != NO_HASH)
    apart = np.ascontiguousarray(many ^ one).view(np.uint8).reshape(*many.shape, 8)
    bits = _ONES[apart].sum(2) * both
    count = both.sum(1)
    found: np.ndarray = np.where(count > 0, bits.sum(1) / np.maximum(count, 1), 64.0)
    return found


def _alike(seconds: np.ndarray, other: float) -> np.ndarray:
    found: np.ndarray = (seconds <= _LONGER * other) & (other <= _LONGER * seconds)
    return found
