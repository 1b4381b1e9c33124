"""The ground that the subject of an image stands on: found at its border, and exchanged for white.

Legend: H W rows and columns.
"""

from __future__ import annotations

import numpy as np

DIFFERS = 24  # of 255, in any channel: what is no longer the ground
PLAIN = 0.9  # share of the border that has the ground's colour


def on_white(frame_HWC: np.ndarray) -> np.ndarray | None:
    """An image with white around its subject.

    What is connected to the border by its colour is ground; at the subject's edge the two are mixed, and unmixed here.

    Args:
        frame_HWC: uint8 RGB.

    Returns:
        The image, itself where its border is white; None where the border has not one colour.
    """
    frame = frame_HWC.astype(np.float32)
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    ground = np.median(border, axis=0)
    if ground.min() >= 255 - DIFFERS:
        return frame_HWC
    if (np.abs(border - ground).max(-1) <= DIFFERS).mean() < PLAIN:
        return None
    differs = np.abs(frame - ground).max(-1)
    alike = differs <= 2 * DIFFERS
    reached = np.zeros_like(alike)
    reached[[0, -1]], reached[:, [0, -1]] = alike[[0, -1]], alike[:, [0, -1]]
    count = 0
    while count != (count := int(reached.sum())):
        wider = reached.copy()
        wider[1:] |= reached[:-1]
        wider[:-1] |= reached[1:]
        wider[:, 1:] |= reached[:, :-1]
        wider[:, :-1] |= reached[:, 1:]
        reached = wider & alike
    alpha = np.where(reached, np.clip(differs / DIFFERS - 0.5, 0, 1), 1)[..., None]
    found: np.ndarray = np.clip(frame + (1 - alpha) * (255 - ground), 0, 255).round().astype(np.uint8)
    return found
