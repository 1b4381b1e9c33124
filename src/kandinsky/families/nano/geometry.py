"""The condition channels of the second Nano: where each place is on the canvas, and in its subject's own frame.

A place belongs to the subject that is nearest, counted in its sizes. For the place and that subject: waves of the
place in the subject's frame (turned and scaled with it), which of the subjects it is, its size, angle and opacity,
and how far they change within the latent frame. The waves make "which part of the concept is here" a thing to read,
not to work out.

A text encoder hands the scene's numbers to the denoiser behind the channels of its pooled vector, so whatever carries
text embeddings carries them: ``packed`` has, for each of three subjects, whether it is there; for each of them and each
of 25 frames x, y, size, angle and opacity; both colours of the background; which kind of background it is; and the
tone of skin of each subject. A shorter clip shows the first of the frames.

Legend: B clips, T latent frames, F frames, H W rows and columns of the latent, S subjects, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.scenes import BACKDROPS, MOST_SUBJECTS, RGB, Scene, track

OCTAVES = 6
TEMPORAL = 8  # frames of a latent frame, but the first
LATENT_FRAMES = 4  # of the clip that a scene is meant for
CANVAS = 28  # rows, columns and frames, one channel each
SUBJECT = 4 * OCTAVES + MOST_SUBJECTS + 13
CHANNELS = CANVAS + SUBJECT
NUMBERS = 10
FRAMES = 1 + TEMPORAL * (LATENT_FRAMES - 1)
PATH = MOST_SUBJECTS * FRAMES * 5
PACKED = MOST_SUBJECTS + PATH + 6 + len(BACKDROPS) + MOST_SUBJECTS


def canvas_channels(frames: int, rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """One channel for each row, column and latent frame: [T, H, W, CANVAS]."""
    sides = (rows, columns, frames)
    own = [torch.eye(sum(sides), CANVAS, device=device)[sum(sides[:n]) :][:side] for n, side in enumerate(sides)]
    return own[2][:, None, None] + own[0][:, None] + own[1]


@dataclass(frozen=True, slots=True)
class Packed:
    """What travels of one scene.

    Args:
        path_SF5: x, y, size, angle and opacity of its subjects in every frame.
        colours_23: Both colours of the background, in [0, 1].
        backdrop: Its kind, among ``BACKDROPS``.
        tones: Of its subjects' skin, see ``scenes.Subject``.
    """

    path_SF5: Tensor
    colours_23: Tensor
    backdrop: int
    tones: tuple[int, ...] = ()

    @property
    def subjects(self) -> int:
        return len(self.path_SF5)

    @classmethod
    def of(cls, row_G: Tensor) -> Packed | None:
        """Read a row of ``packed``; None if it knows of no scene."""
        there = int(row_G[:MOST_SUBJECTS].sum())
        if not there:
            return None
        path = row_G[MOST_SUBJECTS : MOST_SUBJECTS + PATH].view(MOST_SUBJECTS, FRAMES, 5)[:there]
        colours, backdrop, tones = row_G[MOST_SUBJECTS + PATH :].split([6, len(BACKDROPS), MOST_SUBJECTS])
        return cls(path, colours.view(2, 3), int(backdrop.argmax()), tuple(map(int, tones[:there])))

    def later(self, since: int) -> Packed:
        """The scene as a part of a longer clip shows it that begins so many frames later; before 0 it stands.

        A motion that ends where it began goes on (jumps, spins); any other ends with the scene's own clip.
        """
        first, last = self.path_SF5[:, 0], self.path_SF5[:, -1]
        turned = (last - first - torch.tensor([0, 0, 0, 2 * math.pi, 0]).to(first)).abs().max()
        closed = min(float((last - first).abs().max()), float(turned)) < 1e-3
        at = torch.arange(since, since + FRAMES, device=first.device).clamp_min(0)
        at = at % (FRAMES - 1) if closed and since else at.clamp_max(FRAMES - 1)
        return replace(self, path_SF5=self.path_SF5[:, at])

    def row(self) -> Tensor:
        """As it travels, [PACKED]."""
        out = self.path_SF5.new_zeros(PACKED)
        out[: self.subjects] = 1
        out[MOST_SUBJECTS : MOST_SUBJECTS + self.path_SF5.numel()] = self.path_SF5.flatten()
        out[MOST_SUBJECTS + PATH : MOST_SUBJECTS + PATH + 6] = self.colours_23.flatten()
        out[MOST_SUBJECTS + PATH + 6 + self.backdrop] = 1
        for subject, tone in enumerate(self.tones):
            out[PACKED - MOST_SUBJECTS + subject] = tone
        return out


def packed(scenes: Sequence[Scene | None]) -> Tensor:
    """The numbers of a batch as they travel, [B, PACKED]; zeros where nothing is known of the subjects' places."""
    out = torch.zeros(len(scenes), PACKED)
    for row, scene in zip(out, scenes, strict=True):
        if scene is not None:
            path = torch.from_numpy(track(scene, FRAMES)).float()
            one, other = scene.colours[0], scene.colours[0] if scene.colours[1] is None else scene.colours[1]
            colours = torch.tensor([RGB[one], RGB[other]]).div(255)
            tones = tuple(subject.tone for subject in scene.subjects)
            row.copy_(Packed(path, colours, BACKDROPS.index(scene.backdrop), tones).row())
    return out


def latent_track(path_SF5: Tensor) -> Tensor:
    """The subjects' numbers at the middle of each latent frame, then their change within it: [S, 4, NUMBERS]."""
    middle, change = [path_SF5[:, 0]], [torch.zeros_like(path_SF5[:, 0])]
    for k in range(1, LATENT_FRAMES):
        first, last = path_SF5[:, 1 + TEMPORAL * (k - 1)], path_SF5[:, TEMPORAL * k]
        middle.append((path_SF5[:, TEMPORAL * k - 4] + path_SF5[:, TEMPORAL * k - 3]) / 2)
        change.append(last - first)
    return torch.cat([torch.stack(middle, dim=1), torch.stack(change, dim=1)], dim=-1)


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


def condition_channels(packed_BG: Tensor, *, frames: int, rows: int, columns: int, channels: int) -> Tensor:
    """Condition channels of a batch, with an empty mask: [B, T, H, W, channels + 1], float32.

    Args:
        packed_BG: See ``packed``; the channels of clips in which no subject is there are zero but for the canvas's.
        frames: At most four.
        rows: Of the latent.
        columns: Of the latent.
        channels: Of the latent.
    """
    out = torch.zeros(len(packed_BG), frames, rows, columns, channels + 1, device=packed_BG.device)
    out[..., :CANVAS] = canvas_channels(frames, rows, columns, packed_BG.device)
    for told, scene in zip(out, (Packed.of(row) for row in packed_BG.float()), strict=True):
        if scene is not None:
            numbers = latent_track(scene.path_SF5)[:, :frames]
            told[..., CANVAS:CHANNELS] = subject_channels(numbers, *own_frame(numbers, rows, columns))
    return out
