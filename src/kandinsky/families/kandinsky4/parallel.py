"""How the work of the Kandinsky 4 transformer is split over processes.

Legend: F frames, P tokens of a frame, L text tokens, N heads, K head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4.dit import JointMix, Kind, Where, attend_jointly
from kandinsky.runtime.parallel.context import HEADS, Context
from kandinsky.runtime.parallel.exchange import join_parts, narrow, shares, span
from kandinsky.runtime.parallel.ring import ring_attention
from kandinsky.runtime.parallel.split import Cut, SplitRules


def joint_mix(context: Context, tokens: int) -> JointMix:
    """Attention among the tokens of all processes: each has its share of each frame, and the whole text."""

    def shared(visual: Sequence[Tensor], text: Sequence[Tensor], where: Where, kind: Kind) -> tuple[Tensor, Tensor]:
        heads = visual[0].shape[HEADS]
        head_counts = shares(heads, context.ulysses.size())
        own_heads = span(head_counts, context.ulysses.rank())
        visual = context.to_heads(visual, tokens)
        text = [narrow(x, x.dim() + HEADS, own_heads) for x in text]
        if context.ring.size() > 1:
            seen, heard = _joint_ring(context, visual, text, where, tokens)
        else:
            seen, heard = attend_jointly(visual, text, where, kind)
        if context.ulysses.size() > 1:
            heard = join_parts(heard, HEADS, head_counts, context.ulysses)
        return context.to_tokens(seen, tokens, heads), heard

    return shared


def _joint_ring(
    context: Context, visual: Sequence[Tensor], text: Sequence[Tensor], where: Where, tokens: int
) -> tuple[Tensor, Tensor]:
    pack = where.pack
    if len(pack.buckets) > 1:
        raise RequestError(f"clips of {list(pack.frames)} frames cannot share a ring: use equal lengths or `ulysses`")
    frames = pack.frames[0]
    q, k, v = (x.unflatten(0, (pack.count, frames)).flatten(1, 2) for x in visual)
    queries = torch.cat((q, text[0]), dim=1)
    counts = [frames * count for count in context.ring_counts(tokens)]
    mixed = ring_attention(queries, k, v, counts, context.ring, beside=(text[1], text[2], where.mask_BL))
    seen, heard = mixed.split((q.shape[1], text[0].shape[1]), dim=1)
    return seen.unflatten(1, (frames, -1)).flatten(0, 1), heard


def _arguments(context: Context, args: tuple[Any, ...]) -> tuple[Any, ...]:
    visual_FPD, text_BLD, e_BE, where = args
    tokens = where.rotation.table.shape[-4]
    own = context.own(tokens)
    part = where.rotation.part(own.start, own.stop - own.start)
    return visual_FPD, text_BLD, e_BE, dataclasses.replace(where, rotation=part, mix=joint_mix(context, tokens))


SPLIT = SplitRules(
    blocks=lambda net: net.blocks(),
    arguments=_arguments,
    cut=Cut(
        by_outputs=("self_attention.to_query_key_value", "feed_forward.in_layer"),
        by_inputs=("self_attention.output_layer", "feed_forward.out_layer"),
        fused={"self_attention.to_query_key_value": 3},
        per_head=("self_attention.query_norm", "self_attention.key_norm"),
    ),
)
