"""What the networks of Kandinsky 5 cost. No torch.

Legend: S visual tokens, L text tokens, D width, F hidden width, E width of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kandinsky.families.kandinsky5.params import DiTParams, QwenClipSizes
from kandinsky.families.parts.cost import encoder
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import PROMPT_TOKENS, Cost, Load, Operations
from kandinsky.model.values import LatentShape
from kandinsky.runtime.parallel.layout import Demand

# Numbers of width D that stand between a visual block's layers and are read or written for each token, each step fused:
# norms and gated sums of the three sublayers, norms and rotation of queries and keys, and what attention reads and
# writes; the hidden layer's activation comes on top.
MOVED, KERNELS = 27, 30
TEMPLATE_TOKENS = 40  # of the system prompt that stands before every prompt
VISION_TOWER = 32 * (4 * 1280**2 + 3 * 1280 * 3420)  # weights of Qwen2.5-VL's blocks that see images


def operations(params: DiTParams, latent: Sequence[int], text_tokens: int, *, kept: float | None = None) -> Operations:
    """Operations of one pass over one clip; only matrix products count, the rest is below one per cent at full size.

    Args:
        params: Hyper-parameters.
        latent: Frames, rows and columns.
        text_tokens: Number of text tokens.
        kept: Share of the self attention's blocks that is computed; None if it is dense.

    Returns:
        The operations.
    """
    S, L = math.prod(grid_of(params, latent)), text_tokens
    D, F, E, patch = params.model_dim, params.ff_dim, params.time_dim, math.prod(params.patch_size)
    head = params.head_dim
    outside = S * patch * params.input_channels * D + L * params.in_text_dim * D + params.in_text_dim2 * E
    outside += D * E + E * E + E * 2 * D + S * D * patch * params.out_visual_dim
    in_text = E * 6 * D + L * (4 * D * D + 2 * D * F)
    in_visual = E * 9 * D + S * (6 * D * D + 2 * D * F) + L * D * D * 2
    linear = outside + params.num_text_blocks * in_text + params.num_visual_blocks * in_visual
    text = Operations.attending(L, L, D, head) * params.num_text_blocks
    visual = Operations.attending(S, L, D, head)
    visual += Operations.attending(S, S, D, head) if kept is None else Operations(sparse=4 * kept * S * S * D)
    return Operations(linear=2 * linear) + text + visual * params.num_visual_blocks


def flops(params: DiTParams, latent: Sequence[int], text_tokens: int, kept: float | None = None) -> int:
    """The sum of ``operations``."""
    return int(operations(params, latent, text_tokens, kept=kept).flops)


def grid_of(params: DiTParams, latent: Sequence[int]) -> tuple[int, int, int]:
    """Tokens along frames, rows and columns."""
    t, h, w = (size // patch for size, patch in zip(latent[:3], params.patch_size, strict=True))
    return t, h, w


def transformer(card: Card, component: Component, load: Load) -> Cost:
    """The cost of all passes over one clip."""
    params = DiTParams.from_dict(component.params)
    grid = grid_of(params, load.latent.as_tuple())
    D, F, E, tokens = params.model_dim, params.ff_dim, params.time_dim, math.prod(grid)
    kept = load.attention.expected_share(grid) if load.attention.type != "dense" else None
    one = operations(params, load.latent.as_tuple(), PROMPT_TOKENS, kept=kept)
    blocks = params.num_visual_blocks + params.num_text_blocks
    moved = params.num_visual_blocks * tokens * (MOVED * D + 2 * F) * load.width
    one += Operations(moved=moved, kernels=KERNELS * blocks)
    visual, text = 8 * D * D + 2 * D * F, 4 * D * D + 2 * D * F
    products = params.num_visual_blocks * visual + params.num_text_blocks * text
    largest = visual + 9 * D * (E + 1)
    in_blocks = products + (params.num_visual_blocks * 9 + params.num_text_blocks * 6) * D * (E + 1)
    # the stream and its float32 sum, q, k, v and the result, and the hidden layer
    work = tokens * (D * (6 * load.width + 2 * 4) + F * 2 * load.width)
    return Cost(
        work,
        one * load.passes,
        tokens,
        in_blocks=min(1.0, in_blocks / card.parameters),
        block=min(1.0, largest / card.parameters),
        linear=min(1.0, products / card.parameters),
        kept=1.0 if kept is None else kept,
    )


def demand(component: Component, latent: LatentShape) -> Demand:
    """What there is to split in one pass."""
    params = DiTParams.from_dict(component.params)
    tokens = math.prod(grid_of(params, latent.as_tuple()))
    return Demand(heads=params.num_heads, hidden=params.ff_dim, tokens=tokens)


def visual_blocks(component: Component) -> int:
    """Number of blocks of the transformer, as set by a card or a benchmark."""
    return DiTParams.from_dict(component.params).num_visual_blocks


def qwen_clip(card: Card, component: Component, load: Load) -> Cost:
    """The cost of encoding the prompts; CLIP is too small to matter."""
    sizes = QwenClipSizes.read(component.params)
    return encoder(
        load,
        layers=sizes.qwen_layers,
        layer=sizes.qwen_layer,
        outside=sizes.outside,
        unused=VISION_TOWER,
        tokens=TEMPLATE_TOKENS + PROMPT_TOKENS,
    )


def qwen_layers(component: Component) -> int:
    """Number of layers of the larger text encoder, as set by a card or a benchmark."""
    return QwenClipSizes.read(component.params).qwen_layers
