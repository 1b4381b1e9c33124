"""Measures of a clip's pixels that need no weights: distance from another clip, and what happens between frames.

Clips are uint8 [T, H, W, 3]. Legend: T frames; H W rows and columns.
"""

from __future__ import annotations

import math

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.model.values import Video

MOST = 255.0
EQUAL_DB = 99.0  # of clips without any difference
LUMA = np.array([0.299, 0.587, 0.114])


def psnr(clip_THWC: np.ndarray, other_THWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio of a whole clip, dB; 99 for equal clips.

    Raises:
        RequestError: The clips differ in shape, or are not uint8 clips.
    """
    clip, other = _alike(clip_THWC, other_THWC)
    error = float(np.mean(np.square(clip.astype(np.float32) - other.astype(np.float32)), dtype=np.float64))
    return EQUAL_DB if error == 0 else 10 * math.log10(MOST**2 / error)


def ssim(clip_THWC: np.ndarray, other_THWC: np.ndarray, *, window: int = 11, sigma: float = 1.5) -> float:
    """Mean structural similarity of the frames' luma under a Gaussian window (Wang et al. 2004, equation 13).

    Args:
        clip_THWC: A clip.
        other_THWC: Another one.
        window: Rows and columns of the window; windows that reach over the edge are left out.
        sigma: Of the window, in pixels.

    Returns:
        The similarity; 1 for equal clips.

    Raises:
        RequestError: The clips differ in shape, are not uint8 clips, or are smaller than the window.
    """
    clip, other = _alike(clip_THWC, other_THWC)
    if min(clip.shape[1:3]) < window:
        raise RequestError(
            f"clips of {clip.shape[2]}x{clip.shape[1]} are smaller than the window: use {window} or more"
        )
    at = np.arange(window) - (window - 1) / 2
    taps = np.exp(-(at**2) / (2 * sigma**2))
    taps /= taps.sum()

    def mean(x: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            length = x.shape[axis] - window + 1
            x = sum((tap * x.take(range(i, i + length), axis=axis) for i, tap in enumerate(taps)), start=np.zeros(()))
        return x

    a, b = (one.astype(np.float64) @ LUMA for one in (clip, other))
    ma, mb = mean(a), mean(b)
    saa, sbb, sab = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = (0.01 * MOST) ** 2, (0.03 * MOST) ** 2
    index = ((2 * ma * mb + c1) * (2 * sab + c2)) / ((ma * ma + mb * mb + c1) * (saa + sbb + c2))
    return float(index.mean())


def change(clip_THWC: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring frames, [T - 1], 0 to 255.

    Raises:
        RequestError: It is not a uint8 clip of two frames or more.
    """
    clip = _clip(clip_THWC, frames=2)
    return np.asarray(np.abs(np.diff(clip.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)))


def flicker(clip_THWC: np.ndarray) -> float:
    """Mean absolute second difference in time, 0 to 510: motion that goes on adds little to it, trembling much.

    Raises:
        RequestError: It is not a uint8 clip of three frames or more.
    """
    clip = _clip(clip_THWC, frames=3)
    return float(np.abs(np.diff(clip.astype(np.int16), n=2, axis=0)).mean())


def first_jump(clip_THWC: np.ndarray) -> float:
    """Change from frame 0 to 1 over the median of the later changes; about 1 where nothing jumps.

    A change counts as one level at least, or a clip at rest would divide by nothing.

    Raises:
        RequestError: It is not a uint8 clip of three frames or more.
    """
    changes = change(_clip(clip_THWC, frames=3))
    return float(max(changes[0], 1.0) / max(float(np.median(changes[1:])), 1.0))


def seam(clip_THWC: np.ndarray, at: int) -> float:
    """Change over the border between frames ``at - 1`` and ``at``, over the median of all other changes.

    A change counts as one level at least.

    Args:
        clip_THWC: A clip.
        at: First frame after the border.

    Returns:
        The ratio; about 1 where nobody sees the seam.

    Raises:
        RequestError: It is not a uint8 clip of three frames or more, or there is no such border.
    """
    changes = change(_clip(clip_THWC, frames=3))
    if not 1 <= at <= len(changes):
        raise RequestError(
            f"a clip of {len(changes) + 1} frames has no border before frame {at}: use 1 to {len(changes)}"
        )
    others = np.delete(changes, at - 1)
    return float(max(changes[at - 1], 1.0) / max(float(np.median(others)), 1.0))


def drift(clip_THWC: np.ndarray, *, share: float = 0.15, bins: int = 16) -> float:
    """How far the colours of the last part of a clip lie from those of the first: half the L1 distance of histograms.

    Args:
        clip_THWC: A clip.
        share: Length of either part, of the whole clip.
        bins: Of each channel's histogram.

    Returns:
        Mean over channels, 0 for the same colours to 1 for no colour in common.

    Raises:
        RequestError: It is not a uint8 clip of two frames or more.
    """
    clip = _clip(clip_THWC, frames=2)
    length = max(1, round(len(clip) * share))

    def histogram(part: np.ndarray, channel: int) -> np.ndarray:
        counts = np.bincount(part[..., channel].ravel() // (256 // bins), minlength=bins)
        return np.asarray(counts / counts.sum())

    first, last = clip[:length], clip[-length:]
    return float(np.mean([np.abs(histogram(first, c) - histogram(last, c)).sum() / 2 for c in range(clip.shape[-1])]))


def _clip(clip_THWC: np.ndarray, *, frames: int = 1) -> np.ndarray:
    clip = np.asarray(clip_THWC)
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
        raise RequestError(
            f"an array of shape {list(clip.shape)} and type {clip.dtype} is no clip: "
            "use uint8 [frames, rows, columns, 3]"
        )
    if len(clip) < frames or 0 in clip.shape:
        raise RequestError(
            f"a clip of {len(clip)} frames of {clip.shape[2]}x{clip.shape[1]}: use {frames} frames or more"
        )
    return clip


def _alike(clip_THWC: np.ndarray, other_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    clip, other = _clip(clip_THWC), _clip(other_THWC)
    if clip.shape != other.shape:
        raise RequestError(
            f"clips of shape {list(clip.shape)} and {list(other.shape)} cannot be compared: use equal ones"
        )
    return clip, other


def damaged(clip: Video, blocks: int = 24) -> Video:
    """A coarse copy of a clip for attention checks: large blocks of one colour, and every second frame stands still.

    Args:
        clip: The clip.
        blocks: Blocks along the longer side.
    """
    frames = np.asarray(clip.frames)
    T, H, W, _ = frames.shape
    size = max(2, max(H, W) // blocks)
    rows, columns = (np.minimum(np.arange(n) // size * size + size // 2, n - 1) for n in (H, W))
    still = frames[np.arange(T) // 2 * 2]
    return Video(np.ascontiguousarray(still[:, rows][:, :, columns]), fps=clip.fps, seed=0)
