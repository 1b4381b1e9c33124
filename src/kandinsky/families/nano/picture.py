"""What a given picture says of the roles that a prompt leaves open: its background, and the subject's place and size.

Nano's captions leave out what is usual (a white background, the middle, the usual size), so a prompt that says nothing
of them asks for that; beside a picture it is the picture that says it. Of 80 concepts, as they are composed for
training: the subject fills 0.84 to 0.9 of the frame's side at the usual size, 0.47 to 0.49 if small, all of it if
large; its middle lies within 0.02 of the frame's across, and 0.12 to 0.21 beside it where a place was named.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIFFERS = 24  # of 255, in any channel: what is the subject and not the background
SMALL, LARGE = 0.65, 0.97  # of the frame's side
ASIDE = 0.1  # of the frame's side, from its middle
_LEFT, _RIGHT, _TOP, _BOTTOM = 1, 2, 3, 4  # the slots of a position, in the order of lab/nano/captions.py; 0 is none


def seen(picture_HWC: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """Numbers of the slots that a picture speaks for, by role.

    Args:
        picture_HWC: RGB, uint8.
        colours: RGB of each background.

    Returns:
        `background` if there are colours; `position` and `size` if something stands before it.
    """
    edge = np.concatenate([picture_HWC[0], picture_HWC[-1], picture_HWC[:, 0], picture_HWC[:, -1]])
    around = np.median(edge, axis=0)
    found = {}
    if colours:
        found["background"] = int(np.square(np.asarray(colours, float) - around).sum(axis=1).argmin())
    rows, columns = np.nonzero(np.abs(picture_HWC.astype(float) - around).max(axis=-1) > DIFFERS)
    if not len(rows):
        return found
    height, width = picture_HWC.shape[:2]
    left, right = columns.min() / width, (columns.max() + 1) / width
    top, bottom = rows.min() / height, (rows.max() + 1) / height
    extent, across, down = max(right - left, bottom - top), (left + right - 1) / 2, (top + bottom - 1) / 2
    found["size"] = 1 if extent < SMALL else 2 if extent > LARGE else 0
    found["position"] = 0
    if max(abs(across), abs(down)) > ASIDE:
        is_across = abs(across) >= abs(down)
        found["position"] = (_LEFT if across < 0 else _RIGHT) if is_across else (_TOP if down < 0 else _BOTTOM)
    return found
