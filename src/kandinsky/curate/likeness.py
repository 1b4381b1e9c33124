"""Arithmetic on frames in brightness: likeness, edges, hashes. No weights are needed.

Legend: T H W frames, rows, columns; brightness from 0 to 1.
"""

from __future__ import annotations

import numpy as np

_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
_WINDOW = 7  # pixels of the side of the window of structural similarity
_SCALES = 3
HASH_BITS = 64
_FLAT = 2.0 / 255  # standard deviation below which a frame has no hash


def luma(frames_THWC: np.ndarray) -> np.ndarray:
    """Brightness of RGB frames, uint8 to float32 from 0 to 1."""
    found: np.ndarray = frames_THWC @ _LUMA / np.float32(255)
    return found


def box(image_HW: np.ndarray, size: int) -> np.ndarray:
    """Means of all whole square windows."""
    sums = np.pad(image_HW, ((1, 0), (1, 0))).astype(np.float64).cumsum(0).cumsum(1)
    totals = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    found: np.ndarray = totals / size**2
    return found


def structural_similarity(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    """Multi-scale SSIM of two frames: the product over scales of contrast and structure, with brightness at the last.

    At each of up to three scales, halved from one to the next, windows of 7x7 are compared with equal weights.

    Returns:
        From 0 to 1, which is for equal frames.
    """
    c1, c2 = 0.01**2, 0.03**2
    found, scales = 1.0, 1
    while scales < _SCALES and min(one_HW.shape) >> scales >= _WINDOW:
        scales += 1
    for scale in range(scales):
        size = min(_WINDOW, *one_HW.shape)
        a, b = box(one_HW, size), box(other_HW, size)
        aa, bb = box(one_HW * one_HW, size) - a * a, box(other_HW * other_HW, size) - b * b
        ab = box(one_HW * other_HW, size) - a * b
        structure = (2 * ab + c2) / (aa + bb + c2)
        if scale == scales - 1:
            structure = structure * (2 * a * b + c1) / (a * a + b * b + c1)
        found *= max(0.0, float(structure.mean())) ** (1 / scales)
        one_HW, other_HW = halved(one_HW), halved(other_HW)
    return min(1.0, found)


def halved(image_HW: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels."""
    H, W = (n // 2 for n in image_HW.shape)
    found: np.ndarray = image_HW[: 2 * H, : 2 * W].reshape(H, 2, W, 2).mean((1, 3))
    return found


def laplacian_variance(image_HW: np.ndarray) -> float:
    """Variance of the Laplacian, in squared levels of 0 to 255: low where nothing is sharp."""
    middle = image_HW[1:-1, 1:-1]
    sums = image_HW[:-2, 1:-1] + image_HW[2:, 1:-1] + image_HW[1:-1, :-2] + image_HW[1:-1, 2:]
    return float((255 * (sums - 4 * middle)).var())


def edges(image_HW: np.ndarray) -> np.ndarray:
    """Size of the gradient, by central differences: [H, W]."""
    wide = np.pad(image_HW, 1, mode="edge")
    found: np.ndarray = np.hypot(wide[2:, 1:-1] - wide[:-2, 1:-1], wide[1:-1, 2:] - wide[1:-1, :-2])
    return found


def spread_out(mask_HW: np.ndarray, reach: int) -> np.ndarray:
    """A mask with all pixels that are so near to it, along rows and columns."""
    for axis in (0, 1):
        wide = mask_HW.copy()
        for step in range(1, reach + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            wide[tuple(behind)] |= mask_HW[tuple(ahead)]
            wide[tuple(ahead)] |= mask_HW[tuple(behind)]
        mask_HW = wide
    return mask_HW


def perceptual_hash(image_HW: np.ndarray) -> int | None:
    """64 bits: which of the 8x8 lowest frequencies of a picture of 32x32 are above their median.

    Returns:
        None for a picture without content, whose bits would be chance.
    """
    if float(image_HW.std()) < _FLAT:
        return None
    rows, columns = _averaging(image_HW.shape[0], 32), _averaging(image_HW.shape[1], 32)
    small = rows @ image_HW @ columns.T
    low = (_COSINES @ small @ _COSINES.T).ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _averaging(count: int, parts: int) -> np.ndarray:
    """A matrix that averages so many pixels into so many parts, each weighed by how much of it lies in the part."""
    edges_ = np.linspace(0, count, parts + 1)
    low, high = edges_[:-1, None], edges_[1:, None]
    at = np.arange(count)[None]
    cover = np.clip(np.minimum(high, at + 1) - np.maximum(low, at), 0, None)
    found: np.ndarray = cover / cover.sum(1, keepdims=True)
    return found


_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)
