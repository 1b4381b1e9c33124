"""The ground that the subject of an image stands on: found at its border, and exchanged for white.

A ground is one colour, or one that changes slowly: lighter at the top, darker in the corners, as behind a toy on a
sheet of paper. What is connected to the border by its colour is ground; a hole in the subject is not.

Legend: H W rows and columns, P pixels of the border.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIFFERS = 24  # of 255, in any channel: what is no longer the ground
PLAIN = 0.75  # share of the border that has the ground's colour: a subject may reach it
BAND = 48  # the border is so small a part of the side


@dataclass(frozen=True, slots=True)
class Ground:
    """What an image stands on.

    Attributes:
        colour_HWC: Its colour, behind the subject too, float32 in 0 to 255.
        alpha_HW: How much of the subject each pixel has, float32 in [0, 1].
    """

    colour_HWC: np.ndarray
    alpha_HW: np.ndarray


def ground_of(frame_HWC: np.ndarray) -> Ground | None:
    """Find the ground of an image.

    Args:
        frame_HWC: RGB in 0 to 255, uint8 or float.

    Returns:
        It; None where the border has no such colour.
    """
    frame = frame_HWC.astype(np.float32)
    colour = _fitted(frame)
    if colour is None:
        return None
    differs = np.abs(frame - colour).max(-1)
    reached = _reached(differs <= 2 * DIFFERS)
    # at the subject's edge the two are mixed: as far as the pixel differs, of what those around it do
    most = _widest(_widest(differs))
    mixed = np.clip((differs - DIFFERS / 2) / np.maximum(most - DIFFERS / 2, DIFFERS / 2), 0, 1)
    alpha = np.where(_widest(reached), mixed, np.float32(1))
    return Ground(colour, alpha)


def on_white(frame_HWC: np.ndarray) -> np.ndarray | None:
    """An image with white around its subject.

    Args:
        frame_HWC: uint8 RGB.

    Returns:
        The image, itself where its border is white; None where it has no ground.
    """
    ground = ground_of(frame_HWC)
    if ground is None:
        return None
    if _border(ground.colour_HWC).min() >= 255 - DIFFERS:
        return frame_HWC
    white = frame_HWC + (1 - ground.alpha_HW[..., None]) * (255 - ground.colour_HWC)
    found: np.ndarray = np.clip(white, 0, 255).round().astype(np.uint8)
    return found


def _border(image_HWC: np.ndarray) -> np.ndarray:
    """Its pixels, [P, C]."""
    band = max(1, min(image_HWC.shape[:2]) // BAND)
    sides = (image_HWC[:band], image_HWC[-band:], image_HWC[:, :band], image_HWC[:, -band:])
    return np.concatenate([side.reshape(-1, image_HWC.shape[-1]) for side in sides])


def _fitted(frame_HWC: np.ndarray) -> np.ndarray | None:
    """The colour of the border, continued over the image by a polynomial of the second degree in the place."""
    down, across = (np.linspace(-1, 1, n, dtype=np.float32) for n in frame_HWC.shape[:2])
    y, x = np.meshgrid(down, across, indexing="ij")
    terms_HWN = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    border, terms = _border(frame_HWC), _border(terms_HWN)
    # what is far from most of it is the subject, that reaches the border
    alike = np.abs(border - np.median(border, axis=0)).max(-1) <= 3 * DIFFERS
    for _ in range(4):
        if alike.mean() < PLAIN:
            return None
        fit = np.linalg.lstsq(terms[alike], border[alike], rcond=None)[0]
        alike = np.abs(border - terms @ fit).max(-1) <= DIFFERS
    found: np.ndarray = np.clip(terms_HWN @ fit, 0, 255).astype(np.float32)
    return found if alike.mean() >= PLAIN else None


def _reached(alike_HW: np.ndarray) -> np.ndarray:
    """What is connected to the border by pixels that are alike."""
    reached = np.zeros_like(alike_HW)
    reached[[0, -1]], reached[:, [0, -1]] = alike_HW[[0, -1]], alike_HW[:, [0, -1]]
    count = 0
    while count != (count := int(reached.sum())):
        wider = reached.copy()
        wider[1:] |= reached[:-1]
        wider[:-1] |= reached[1:]
        wider[:, 1:] |= reached[:, :-1]
        wider[:, :-1] |= reached[:, 1:]
        reached = wider & alike_HW
    return reached


def _widest(values_HW: np.ndarray) -> np.ndarray:
    """The largest of each pixel and the eight around it."""
    down = values_HW.copy()
    down[1:] = np.maximum(down[1:], values_HW[:-1])
    down[:-1] = np.maximum(down[:-1], values_HW[1:])
    out = down.copy()
    out[:, 1:] = np.maximum(out[:, 1:], down[:, :-1])
    out[:, :-1] = np.maximum(out[:, :-1], down[:, 1:])
    return out
