"""Floating-point operations of the transformers, counted from their hyper-parameters; a multiply-add is two.

Legend: S visual tokens, L text tokens, G groups, D width, F hidden width, E time width. Only products are counted: what
remains (norms, gates, activations) grows with S·D and is below a per cent at full size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kandinsky.families.kandinsky4 import dit as kandinsky4
from kandinsky.families.kandinsky5 import dit as kandinsky5


def count_flops(work: Callable[[], object]) -> int:
    """Of whatever a function computes, counted while it runs; PyTorch's counter does not know oneDNN's products."""
    known = {torch.ops.mkldnn._linear_pointwise: _linear} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return int(counter.get_total_flops())


def _linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def dit_flops(params: Any, latent: Sequence[int], text_tokens: int, *, kept: float = 1.0) -> int | None:
    """Of one pass over one clip; None for a network whose hyper-parameters are of no known kind.

    Args: latent: frames, rows, columns.   kept: share of the self attention's blocks that is computed (NABLA).
    """
    count = COUNTS.get(type(params))
    if count is None:
        return None
    cells = math.prod(size // patch for size, patch in zip(latent[:3], params.patch_size, strict=True))
    return 2 * count(params, cells, text_tokens, kept)


def _kandinsky5(params: kandinsky5.DiTParams, S: int, L: int, kept: float) -> int:
    D, F, E, patch = params.model_dim, params.ff_dim, params.time_dim, math.prod(params.patch_size)
    embeddings = (
        S * patch * params.input_channels * D + L * params.in_text_dim * D + params.in_text_dim2 * E + D * E + E * E
    )
    text_block = E * 6 * D + L * D * D * 4 + L * L * D * 2 + L * D * F * 2
    self_attention = S * D * D * 4 + int(S * S * D * 2 * kept)
    cross_attention = S * D * D * 2 + L * D * D * 2 + S * L * D * 2
    visual_block = E * 9 * D + self_attention + cross_attention + S * D * F * 2
    out = E * 2 * D + S * D * patch * params.out_visual_dim
    return embeddings + params.num_text_blocks * text_block + params.num_visual_blocks * visual_block + out


def _kandinsky4(params: kandinsky4.DiTParams, S: int, L: int, kept: float) -> int:
    """Both streams pass each of the 2·num_blocks blocks; every group holds all of the text."""
    D, F, E, patch = params.model_dim, params.ff_dim, params.time_dim, math.prod(params.patch_size)
    G = math.prod(params.num_groups)
    embeddings = S * patch * params.input_channels * D + L * params.in_text_dim * D + D * E + E * E
    attention = G * (S // G + L) ** 2 * D * 2
    block = 2 * E * 6 * D + (S + L) * (4 * D * D + 2 * D * F) + attention
    out = E * 2 * D + S * D * patch * params.out_visual_dim
    return embeddings + 2 * params.num_blocks * block + out


COUNTS: dict[type, Callable[[Any, int, int, float], int]] = {
    kandinsky5.DiTParams: _kandinsky5,
    kandinsky4.DiTParams: _kandinsky4,
}
