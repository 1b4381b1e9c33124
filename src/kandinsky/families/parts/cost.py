"""What the networks that several families share cost. No torch.

Operations of decoders are counted from their hyper-parameters, convolution by convolution. Activations are estimated
from the widest layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from kandinsky.families.parts.params import (
    FLAN_UL2,
    LATENT_PIECE,
    MOVQ_PIECE,
    STABLE_DIFFUSION,
    T5_VOCABULARY,
    T5_XXL,
    CogVideoXParams,
    FluxParams,
    HunyuanParams,
    MovqParams,
    T5Sizes,
)
from kandinsky.families.parts.tiles import CHUNK, ON_DEVICE, WHOLE_VOXELS, Tiling, starts_of
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import PROMPT_TOKENS, Cost, Load, Operations

PLANE, CUBE = 9, 27  # weights of a convolution's kernel for each pair of channels
TENSORS = 3  # copies of the widest layer at once: what comes in, its padded copy, what comes out
ENCODER_WORK = 20  # a text encoder's activations are this small a fraction of its weights


# -- text encoders -----------------------------------------------------------------------------------------------------


def encoder(load: Load, *, layers: int, layer: int, outside: int, unused: int = 0, tokens: int = PROMPT_TOKENS) -> Cost:
    """The cost of a text encoder, a transformer.

    Args:
        load: What the generation asks of it.
        layers: Number of layers.
        layer: Weights of one of its layers.
        outside: Weights outside them, such as a vocabulary.
        unused: Weights of blocks that text does not pass through; they move with the others and stay exact.
        tokens: Tokens of each prompt, including those of a template.

    Returns:
        The cost.
    """
    whole = layers * layer + outside + unused
    operations = Operations(linear=2.0 * layers * layer * tokens * load.prompts, kernels=20.0 * layers * load.prompts)
    return Cost(
        load.weights // ENCODER_WORK,
        operations,
        tokens,
        in_blocks=(layers * layer + unused) / whole,
        block=layer / whole,
        linear=layers * layer / whole,
    )


def small_encoder(card: Card, component: Component, load: Load) -> Cost:
    """The cost of an encoder too small to matter."""
    return Cost(load.weights // ENCODER_WORK)


def _t5(sizes: T5Sizes, card: Card, component: Component, load: Load) -> Cost:
    own = sizes.changed(component.params)
    tokens = int(component.params.get("max_length", PROMPT_TOKENS))
    return encoder(load, layers=own.num_layers, layer=own.layer, outside=T5_VOCABULARY * own.width, tokens=tokens)


t5, t5_projected = partial(_t5, T5_XXL), partial(_t5, FLAN_UL2)


def t5_layers(component: Component) -> int:
    """Number of layers of T5-XXL, as set by a card or a benchmark."""
    return T5_XXL.changed(component.params).num_layers


def projected_layers(component: Component) -> int:
    """The same for Flan-UL2."""
    return FLAN_UL2.changed(component.params).num_layers


# -- autoencoders ------------------------------------------------------------------------------------------------------


def _residual(before: int, after: int, kernel: int, *, told: int = 0, along: int = 0) -> int:
    """Weights of a residual block's convolutions, which equal its products per position.

    Args:
        before: Input channels.
        after: Output channels.
        kernel: Size of the kernels.
        told: Channels of the latent that both norms are conditioned on.
        along: Kernel of a further convolution after each of the two, from ``after`` to ``after`` channels.

    Returns:
        The number of weights.
    """
    shortcut = before * after if before != after else 0
    return kernel * (before + after) * after + shortcut + 2 * told * (before + after) + 2 * along * after * after


def _middle(width: int, frames: float, area: float) -> Operations:
    """Operations of the attention in the middle of a decoder, one head: frames see themselves and those before."""
    projections = Operations(linear=2 * 4 * width**2 * frames * area)
    return projections + Operations.attending(frames * area, (frames + 1) / 2 * area, width, width)


def _climb(
    widths: Sequence[int],
    positions: Sequence[float],
    *,
    latent_channels: int,
    resnets: int,
    kernel: int,
    doubling: int,
    doubled: Sequence[float] | None = None,
    told: int = 0,
    along: int = 0,
) -> Operations:
    """A decoder's convolutions, from the coarsest level to the finest.

    Args:
        widths: Widths of the levels, in that order.
        positions: Frames x rows x columns of the levels.
        latent_channels: Channels of the latent.
        resnets: Residual blocks per level.
        kernel: Size of convolution kernels.
        doubling: Size of the kernel after each upsampling.
        doubled: Positions at which that kernel is computed; those of the next level by default.
        told: As for ``_residual``.
        along: As for ``_residual``.
    """
    block = partial(_residual, kernel=kernel, told=told, along=along)
    before = widths[0]
    doubled = positions[1:] if doubled is None else doubled
    products = positions[0] * (kernel * latent_channels * before + 2 * block(before, before))
    for number, (width, size) in enumerate(zip(widths, positions, strict=True)):
        products += size * (block(before, width) + (resnets - 1) * block(width, width))
        if number + 1 < len(widths):
            products += doubled[number] * doubling * width * width
        before = width
    products += positions[-1] * (kernel * before * 3 + 2 * told * before)
    return Operations(convolution=2.0 * products, kernels=10.0 * len(widths) * resnets)


def _sides(load: Load, levels: int) -> tuple[float, float]:
    """Rows and columns of the coarsest level."""
    return load.shape.height / 2 ** (levels - 1), load.shape.width / 2 ** (levels - 1)


def hunyuan(card: Card, component: Component, load: Load) -> Cost:
    """The cost of decoding with the HunyuanVideo autoencoder, in tiles if it takes them."""
    given = dict(component.params)
    tiling = given.pop("tiling", "auto")
    params, shape = HunyuanParams.from_dict(given), load.shape
    voxels = shape.frames * shape.height * shape.width
    whole = tiling == "none" or (tiling == "auto" and voxels <= WHOLE_VOXELS)
    tiles = Tiling.official(shape.height, shape.width)
    temporal, latents = params.temporal_compression_ratio, load.latent.frames
    frames, rows, columns, count = latents, shape.height, shape.width, 1
    if not whole:
        frames, rows, columns = min(latents, (tiles.tile[0] - 1) // temporal + 1), tiles.tile[1], tiles.tile[2]
        count = len(starts_of(latents, frames, tiles.stride[0] // temporal, slack=1)) if latents > frames else 1
        sides = zip((shape.height, shape.width), tiles.tile[1:], tiles.stride[1:], strict=True)
        count *= math.prod(len(starts_of(*side)) for side in sides)
    levels = len(params.block_out_channels)
    areas = [rows * columns / 4 ** (levels - 1 - level) for level in range(levels)]
    # enlarged in time too, but for the first frame, on the way to each of the last levels
    doublings = int(math.log2(temporal))
    times = [1 + (frames - 1) * 2 ** max(0, level - (levels - 1 - doublings)) for level in range(levels)]
    one = _climb(
        params.block_out_channels[::-1],
        [area * time for area, time in zip(areas, times, strict=True)],
        latent_channels=params.latent_channels,
        resnets=params.layers_per_block + 1,
        kernel=CUBE,
        doubling=CUBE,
    )
    if params.mid_block_add_attention:
        one += _middle(params.block_out_channels[-1], frames, areas[0])
    pixels = times[-1] * rows * columns
    # what a layer gives and what skips it
    kept = 2 * min(pixels * params.block_out_channels[0] * load.width, ON_DEVICE)
    layered = kept + 6 * max(CHUNK, _widest(params.block_out_channels) * rows * columns) * load.width
    work = pixels * _widest(params.block_out_channels) * TENSORS * load.width
    return Cost(int(work), one * count, block_work=int(layered))


def _widest(widths: Sequence[int]) -> int:
    """Channels at full size: what comes from the level before the last is enlarged before it is made narrower."""
    return widths[min(1, len(widths) - 1)]


def _images(params: FluxParams, load: Load) -> Cost:
    levels, shape = len(params.block_out_channels), load.shape
    rows, columns = _sides(load, levels)
    operations = _climb(
        params.block_out_channels[::-1],
        [shape.frames * rows * columns * 4**level for level in range(levels)],
        latent_channels=params.latent_channels,
        resnets=params.layers_per_block + 1,
        kernel=PLANE,
        doubling=PLANE,
    )
    if params.mid_block_add_attention:
        operations += _middle(params.block_out_channels[-1], 1, rows * columns) * shape.frames
    pixels = shape.height * shape.width  # images are decoded one by one
    return Cost(int(pixels * _widest(params.block_out_channels) * TENSORS * load.width), operations)


def flux(card: Card, component: Component, load: Load) -> Cost:
    """The cost of decoding with the image autoencoder of FLUX.1."""
    return _images(FluxParams.from_dict(component.params), load)


def stable_diffusion(card: Card, component: Component, load: Load) -> Cost:
    """The cost of decoding with Stable Diffusion's autoencoder."""
    return _images(FluxParams.from_dict(STABLE_DIFFUSION | component.params), load)


def cogvideox(card: Card, component: Component, load: Load) -> Cost:
    """The cost of decoding with the CogVideoX autoencoder, piece by piece."""
    params, shape = CogVideoXParams.from_dict(component.params), load.shape
    levels, temporal = len(params.block_out_channels), params.temporal_compression_ratio
    rows, columns = _sides(load, levels)
    doublings = int(math.log2(temporal))
    times = [1 + (load.latent.frames - 1) * 2 ** min(level, doublings) for level in range(levels)]
    operations = _climb(
        params.block_out_channels[::-1],
        [time * rows * columns * 4**level for level, time in enumerate(times)],
        latent_channels=params.latent_channels,
        resnets=params.layers_per_block + 1,
        kernel=CUBE,
        doubling=PLANE,
        # frames are repeated behind the convolution
        doubled=[time * rows * columns * 4 ** (level + 1) for level, time in enumerate(times[:-1])],
        told=params.latent_channels,
    )
    # what is left over joins the first piece
    frames = min(shape.frames, 1 + temporal * LATENT_PIECE)
    pixels = frames * shape.height * shape.width
    return Cost(int(pixels * _widest(params.block_out_channels) * TENSORS * load.width), operations)


def movq(card: Card, component: Component, load: Load) -> Cost:
    """The cost of decoding with MoVQ, images or clips."""
    params, shape = MovqParams.from_dict(component.params), load.shape
    levels = len(params.widths)
    rows, columns = _sides(load, levels)
    operations = _climb(
        params.widths[::-1],
        [shape.frames * rows * columns * 4**level for level in range(levels)],
        latent_channels=params.z_channels,
        resnets=params.num_res_blocks + 1,
        kernel=PLANE,
        doubling=PLANE,
        along=CUBE if params.temporal else 0,
    )
    for level, width in enumerate(params.widths[::-1]):
        area = rows * columns * 4**level
        layers = (params.num_res_blocks + 1) * params.attends(levels - 1 - level) + (level == 0)
        operations += _middle(width, 1, area) * (shape.frames * layers)
        if params.temporal and params.temporal_attention_block:  # a token for each frame: next to no scores
            operations += Operations(linear=2 * 4 * width**2 * area * shape.frames) * layers
    at_once = min(shape.frames, MOVQ_PIECE + 1) if params.temporal else 1
    pixels = at_once * shape.height * shape.width
    return Cost(int(pixels * _widest(params.widths) * TENSORS * load.width), operations)
