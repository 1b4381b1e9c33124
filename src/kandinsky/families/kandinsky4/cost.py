"""What the Kandinsky 4 transformer costs. No torch.

Legend: S visual tokens, L text tokens, G groups, D width, F hidden width, E width of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kandinsky.families.kandinsky4.params import DiTParams
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import PROMPT_TOKENS, Cost, Load, Operations
from kandinsky.model.values import LatentShape
from kandinsky.runtime.parallel.layout import Demand

# numbers of width D that stand between a block's layers and are read or written for each token, as in Kandinsky 5
MOVED, KERNELS = 18, 40


def operations(params: DiTParams, latent: Sequence[int], text_tokens: int) -> Operations:
    """Operations of one pass over one clip: both streams pass through each of the 2·num_blocks blocks.

    Every group holds all text.

    Args:
        params: Hyper-parameters.
        latent: Frames, rows and columns.
        text_tokens: Number of text tokens.

    Returns:
        The operations.
    """
    S, L, G = _tokens(params, latent), text_tokens, math.prod(params.num_groups)
    D, F, E, patch = params.model_dim, params.ff_dim, params.time_dim, math.prod(params.patch_size)
    outside = S * patch * params.input_channels * D + L * params.in_text_dim * D + D * E + E * E
    outside += E * 2 * D + S * D * patch * params.out_visual_dim
    block = 2 * E * 6 * D + (S + L) * (4 * D * D + 2 * D * F)
    attention = Operations.attending(S // G + L, S // G + L, D, params.head_dim) * G
    return Operations(linear=2 * (outside + 2 * params.num_blocks * block)) + attention * (2 * params.num_blocks)


def flops(params: DiTParams, latent: Sequence[int], text_tokens: int, kept: float | None = None) -> int:
    """The sum of ``operations``; attention is always dense, whatever ``kept`` says."""
    return int(operations(params, latent, text_tokens).flops)


def _tokens(params: DiTParams, latent: Sequence[int]) -> int:
    return math.prod(size // patch for size, patch in zip(latent[:3], params.patch_size, strict=True))


def transformer(card: Card, component: Component, load: Load) -> Cost:
    """The cost of all passes over one clip."""
    params = DiTParams.from_dict(component.params)
    D, F, tokens = params.model_dim, params.ff_dim, _tokens(params, load.latent.as_tuple())
    blocks = 2 * params.num_blocks
    one = operations(params, load.latent.as_tuple(), PROMPT_TOKENS)
    one += Operations(moved=blocks * tokens * (MOVED * D + 2 * F) * load.width, kernels=KERNELS * blocks)
    products = 4 * D * D + 2 * D * F
    largest = products + 12 * D * (params.time_dim + 1)
    # the stream and its float32 sum, q, k, v and the result, and the hidden layer
    work = tokens * (D * (6 * load.width + 2 * 4) + F * 2 * load.width)
    return Cost(
        work,
        one * load.passes,
        tokens,
        in_blocks=min(1.0, blocks * largest / card.parameters),
        block=min(1.0, largest / card.parameters),
        linear=min(1.0, blocks * products / card.parameters),
    )


def demand(component: Component, latent: LatentShape) -> Demand:
    """What there is to split in one pass: the tokens of each frame."""
    params = DiTParams.from_dict(component.params)
    _, rows, columns = params.patch_size
    tokens = latent.height // rows * (latent.width // columns)
    has_groups = math.prod(params.num_groups) > 1
    return Demand(heads=params.num_heads, hidden=params.ff_dim, tokens=tokens, has_groups=has_groups)


def blocks(component: Component) -> int:
    """Number of pairs of blocks, as set by a card or a benchmark."""
    return DiTParams.from_dict(component.params).num_blocks
