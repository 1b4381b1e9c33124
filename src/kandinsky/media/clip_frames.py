"""Frames of a video as a multimodal encoder takes them: which ones, and in what form.

Source: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/utils.py, load_video; the frame transform of the
cogvlm2-video models.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError

# CLIP's image statistics, channel by channel
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SIZE = 224


def spread(frames: int, count: int) -> list[int]:
    """``count`` frame numbers, evenly spaced from the first frame to the last and rounded down; with fewer frames than
    that, some repeat. Raises: RequestError for no frames."""
    if frames < 1:
        raise RequestError("a video needs at least one frame")
    return torch.linspace(0, frames - 1, count).long().tolist()


def whole_seconds(frames: int, fps: float, longest: int) -> tuple[int, int]:
    """The official trimming: whole seconds, at most ``longest``, and the number of frames in them.

    Raises: RequestError below one second, where the official code fails.
    """
    seconds = min(int(frames / fps), longest)
    if seconds < 1:
        raise RequestError(f"a video of {frames / fps:.2f} s is too short: use 1 s or more")
    return seconds, int(seconds * fps)


def for_encoder(
    frames_THWC: Tensor,
    *,
    size: int = IMAGE_SIZE,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Tensor:
    """uint8 frames [T, H, W, 3] → normalised squares [T, 3, size, size] float32.

    The short side is scaled to ``size`` (bilinear, not antialiased; the long side is rounded down), then the centre is
    cropped. Quirk: half pixels round to even, as Python's ``round`` does.
    """
    x = frames_THWC.permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(mean)[:, None, None].to(x)) / torch.tensor(std)[:, None, None].to(x)
    H, W = x.shape[2:]
    short = min(H, W)
    sides = (size if short == H else H * size // short, size if short == W else W * size // short)
    x = F.interpolate(x, size=sides, mode="bilinear", align_corners=False)
    top, left = (round((side - size) / 2) for side in sides)
    return x[:, :, top : top + size, left : left + size]
