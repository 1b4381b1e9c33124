"""The condition channels of the second Nano: where each place is on the canvas, and in its subject's own frame.

A place belongs to the subject that is nearest, counted in its sizes. For the place and that subject: waves of the
place in the subject's frame (turned and scaled with it), which of the subjects it is, its size, angle and opacity,
and how far they change within the latent frame. The waves make "which part of the concept is here" a thing to read,
not to work out.

Legend: B clips, T latent frames, H W rows and columns of the latent, S subjects, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kandinsky.lab.nano2.scenes import MOST_SUBJECTS, Scene, track

OCTAVES = 6
TEMPORAL = 8  # frames of a latent frame, but the first
CANVAS = 28  # rows, columns and frames, one channel each
SUBJECT = 4 * OCTAVES + MOST_SUBJECTS + 13
CHANNELS = CANVAS + SUBJECT


def canvas_channels(frames: int, rows: int, columns: int) -> Tensor:
    """One channel for each row, column and latent frame: [T, H, W, CANVAS]."""
    out = torch.zeros(frames, rows, columns, CANVAS)
    for t in range(frames):
        out[t, :, :, rows + columns + t] = 1
    out[:, torch.arange(rows), :, torch.arange(rows)] = 1
    out[:, :, torch.arange(columns), rows + torch.arange(columns)] = 1
    return out


def latent_track(scene: Scene, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The subjects' numbers at the middle of each latent frame, and their change within it: two of [S, T, 5]."""
    path = track(scene, 1 + TEMPORAL * 3)
    middle, change = [path[:, 0]], [np.zeros_like(path[:, 0])]
    for k in range(1, frames):
        first, last = path[:, 1 + TEMPORAL * (k - 1)], path[:, TEMPORAL * k]
        middle.append((path[:, TEMPORAL * k - 4] + path[:, TEMPORAL * k - 3]) / 2)
        change.append(last - first)
    return np.stack(middle, axis=1), np.stack(change, axis=1)


def subject_channels(scene: Scene, frames: int, rows: int, columns: int) -> Tensor:
    """What each place is to its subject: [T, H, W, SUBJECT]."""
    middle, change = (torch.from_numpy(x).float() for x in latent_track(scene, frames))
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    at = torch.stack([x, y], dim=-1)  # [H, W, 2]
    S = len(middle)
    centre, size, angle = middle[..., None, None, :2], middle[..., 2], middle[..., 3]
    apart = (at - centre) / size[..., None, None, None]  # [S, T, H, W, 2]
    cos, sin = (f(angle)[..., None, None] for f in (torch.cos, torch.sin))
    own = torch.stack([cos * apart[..., 0] + sin * apart[..., 1], cos * apart[..., 1] - sin * apart[..., 0]], dim=-1)
    nearest = own.square().sum(-1).argmin(0)  # [T, H, W]
    own = own.gather(0, nearest[None, ..., None].expand(1, *nearest.shape, 2))[0]
    waves = own[..., None] * (math.pi * 2.0 ** torch.arange(OCTAVES))
    numbers = torch.stack(
        [
            torch.ones_like(size),
            4 * (size - 0.6),
            angle.cos(),
            angle.sin(),
            middle[..., 4],
            4 * change[..., 0] / size,
            4 * change[..., 1] / size,
            4 * change[..., 2] / size,
            change[..., 3],
            change[..., 4],
        ],
        dim=-1,
    )
    frame = torch.arange(frames)[:, None, None]
    numbers = numbers[nearest, frame]  # [T, H, W, 10]
    which = torch.nn.functional.one_hot(nearest, MOST_SUBJECTS).float()
    inside = (own.abs().amax(-1, keepdim=True) < 0.5).float()
    assert S <= MOST_SUBJECTS
    return torch.cat([waves.sin().flatten(-2), waves.cos().flatten(-2), which, numbers, inside, own.clamp(-1, 1)], -1)


def condition_channels(
    scenes: Sequence[Scene | None], *, frames: int, rows: int, columns: int, channels: int
) -> Tensor:
    """Condition channels of a batch, with an empty mask: [B, T, H, W, channels + 1].

    Args:
        scenes: None where nothing is known of the subjects' places: their channels are zero then, the canvas's not.
    """
    out = torch.zeros(len(scenes), frames, rows, columns, channels + 1)
    out[..., :CANVAS] = canvas_channels(frames, rows, columns)
    for row, scene in zip(out, scenes, strict=True):
        if scene is not None:
            row[..., CANVAS:CHANNELS] = subject_channels(scene, frames, rows, columns)
    return out
