"""What the two networks of Kandinsky Video 1 cost. No torch.

The networks of 1.0 and 1.1 differ by less than a twentieth.
"""

from __future__ import annotations

from kandinsky.families.kandinsky_video1.request import keyframes_of
from kandinsky.families.parts.unet.cost import Figures
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import Cost, Load, Operations

# 12 keyframes of 512x512, and the 11 gaps between them, with 60 tokens of text
KEYFRAMES = Figures(384, 0.50e8, 1.17e8, 0.70e8, in_stages=0.941, largest=0.105, quantised=0.246)
GAPS = Figures(384, 0.50e8, 1.81e8, 0.53e8, in_stages=0.940, largest=0.105)


def keyframes(card: Card, component: Component, load: Load) -> Cost:
    """The cost of all passes over the keyframes, and over the first frame if the model makes one."""
    count, first = keyframes_of(card).count, keyframes_of(card).first_frame
    base = UNetParams.from_dict(component.params).model_channels
    area = load.latent.height * load.latent.width
    operations = KEYFRAMES.operations(base, count * area, load.passes)
    if first is not None:
        # a third pass, without the first frame; and the first frame itself, which is larger
        operations += KEYFRAMES.operations(base, count * area, load.steps)
        operations += KEYFRAMES.operations(base, first.scale**2 * area, 2 * load.steps)
    return KEYFRAMES.cost(base, count * area, operations, load, tokens=area)


def interpolation(card: Card, component: Component, load: Load) -> Cost | None:
    """The cost of filling all gaps until the clip has its frames; None if there are none to fill."""
    values = keyframes_of(card)
    gaps, frames = values.count - 1, load.shape.frames
    if frames <= values.count:
        return None
    base = UNetParams.from_dict(component.params).model_channels
    area = load.latent.height * load.latent.width
    passes = min(values.steps, load.steps) * (1 if values.guidance == 1 else 2)
    operations, widest = Operations(), 0
    while gaps * 4 + 1 <= frames:  # each pass turns one gap into four
        operations += GAPS.operations(base, gaps * area, passes)
        widest, gaps = gaps, gaps * 4
    return GAPS.cost(base, widest * area, operations, load, tokens=area)
