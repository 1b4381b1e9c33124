"""Frames of an input video as a multimodal encoder expects them: which ones, and in what form.

Source: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/utils.py, load_video; the frame transform of the
cogvlm2-video models.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError

# CLIP's image statistics per channel
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SIZE = 224


def spread(frames: int, count: int) -> list[int]:
    """Evenly spaced frame numbers from 0 to the last, truncated to integers; some repeat if there are fewer frames.

    Args:
        frames: Number of frames.
        count: How many to choose.

    Returns:
        ``count`` frame numbers.

    Raises:
        RequestError: There are no frames.
    """
    if frames < 1:
        raise RequestError("a video needs at least one frame")
    return torch.linspace(0, frames - 1, count).long().tolist()


def whole_seconds(frames: int, fps: float, longest: int) -> tuple[int, int]:
    """The official trimming to whole seconds.

    Args:
        frames: Number of frames.
        fps: Frames per second.
        longest: Most seconds to keep.

    Returns:
        Seconds, truncated to an integer and to ``longest``, and the number of frames they have.

    Raises:
        RequestError: The video is shorter than one second, where the official code fails.
    """
    seconds = min(int(frames / fps), longest)
    if seconds < 1:
        raise RequestError(f"a video of {frames / fps:.2f} s is too short: the official rule wants 1 s or more")
    return seconds, int(seconds * fps)


def scaled_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width at which the short side is ``size``; the long one is truncated to an integer."""
    short = min(height, width)
    return size if short == height else height * size // short, size if short == width else width * size // short


def for_encoder(
    frames_THWC: Tensor,
    *,
    size: int = IMAGE_SIZE,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Tensor:
    """Convert uint8 frames [T, H, W, 3] to normalised squares [T, 3, size, size], float32.

    The short side becomes ``size`` (bilinear, without antialiasing), then the centre is cropped. Quirk: halves of a
    pixel round to even, as with Python's ``round``.
    """
    x = frames_THWC.permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(mean)[:, None, None].to(x)) / torch.tensor(std)[:, None, None].to(x)
    sides = scaled_sides(x.shape[2], x.shape[3], size)
    x = F.interpolate(x, size=sides, mode="bilinear", align_corners=False)
    top, left = (round((side - size) / 2) for side in sides)
    return x[:, :, top : top + size, left : left + size]
