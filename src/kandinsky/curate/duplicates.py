"""Near-duplicates: scenes whose perceptual hashes differ in few bits, found by banding, never by comparing all pairs.

A scene has one hash of 64 bits for each of five frames spread evenly. Two scenes are near-duplicates if, over the
hashes that both have, no more than ``bits`` of 64 differ on average, and one lasts no more than 1.25 times as long as
the other. Candidates share a band: one byte of a hash up to 50,000 scenes, two bytes beyond. With bytes, no pair that
differs in fewer bits than there are bands (40 in all five hashes) can be missed; with two bytes, 20.
"""

from __future__ import annotations

from array import array

import numpy as np

from kandinsky.errors import RequestError

FRAMES = 5
BITS = 6.0
NO_HASH = 0  # of a frame without content: a real hash of 0 has no bit above its median, which cannot be
_LONGER = 1.25
_MANY = 50_000
_ONES = np.array([number.bit_count() for number in range(256)], np.int64)


def duplicates(hashes: np.ndarray, seconds: np.ndarray, pixels: np.ndarray, bits: float = BITS) -> np.ndarray:
    """Which scenes repeat another.

    Of scenes that repeat each other, the one with the most pixels is kept, then the longest, then the first.

    Args:
        hashes: Of the frames of each scene, [N, FRAMES] uint64; ``NO_HASH`` for one without content.
        seconds: How long each lasts, [N].
        pixels: Of one frame, [N].
        bits: Largest mean distance.

    Returns:
        The place of the scene that is kept, for each that is not; -1 for the others. int64, [N].

    Raises:
        RequestError: ``bits`` is not from 0 to 32.
    """
    if not 0 <= bits <= 32:
        raise RequestError(f"`duplicate_bits` must be from 0 to 32, not `{bits}`")
    found = np.full(len(hashes), -1, np.int64)
    usable = np.flatnonzero((hashes != NO_HASH).sum(1) * 2 > FRAMES)
    if not usable.size:
        return found
    order = usable[np.lexsort((usable, -seconds[usable], -pixels[usable]))]
    width = 8 if len(order) <= _MANY else 16
    mask = (1 << width) - 1
    shelves: dict[int, array[int]] = {}  # four bytes for each band of a scene that is kept
    for place in order.tolist():
        mine = hashes[place]
        bands = [
            (at << 8 | shift) << width | int(value) >> shift & mask
            for at, value in enumerate(mine.tolist())
            if value != NO_HASH
            for shift in range(0, 64, width)
        ]
        near = [np.frombuffer(shelves[band], np.uint32) for band in bands if band in shelves]
        candidates = np.unique(np.concatenate(near)) if near else np.empty(0, np.uint32)
        del near  # a shelf cannot grow while it is looked at
        if candidates.size:
            candidates = candidates[_alike(seconds[candidates], float(seconds[place]))]
        if candidates.size:
            apart = distances(hashes[candidates], mine)
            # of those that are as near, the one that stands first in the order
            nearest = candidates[apart == apart.min()]
            if apart.min() <= bits:
                found[place] = min(nearest.tolist(), key=lambda one: (-pixels[one], -seconds[one], one))
                continue
        for band in bands:  # scenes that are kept alone are compared with
            shelves.setdefault(band, array("I")).append(place)
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
