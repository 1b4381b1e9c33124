"""What the U-Net of Kandinsky 3 costs. No torch."""

from __future__ import annotations

from kandinsky.families.parts.unet.cost import Figures
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import Cost, Load

# 1024x1024 with 60 tokens of text
FIGURES = Figures(384, 0.50e8, 0.93e8, 0.52e8, in_stages=0.957, largest=0.112, quantised=0.148)


def unet(card: Card, component: Component, load: Load) -> Cost:
    """The cost of all passes over one image."""
    base = UNetParams.from_dict(component.params).model_channels
    positions = load.shape.frames * load.latent.height * load.latent.width
    operations = FIGURES.operations(base, positions, load.passes)
    return FIGURES.cost(base, positions, operations, load, tokens=positions)
