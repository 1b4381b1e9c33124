"""Drawing scenes: subjects over a background, in float and on demand.

Drawing a clip and encoding it costs about a quarter of one training step of it on the same core, so no scene need be
stored: any place, size, turn and colour can be had exactly. Legend: T frames, H W pixels, S subjects.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.scenes import HORIZON, Scene, track
from kandinsky.lab.nano.captions import COLOURS
from kandinsky.lab.nano2.catalogue import Sources


def background(scene: Scene, side: int) -> Tensor:
    """The background alone, [3, H, W] in [0, 1]."""
    one = torch.tensor(COLOURS[scene.colours[0]].rgb).div(255).view(3, 1, 1)
    if scene.colours[1] is None:
        return one.expand(3, side, side)
    other = torch.tensor(COLOURS[scene.colours[1]].rgb).div(255).view(3, 1, 1)
    at = (torch.arange(side) + 0.5) / side
    match scene.backdrop:
        case "gradient":
            share = at.view(1, side, 1).expand(1, side, side)
        case "halves":
            share = (at > 0.5).float().view(1, 1, side).expand(1, side, side)
        case "ground":
            share = (at > HORIZON).float().view(1, side, 1).expand(1, side, side)
        case _:
            share = torch.zeros(1, side, side)
    return torch.lerp(one, other, share)


def render(scene: Scene, sources: Sources, *, side: int = 192, frames: int = 25, shown: int | None = None) -> Tensor:
    """Draw a clip.

    Args:
        frames: Length of the clip that the scene is meant for.
        shown: Draw only the first so many of these frames.

    Returns:
        float32 [T, H, W, 3] in [-1, 1].
    """
    shown = shown or frames
    canvas = background(scene, side).expand(shown, 3, side, side)
    for subject, path in zip(scene.subjects, track(scene, frames), strict=True):
        image = sources.frames(subject.concept, subject.row, count=shown)
        moved = torch.from_numpy(path[:shown]).float()
        if len(image) == 1 and bool((moved == moved[0]).all()):
            moved = moved[:1]
        layer = place(image, moved, side)
        canvas = layer[:, :3] + canvas * (1 - layer[:, 3:])
    return canvas.expand(shown, 3, side, side).permute(0, 2, 3, 1).mul(2).sub(1)


def place(image_TCHW: Tensor, path_T5: Tensor, side: int) -> Tensor:
    """Premultiplied RGBA where the path puts it, [T, 4, side, side]; one image serves a path of many frames.

    An image that is made much smaller is halved first, or its pixels would be skipped.
    """
    if float(path_T5[:, 2].max()) * side < 0.6 * image_TCHW.shape[-1]:
        image_TCHW = F.avg_pool2d(image_TCHW, 2)
    x, y, size, angle, opacity = path_T5.unbind(-1)
    cos, sin = angle.cos() / size, angle.sin() / size
    dx, dy = 1 - 2 * x, 1 - 2 * y
    rows = torch.stack([cos, sin, cos * dx + sin * dy, -sin, cos, cos * dy - sin * dx], dim=-1)
    frames = len(path_T5)
    grid = F.affine_grid(rows.view(-1, 2, 3), [frames, 4, side, side], align_corners=False)
    image_TCHW = image_TCHW.expand(frames, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    return F.grid_sample(image_TCHW, grid, align_corners=False) * opacity.view(-1, 1, 1, 1)
