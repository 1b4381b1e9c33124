"""Drawing scenes: subjects over a background, in float and on demand.

Drawing a clip and encoding it costs about a quarter of one training step of it on the same core, so no scene need be
stored: any place, size, turn and colour can be had exactly. Legend: T frames, H W pixels, S subjects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kandinsky.families.nano.draft import background, place
from kandinsky.families.nano.scenes import RGB, Scene, Subject, track
from kandinsky.lab.nano2.catalogue import Images


def render(scene: Scene, sources: Images, *, side: int = 192, frames: int = 25, shown: int | None = None) -> Tensor:
    """Draw a clip.

    Args:
        frames: Length of the clip that the scene is meant for.
        shown: Draw only the first so many of these frames.

    Returns:
        float32 [T, H, W, 3] in [-1, 1].
    """
    shown = shown or frames
    one, other = scene.colours[0], scene.colours[0] if scene.colours[1] is None else scene.colours[1]
    colours = torch.tensor([RGB[one], RGB[other]]).div(255)
    canvas = background(colours, scene.backdrop, side).expand(shown, 3, side, side)
    for subject, path in zip(scene.subjects, track(scene, frames), strict=True):
        image = _image(subject, sources, shown)
        moved = torch.from_numpy(path[:shown]).float()
        if len(image) == 1 and bool((moved == moved[0]).all()):
            moved = moved[:1]
        layer = place(image, moved, side)
        canvas = layer[:, :3] + canvas * (1 - layer[:, 3:])
    return canvas.expand(shown, 3, side, side).permute(0, 2, 3, 1).mul(2).sub(1)


def _image(subject: Subject, sources: Images, shown: int) -> Tensor:
    if not subject.tone or subject.concept is None:
        return sources.frames(subject.concept, subject.row, count=shown)
    image = sources.toned(subject.concept, subject.tone, count=shown)
    assert image is not None, "no such clip: see `catalogue.toned`"
    return image
