"""Image to video: matches the first frames to the look of the rest.

Legend: B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORMALIZED_FRAMES = 4
REFERENCE_FRAMES = 5
# How far a frame's mean and standard deviation may move: (down, up).
MEAN_ROOM = (0.05, 0.1)
STD_ROOM = (0.1, 0.25)


def normalize_first_frame(
    latents_BTHWC: Tensor, *, reference_frames: int = REFERENCE_FRAMES, clamp: bool = False
) -> Tensor:
    """Bring mean and standard deviation of the first four latent frames close to those of the frames that follow.

    Each clip and each of its first frames is treated separately. Clips of fewer than five latent frames have no
    reference and are returned unchanged (the official code returns NaN there).

    Source: kandinskylab/kandinsky-5, kandinsky/generation_utils.py, normalize_first_frame.

    Args:
        latents_BTHWC: The latents.
        reference_frames: How many frames from the fifth on are used as reference.
        clamp: Keep values within their range.

    Returns:
        The changed latents.
    """
    frames = latents_BTHWC.shape[1]
    if frames <= NORMALIZED_FRAMES:
        return latents_BTHWC
    end = NORMALIZED_FRAMES + min(reference_frames, frames - 1)
    reference = latents_BTHWC[:, NORMALIZED_FRAMES:end]
    first = latents_BTHWC[:, :NORMALIZED_FRAMES]
    whole, plane = (1, 2, 3, 4), (2, 3, 4)
    mean, std = first.mean(plane, keepdim=True), first.std(plane, keepdim=True)
    new_mean = reference.mean(whole, keepdim=True).clamp(mean - MEAN_ROOM[0], mean + MEAN_ROOM[1])
    new_std = reference.std(whole, keepdim=True).clamp(std - STD_ROOM[0], std + STD_ROOM[1])
    moved = (first - mean) / std * new_std + new_mean
    if clamp:
        moved = moved.clamp(reference.amin(whole, keepdim=True), reference.amax(whole, keepdim=True))
    return torch.cat((moved, latents_BTHWC[:, NORMALIZED_FRAMES:]), dim=1)
