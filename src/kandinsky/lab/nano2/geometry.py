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
GRID = 6  # of a portrait's tokens
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


def own_frame(scene: Scene, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where each place is in the frame of its subject, and which that is.

    Returns:
        Coordinates from the subject's middle in its sizes, [T, H, W, 2], and the number of the subject, [T, H, W].
    """
    middle = torch.from_numpy(latent_track(scene, frames)[0]).float()
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    at = torch.stack([x, y], dim=-1)  # [H, W, 2]
    centre, size, angle = middle[..., None, None, :2], middle[..., 2], middle[..., 3]
    apart = (at - centre) / size[..., None, None, None]  # [S, T, H, W, 2]
    cos, sin = (f(angle)[..., None, None] for f in (torch.cos, torch.sin))
    own = torch.stack([cos * apart[..., 0] + sin * apart[..., 1], cos * apart[..., 1] - sin * apart[..., 0]], dim=-1)
    nearest = own.square().sum(-1).argmin(0)  # [T, H, W]
    return own.gather(0, nearest[None, ..., None].expand(1, *nearest.shape, 2))[0], nearest


def textures(tokens_BLC: Tensor, scenes: Sequence[Scene | None], *, frames: int, rows: int, columns: int) -> Tensor:
    """What the portraits of the subjects hold for each place: [B, T, H, W, C / 4].

    The grid of a portrait's tokens, each cut into 2 x 2 places of a quarter of its channels, is looked up between its
    places at each place's coordinates in its subject's frame, as the texture of a surface is (deferred neural
    rendering, Thies et al. 2019, arXiv 1904.12356). Zero beyond a subject's frame, and where no place is known.

    Args:
        tokens_BLC: Text states, the tokens of the subjects first.
    """
    B, C = len(scenes), tokens_BLC.shape[-1]
    most = max((len(scene.subjects) for scene in scenes if scene is not None), default=1)
    grid = torch.full((B, frames, rows, columns, 3), 2.0)  # outside
    for row, scene in zip(grid, scenes, strict=True):
        if scene is not None:
            own, nearest = own_frame(scene, frames, rows, columns)
            row[..., :2] = 2 * own
            row[..., 2] = (2 * nearest + 1) / most - 1
    side = GRID
    planes = tokens_BLC[:, : most * side * side].float().view(B, most, side, side, 2, 2, C // 4)
    planes = planes.permute(0, 6, 1, 2, 4, 3, 5).reshape(B, C // 4, most, 2 * side, 2 * side)
    with torch.autocast(planes.device.type, enabled=False):
        seen = torch.nn.functional.grid_sample(planes, grid.to(planes.device), align_corners=False)
    return seen.permute(0, 2, 3, 4, 1)


def subject_channels(scene: Scene, frames: int, rows: int, columns: int) -> Tensor:
    """What each place is to its subject: [T, H, W, SUBJECT]."""
    middle, change = (torch.from_numpy(x).float() for x in latent_track(scene, frames))
    S = len(middle)
    size, angle = middle[..., 2], middle[..., 3]
    own, nearest = own_frame(scene, frames, rows, columns)
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
