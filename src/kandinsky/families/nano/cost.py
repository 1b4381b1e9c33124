"""What Nano's own networks cost. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from kandinsky.families.kandinsky5 import cost as kandinsky5
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.params import (
    CELL,
    FRAMES,
    GRID,
    MOST_SUBJECTS,
    MOVES,
    PIXELS,
    LinearPatchParams,
    NanoAutoencoderParams,
    NanoPatchParams,
)
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import Cost, Load, Operations

# of the head beside the transformer: its width, how much the prompt and the time tell it, and how many places in a row
# it sees
LOCAL_WIDTH, LOCAL_TOLD, AROUND = 512, 63, 3
COPIES = 4  # of the clip in float32, while it is decoded
STAGE_COPIES = 7  # of the finest stage of the second Nano's decoder
# of it, read and written beside its convolutions: 0.335 s for a clip of 25 frames, of which these are 0.18; one thread
STAGE_MOVES = 28
RGBA, RGB = 4, 3
PORTRAIT_COPIES, CLIP_COPIES = 4, 2  # while a draft is drawn
PASSES = 6  # over portraits and layers, by steps between the products


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
    features = p.linear.still_features + (latent.frames - 1) * p.linear.moving_features
    products = area * features * p.latent_channels + places[0] * p.latent_channels * 9 * p.widths[0]
    products += places[last] * 2 * 9 * 12 * p.widths[last]  # what the linear decoder made, and what is added to it
    for stage, (width, depth) in enumerate(zip(p.widths, p.depths, strict=True)):
        products += places[stage] * depth * block * width**2
        if stage < last:
            products += places[stage] * width * p.widths[stage + 1] * 4 * (1 if stage else p.temporal)
    # the finest stage's are as fine as half the pixels: its input, what its block adds, both looked at together
    stage = places[last] * p.widths[last] * 4
    operations = Operations(convolution=2.0 * products, moved=stage * STAGE_MOVES, kernels=10.0 * sum(p.depths))
    return Cost(stage * STAGE_COPIES, operations)


def local_features(params: DiTParams) -> int:
    """What the head beside the transformer takes in: latents around, condition channels, and what it is told."""
    return AROUND**2 * params.in_visual_dim + params.input_channels - params.in_visual_dim + LOCAL_TOLD


def local_head(params: DiTParams, latent: Sequence[int]) -> float:
    """Operations of the head that sees every latent place by itself, in one pass over one clip."""
    layers = local_features(params) * LOCAL_WIDTH + LOCAL_WIDTH**2 + LOCAL_WIDTH * params.out_visual_dim
    return 2.0 * math.prod(latent[:3]) * layers


def scene_transformer(card: Card, component: Component, load: Load) -> Cost:
    """The cost of all passes of the second Nano's denoiser over one clip, and of the drafts that they begin with.

    Memory is that of as many subjects as a scene has room for, operations those of one, as most prompts have. The maps
    that draw and encode are computed and no parameters, so they are counted here and not as weights.
    """
    cost = kandinsky5.transformer(card, component, load)
    params = DiTParams.from_dict(component.params)
    head = local_head(params, load.latent.as_tuple())
    operations = cost.operations + Operations(linear=head) * load.passes + drawing(params, load) * load.prompts
    portrait, clip = _drawn(load)
    drawn = 4 * (MOST_SUBJECTS * PORTRAIT_COPIES * portrait + CLIP_COPIES * clip)
    return replace(cost, work=4 * maps(params) + max(cost.work, drawn), operations=operations)


def maps(params: DiTParams) -> int:
    """Numbers of the maps that drafts are drawn and encoded with."""
    linear = LinearPatchParams(latent_channels=params.in_visual_dim)
    portraits = RGBA * CELL**2 * PIXELS + FRAMES * PIXELS * MOVES + 4 * MOVES * params.in_text_dim
    return portraits + (linear.still_features + linear.moving_features) * params.in_visual_dim


def drawing(params: DiTParams, load: Load, subjects: int = 1) -> Operations:
    """Operations of the draft of one clip, without a given first frame."""
    frames, fine, linear = load.shape.frames, (2 * GRID) ** 2, LinearPatchParams(latent_channels=params.in_visual_dim)
    codes = GRID**2 * params.in_text_dim * 4 * MOVES
    decoded = codes + fine * MOVES * frames * PIXELS + fine * frames * PIXELS * RGBA * CELL**2
    places = load.latent.height * load.latent.width
    features = linear.still_features + (load.latent.frames - 1) * linear.moving_features
    portrait, clip = _drawn(load)
    moved = 4.0 * PASSES * subjects * (portrait + clip * RGBA / RGB)
    encoded = places * features * params.in_visual_dim
    return Operations(linear=2.0 * (subjects * decoded + encoded), moved=moved, kernels=30.0 * subjects)


def _drawn(load: Load) -> tuple[int, int]:
    """Numbers of the portrait of a subject, and of the clip it is drawn into."""
    shape = load.shape
    return shape.frames * RGBA * (2 * GRID * CELL) ** 2, shape.frames * shape.height * shape.width * RGB


def scene_flops(params: DiTParams, latent: Sequence[int], text_tokens: int, kept: float | None = None) -> int:
    """Operations of one pass, see ``model/family.Flops``."""
    return kandinsky5.flops(params, latent, text_tokens, kept) + int(local_head(params, latent))
