"""What Nano's own networks cost. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from kandinsky.families.kandinsky5 import cost as kandinsky5
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.params import NanoAutoencoderParams, NanoPatchParams
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import Cost, Load, Operations

# of the head beside the transformer: its width, how much the prompt and the time tell it, and how many places in a row
# it sees
LOCAL_WIDTH, LOCAL_TOLD, AROUND = 512, 63, 3
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


def patch_autoencoder(card: Card, component: Component, load: Load) -> Cost:
    """The cost of decoding one clip with the second Nano's autoencoder."""
    p, latent, shape = NanoPatchParams.from_dict(component.params), load.latent, load.shape
    block = 9 + 2  # a 3x3 convolution, and a look at two frames, for each pair of channels
    area, last = latent.height * latent.width, len(p.widths) - 1
    places = [area * 4**stage * (shape.frames if stage else latent.frames) for stage in range(last + 1)]
    products = places[0] * p.latent_channels * (p.temporal * p.spatial**2 * 3 + 9 * p.widths[0])
    products += places[last] * 2 * 9 * 12 * p.widths[last]  # what the linear decoder made, and what is added to it
    for stage, (width, depth) in enumerate(zip(p.widths, p.depths, strict=True)):
        products += places[stage] * depth * block * width**2
        if stage < last:
            products += places[stage] * width * p.widths[stage + 1] * 4 * (1 if stage else p.temporal)
    work = max(shape.frames * shape.height * shape.width * 3 * 4 * COPIES, places[last] * p.widths[last] * 4 * COPIES)
    return Cost(work, Operations(convolution=2.0 * products, kernels=10.0 * sum(p.depths)))


def local_features(params: DiTParams) -> int:
    """What the head beside the transformer takes in: latents around, condition channels, and what it is told."""
    return AROUND**2 * params.in_visual_dim + params.input_channels - params.in_visual_dim + LOCAL_TOLD


def local_head(params: DiTParams, latent: Sequence[int]) -> float:
    """Operations of the head that sees every latent place by itself, in one pass over one clip."""
    layers = local_features(params) * LOCAL_WIDTH + LOCAL_WIDTH**2 + LOCAL_WIDTH * params.out_visual_dim
    return 2.0 * math.prod(latent[:3]) * layers


def scene_transformer(card: Card, component: Component, load: Load) -> Cost:
    """The cost of all passes of the second Nano's denoiser over one clip."""
    cost = kandinsky5.transformer(card, component, load)
    head = local_head(DiTParams.from_dict(component.params), load.latent.as_tuple())
    return replace(cost, operations=cost.operations + Operations(linear=head) * load.passes)


def scene_flops(params: DiTParams, latent: Sequence[int], text_tokens: int, kept: float | None = None) -> int:
    """Operations of one pass, see ``model/family.Flops``."""
    return kandinsky5.flops(params, latent, text_tokens, kept) + int(local_head(params, latent))
