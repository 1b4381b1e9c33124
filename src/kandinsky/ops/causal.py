"""Causal attention over frames: chunks of frames that see themselves and earlier chunks, never later ones.

Each chunk is one dense product with the tokens it may see, so every backend and autograd serve, and no mask is made.
Positions in time count what a chunk sees, from the first frame it sees on: a window that rolls on never leaves the
positions that the network was trained at, and frames that are kept for ever stay next to it. Without such frames that
is no other attention than at a frame's place in the clip, since rotary positions are relative.

Legend: B batch; S tokens, frame by frame; N heads; K width of a head; L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kandinsky.ops.attention import attention
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.blocks import Mix
from kandinsky.ops.precision import island
from kandinsky.ops.rope import Rotation


def causal_attention(
    q_BSNK: Tensor,
    k_BSNK: Tensor,
    v_BSNK: Tensor,
    *,
    spec: AttentionSpec,
    frames: int,
    rotation: Rotation | None = None,
) -> Tensor:
    """Attend within a clip, chunk by chunk.

    Args:
        q_BSNK: Queries.
        k_BSNK: Keys.
        v_BSNK: Values.
        spec: Of type "causal".
        frames: Latent frames in S, all of the same number of tokens.
        rotation: Turns of the clip's tokens, where queries and keys are not turned yet: see ``turns_itself``.

    Returns:
        [B, S, N, K]; equal to dense attention under a mask of the same shape.
    """
    tokens = q_BSNK.shape[1] // frames * spec.frames
    q, k, v = (x.split(tokens, dim=1) for x in (q_BSNK, k_BSNK, v_BSNK))
    out = []
    for number, own in enumerate(q):
        seen = [*spec.seen(number), number]
        out.append(attend(own, [k[n] for n in seen], [v[n] for n in seen], rotation, spec.backend))
    return torch.cat(out, dim=1)


def attend(
    q_BSNK: Tensor, k: Sequence[Tensor], v: Sequence[Tensor], rotation: Rotation | None, backend: str = "auto"
) -> Tensor:
    """A chunk's attention to the chunks it sees, itself the last.

    Args:
        q_BSNK: Queries of the chunk.
        k: Keys of each.
        v: Values of each.
        rotation: Turns of the places of all these tokens, or of more; None where they are turned.
        backend: See ``attention``.
    """
    k_BLNK, v_BLNK = (torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0] for parts in (k, v))
    if rotation is not None:
        count, own = k_BLNK.shape[1], q_BSNK.shape[1]
        q_BSNK = turned(q_BSNK, rotation.part(count - own, own))
        k_BLNK = turned(k_BLNK, rotation.part(0, count))
    return attention(q_BSNK, k_BLNK, v_BLNK, backend=backend)


def turned(x_BSNK: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys in float32, rounded to their own type."""
    with island(x_BSNK):
        return rotation(x_BSNK.float()).to(x_BSNK.dtype)


def turns_itself(spec: AttentionSpec) -> bool:
    """Whether a chunk's positions are not those of the clip, so that the mix turns queries and keys."""
    return spec.type == "causal" and spec.sink > 0 and spec.reach > 0


def causal_mix(spec: AttentionSpec, frames: int, rotation: Rotation | None = None) -> Mix:
    """``causal_attention`` of clips of so many latent frames."""
    return partial(causal_attention, spec=spec, frames=frames, rotation=rotation)


@dataclass(frozen=True, slots=True)
class ChunkTexts:
    """Texts of a clip's chunks: those of one prompt, each in the state it has at its chunk's time.

    As the mix of cross attention it takes keys and values of all of them, one text behind the other.

    Attributes:
        count: Of chunks.
        tokens: Visual tokens of a chunk; the last may have fewer.
        mask_BL: Text tokens that count, the same of every text.
        start: The first of the visual tokens that are there, where a process has a part of them.
    """

    count: int
    tokens: int
    mask_BL: Tensor | None = None
    start: int = 0

    def part(self, start: int) -> ChunkTexts:
        """For visual tokens from this one on."""
        return replace(self, start=self.start + start)

    def __call__(self, q_BSNK: Tensor, k_BLNK: Tensor, v_BLNK: Tensor) -> Tensor:
        texts = zip(k_BLNK.chunk(self.count, dim=1), v_BLNK.chunk(self.count, dim=1), strict=True)
        out = []
        for number, (k, v) in enumerate(texts):
            first, stop = (max(0, n * self.tokens - self.start) for n in (number, number + 1))
            if own := q_BSNK[:, first:stop].shape[1]:
                out.append(attention(q_BSNK[:, first : first + own], k, v, mask=self.mask_BL))
        return torch.cat(out, dim=1)
