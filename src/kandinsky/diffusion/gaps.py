"""Gaps between the frames of a clip: the frames around them, and those to fill in.

Legend: B clips; F given frames, G = F − 1 gaps; M frames in a gap; H W C latent rows, columns, channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

MISSING = 3  # frames that every released network fills into a gap


def around(frames_BFHWC: Tensor) -> tuple[Tensor, Tensor]:
    """The frame before and the frame after each gap, both [B, G, H, W, C]."""
    return frames_BFHWC[:, :-1], frames_BFHWC[:, 1:]


def fill(frames_BFHWC: Tensor, predicted_BGHWX: Tensor) -> Tensor:
    """The given frames with the predicted ones between them, [B, F + G·M, H, W, C].

    Args:
        frames_BFHWC: The given frames.
        predicted_BGHWX: M frames of a gap, concatenated along the channel axis, X = M·C.

    Returns:
        All frames.
    """
    channels = frames_BFHWC.shape[-1]
    between = predicted_BGHWX.unflatten(-1, (-1, channels)).movedim(-2, 2)  # B G M H W C
    groups = torch.cat((frames_BFHWC[:, :-1, None], between), dim=2).flatten(1, 2)
    return torch.cat((groups, frames_BFHWC[:, -1:]), dim=1)
