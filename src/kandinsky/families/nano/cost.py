"""What Nano's own autoencoder costs. No torch."""

from __future__ import annotations

from kandinsky.families.nano.params import NanoAutoencoderParams
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import Cost, Load, Operations

COPIES = 4  # of the clip in float32, while it is decoded


def autoencoder(card: Card, component: Component, load: Load) -> Cost:
    """The cost of decoding one clip."""
    p, latent, shape = NanoAutoencoderParams.from_dict(component.params), load.latent, load.shape
    coarse, fine = latent.frames * latent.height * latent.width, shape.frames * 4 * latent.height * latent.width
    block = 9 + 2  # a 3x3 convolution, and a look at two frames, for each pair of channels
    products = p.latent_channels * (p.patch_features + 9 * p.width) + p.blocks * block * p.width**2
    products += p.width * p.temporal * 4 * p.fine_width
    detail = p.fine_blocks * block * p.fine_width**2 + 9 * p.fine_width * 3 * (p.spatial // 2) ** 2
    work = shape.frames * shape.height * shape.width * 3 * 4 * COPIES
    convolution = 2.0 * (coarse * products + fine * detail)
    return Cost(work, Operations(convolution=convolution, kernels=10.0 * (p.blocks + p.fine_blocks)))
