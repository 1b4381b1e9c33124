"""The condition channels of the second Nano: where each place is on the canvas, and in its subject's own frame.

A place belongs to the subject that is nearest, counted in its sizes. For the place and that subject: waves of the
place in the subject's frame (turned and scaled with it), which of the subjects it is, its size, angle and opacity,
and how far they change within the latent frame. The waves make "which part of the concept is here" a thing to read,
not to work out.

A text encoder hands the subjects' numbers to the denoiser behind the channels of its pooled vector, so whatever
carries text embeddings carries them: ``packed`` has, for each of three subjects, whether it is there, and then, for
each of three subjects and four latent frames, ten numbers: x, y, size, angle and opacity at the middle of the frame,
and how far each changes within it. A shorter clip shows the first of the four frames.

Legend: B clips, T latent frames, H W rows and columns of the latent, S subjects, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.scenes import MOST_SUBJECTS, Scene, track

OCTAVES = 6
TEMPORAL = 8  # frames of a latent frame, but the first
LATENT_FRAMES = 4  # of the clip that a scene is meant for
CANVAS = 28  # rows, columns and frames, one channel each
SUBJECT = 4 * OCTAVES + MOST_SUBJECTS + 13
CHANNELS = CANVAS + SUBJECT
NUMBERS = 10
PACKED = MOST_SUBJECTS + MOST_SUBJECTS * LATENT_FRAMES * NUMBERS


def canvas_channels(frames: int, rows: int, columns: int) -> Tensor:
    """One channel for each row, column and latent frame: [T, H, W, CANVAS]."""
    out = torch.zeros(frames, rows, columns, CANVAS)
    for t in range(frames):
        out[t, :, :, rows + columns + t] = 1
    out[:, torch.arange(rows), :, torch.arange(rows)] = 1
    out[:, :, torch.arange(columns), rows + torch.arange(columns)] = 1
    return out


def latent_track(scene: Scene) -> Tensor:
    """The subjects' numbers at the middle of each latent frame, then their change within it: [S, 4, NUMBERS]."""
    path = track(scene, 1 + TEMPORAL * (LATENT_FRAMES - 1))
    middle, change = [path[:, 0]], [np.zeros_like(path[:, 0])]
    for k in range(1, LATENT_FRAMES):
        first, last = path[:, 1 + TEMPORAL * (k - 1)], path[:, TEMPORAL * k]
        middle.append((path[:, TEMPORAL * k - 4] + path[:, TEMPORAL * k - 3]) / 2)
        change.append(last - first)
    return torch.from_numpy(np.concatenate([np.stack(middle, axis=1), np.stack(change, axis=1)], axis=-1)).float()


def packed(scenes: Sequence[Scene | None]) -> Tensor:
    """The numbers of a batch as they travel, [B, PACKED]; zeros where nothing is known of the subjects' places."""
    out = torch.zeros(len(scenes), PACKED)
    for row, scene in zip(out, scenes, strict=True):
        if scene is not None:
            numbers = latent_track(scene)
            row[: len(numbers)] = 1
            row[MOST_SUBJECTS : MOST_SUBJECTS + numbers.numel()] = numbers.flatten()
    return out


def subject_channels(numbers_STN: Tensor, rows: int, columns: int) -> Tensor:
    """What each place is to its subject: [T, H, W, SUBJECT]; see ``latent_track``."""
    middle, change = numbers_STN.chunk(2, dim=-1)
    down, across = ((torch.arange(n, device=middle.device) + 0.5) / n for n in (rows, columns))
    y, x = torch.meshgrid(down, across, indexing="ij")
    at = torch.stack([x, y], dim=-1)  # [H, W, 2]
    centre, size, angle = middle[..., None, None, :2], middle[..., 2], middle[..., 3]
    apart = (at - centre) / size[..., None, None, None]  # [S, T, H, W, 2]
    cos, sin = (f(angle)[..., None, None] for f in (torch.cos, torch.sin))
    own = torch.stack([cos * apart[..., 0] + sin * apart[..., 1], cos * apart[..., 1] - sin * apart[..., 0]], dim=-1)
    nearest = own.square().sum(-1).argmin(0)  # [T, H, W]
    own = own.gather(0, nearest[None, ..., None].expand(1, *nearest.shape, 2))[0]
    waves = own[..., None] * (math.pi * 2.0 ** torch.arange(OCTAVES, device=own.device))
    told = torch.stack(
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
    frame = torch.arange(numbers_STN.shape[1], device=own.device)[:, None, None]
    told = told[nearest, frame]  # [T, H, W, 10]
    which = F.one_hot(nearest, MOST_SUBJECTS).float()
    inside = (own.abs().amax(-1, keepdim=True) < 0.5).float()
    return torch.cat([waves.sin().flatten(-2), waves.cos().flatten(-2), which, told, inside, own.clamp(-1, 1)], -1)


def condition_channels(packed_BG: Tensor, *, frames: int, rows: int, columns: int, channels: int) -> Tensor:
    """Condition channels of a batch, with an empty mask: [B, T, H, W, channels + 1], float32.

    Args:
        packed_BG: See ``packed``; the channels of clips in which no subject is there are zero but for the canvas's.
        frames: At most four.
    """
    numbers = packed_BG[:, MOST_SUBJECTS:].float().unflatten(1, (MOST_SUBJECTS, LATENT_FRAMES, NUMBERS))[:, :, :frames]
    out = torch.zeros(len(packed_BG), frames, rows, columns, channels + 1, device=packed_BG.device)
    out[..., :CANVAS] = canvas_channels(frames, rows, columns).to(out.device)
    for row, one, there in zip(out, numbers, packed_BG[:, :MOST_SUBJECTS].sum(1).long().tolist(), strict=True):
        if there:
            row[..., CANVAS:CHANNELS] = subject_channels(one[:there], rows, columns)
    return out
