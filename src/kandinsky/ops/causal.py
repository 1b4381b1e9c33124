"""Causal attention over frames: chunks of frames that see themselves and earlier chunks, never later ones.

Each chunk is one dense product with the tokens it may see, so every backend and autograd serve, and no mask is made.

Legend: B batch; S tokens, frame by frame; N heads; K width of a head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kandinsky.ops.attention import attention
from kandinsky.ops.attention_spec import AttentionSpec


def causal_attention(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor, *, spec: AttentionSpec, frames: int) -> Tensor:
    """Attend within a clip, chunk by chunk.

    Args:
        q_BSNK: Queries.
        k_BSNK: Keys.
        v_BSNK: Values.
        spec: Of type "causal".
        frames: Latent frames in S, all of the same number of tokens.

    Returns:
        [B, S, N, K]; equal to dense attention under a mask of the same shape.
    """
    frame = q_BSNK.shape[1] // frames
    out = []
    for start in range(0, frames, spec.frames):
        stop, first = min(start + spec.frames, frames), spec.first_seen(start)
        chunk, seen = slice(start * frame, stop * frame), slice(first * frame, stop * frame)
        out.append(attention(q_BSNK[:, chunk], k_BSNK[:, seen], v_BSNK[:, seen], backend=spec.backend))
    return torch.cat(out, dim=1)


def causal_mix(spec: AttentionSpec, frames: int) -> partial[Tensor]:
    """``causal_attention`` of clips of so many latent frames."""
    return partial(causal_attention, spec=spec, frames=frames)
