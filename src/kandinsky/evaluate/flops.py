"""Floating-point operations of the transformer, counted from its hyper-parameters; a multiply-add is two.

Legend: S visual tokens, L text tokens, D width, F hidden width, E time width. Only products are counted: what remains
(norms, gates, activations) grows with S·D and is below a per cent at full size.
"""

from __future__ import annotations

from collections.abc import Sequence

from kandinsky.nets.kandinsky5.dit import DiTParams


def dit_flops(params: DiTParams, latent: Sequence[int], text_tokens: int, *, kept: float = 1.0) -> int:
    """Of one pass over one clip.

    Args: latent: frames, rows, columns.   kept: share of the self attention's blocks that is computed (NABLA).
    """
    D, F, E, L = params.model_dim, params.ff_dim, params.time_dim, text_tokens
    cells = 1
    for size, patch in zip(latent[:3], params.patch_size, strict=True):
        cells *= size // patch
    S = cells
    patch = params.patch_size[0] * params.patch_size[1] * params.patch_size[2]
    embeddings = (
        S * patch * params.input_channels * D + L * params.in_text_dim * D + params.in_text_dim2 * E + D * E + E * E
    )
    text_block = E * 6 * D + L * D * D * 4 + L * L * D * 2 + L * D * F * 2
    self_attention = S * D * D * 4 + int(S * S * D * 2 * kept)
    cross_attention = S * D * D * 2 + L * D * D * 2 + S * L * D * 2
    visual_block = E * 9 * D + self_attention + cross_attention + S * D * F * 2
    out = E * 2 * D + S * D * patch * params.out_visual_dim
    blocks = params.num_text_blocks * text_block + params.num_visual_blocks * visual_block
    return 2 * (embeddings + blocks + out)
