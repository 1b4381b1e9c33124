"""The condition channels of the second Nano: where each place is on the canvas, and in its subject's own frame.

A place belongs to the subject that is nearest, counted in its sizes. For the place and that subject: waves of the
place in the subject's frame (turned and scaled with it), which of the subjects it is, its size, angle and opacity,
and how far they change within the latent frame. The waves make "which part of the concept is here" a thing to read,
not to work out. Beside them stands what the subject's portrait holds for that part: ``textures``.

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
GRID = 6  # of a portrait's tokens, along each side
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


def own_frame(numbers_STN: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Where each place is in the frame of its subject, and which that is.

    Returns:
        Coordinates from the subject's middle in its sizes, [T, H, W, 2], and the number of the subject, [T, H, W].
    """
    down, across = ((torch.arange(n, device=numbers_STN.device) + 0.5) / n for n in (rows, columns))
    y, x = torch.meshgrid(down, across, indexing="ij")
    at = torch.stack([x, y], dim=-1)  # [H, W, 2]
    centre, size, angle = numbers_STN[..., None, None, :2], numbers_STN[..., 2], numbers_STN[..., 3]
    apart = (at - centre) / size[..., None, None, None]  # [S, T, H, W, 2]
    cos, sin = (f(angle)[..., None, None] for f in (torch.cos, torch.sin))
    own = torch.stack([cos * apart[..., 0] + sin * apart[..., 1], cos * apart[..., 1] - sin * apart[..., 0]], dim=-1)
    nearest = own.square().sum(-1).argmin(0)  # [T, H, W]
    return own.gather(0, nearest[None, ..., None].expand(1, *nearest.shape, 2))[0], nearest


def textures(tokens_BLC: Tensor, own_BTHW2: Tensor, nearest_BTHW: Tensor) -> Tensor:
    """What the portraits of the subjects hold for each place: [B, T, H, W, C / 4].

    The grid of a portrait's tokens, each cut into 2 x 2 places of a quarter of its channels, is looked up between its
    places at each place's coordinates in its subject's frame, as the texture of a surface is. Zero beyond a subject's
    frame. Source: deferred neural rendering, Thies et al. 2019, arXiv 1904.12356.

    Args:
        tokens_BLC: Text states, the tokens of three subjects first.
        own_BTHW2: See ``own_frame``; beyond ±0.5 for clips of which no place is known.
        nearest_BTHW: See ``own_frame``.
    """
    B, C = len(tokens_BLC), tokens_BLC.shape[-1]
    plane = (2 * nearest_BTHW[..., None].float() + 1) / MOST_SUBJECTS - 1
    grid = torch.cat([2 * own_BTHW2, plane], dim=-1)
    planes = tokens_BLC[:, : MOST_SUBJECTS * GRID**2].float().view(B, MOST_SUBJECTS, GRID, GRID, 2, 2, C // 4)
    planes = planes.permute(0, 6, 1, 2, 4, 3, 5).reshape(B, C // 4, MOST_SUBJECTS, 2 * GRID, 2 * GRID)
    with torch.autocast(planes.device.type, enabled=False):
        seen = F.grid_sample(planes, grid, align_corners=False)
    return seen.permute(0, 2, 3, 4, 1)


def subject_channels(numbers_STN: Tensor, own_THW2: Tensor, nearest_THW: Tensor) -> Tensor:
    """What each place is to its subject: [T, H, W, SUBJECT]; see ``latent_track`` and ``own_frame``."""
    middle, change = numbers_STN.chunk(2, dim=-1)
    size, angle, own = middle[..., 2], middle[..., 3], own_THW2
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
    told = told[nearest_THW, frame]  # [T, H, W, 10]
    which = F.one_hot(nearest_THW, MOST_SUBJECTS).float()
    inside = (own.abs().amax(-1, keepdim=True) < 0.5).float()
    return torch.cat([waves.sin().flatten(-2), waves.cos().flatten(-2), which, told, inside, own.clamp(-1, 1)], -1)


def condition_channels(
    packed_BG: Tensor, tokens_BLC: Tensor, *, frames: int, rows: int, columns: int, channels: int
) -> Tensor:
    """Condition channels of a batch, with an empty mask: [B, T, H, W, channels + 1], float32.

    Args:
        packed_BG: See ``packed``; the channels of clips in which no subject is there are zero but for the canvas's.
        tokens_BLC: Text states of the same prompts.
        frames: At most four.
        rows: Of the latent.
        columns: Of the latent.
        channels: Of the latent.
    """
    B, device = len(packed_BG), packed_BG.device
    numbers = packed_BG[:, MOST_SUBJECTS:].float().unflatten(1, (MOST_SUBJECTS, LATENT_FRAMES, NUMBERS))[:, :, :frames]
    told = torch.zeros(B, frames, rows, columns, CHANNELS, device=device)
    told[..., :CANVAS] = canvas_channels(frames, rows, columns).to(device)
    own = torch.full((B, frames, rows, columns, 2), float(MOST_SUBJECTS), device=device)  # outside of every subject
    nearest = torch.zeros(B, frames, rows, columns, dtype=torch.long, device=device)
    for b, there in enumerate(packed_BG[:, :MOST_SUBJECTS].sum(1).long().tolist()):
        if there:
            own[b], nearest[b] = own_frame(numbers[b, :there], rows, columns)
            told[b, ..., CANVAS:] = subject_channels(numbers[b, :there], own[b], nearest[b])
    seen = textures(tokens_BLC, own, nearest)
    rest = told.new_zeros(B, frames, rows, columns, channels + 1 - CHANNELS - seen.shape[-1])
    return torch.cat([told, seen, rest], dim=-1)
