"""How the work of the Kandinsky 5 transformer is split over processes."""

from __future__ import annotations

from typing import Any

from kandinsky.ops.causal import ChunkTexts
from kandinsky.ops.packed import Segments
from kandinsky.runtime.parallel.context import Context
from kandinsky.runtime.parallel.split import Cut, SplitRules


def _arguments(context: Context, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x_BSD, text_BLD, e, rotation, told, mix = args
    tokens = rotation.table.shape[-4]
    own = context.own(tokens)
    part = rotation.part(own.start, own.stop - own.start)
    if isinstance(told, ChunkTexts):
        told = told.part(own.start)
    given = part, told, context.mix(mix, tokens)
    if e.ndim == 2:
        return x_BSD, text_BLD, e, *given
    segments, frames = Segments.of_frames(e.shape[1], tokens // e.shape[1], own)
    return x_BSD, text_BLD, e[:, frames], *given, segments


_HEADS = tuple(
    f"{part}.to_{name}" for part in ("self_attention", "cross_attention") for name in ("query", "key", "value")
)
SPLIT = SplitRules(
    blocks=lambda net: net.visual_transformer_blocks,
    arguments=_arguments,
    cut=Cut(
        by_outputs=(*_HEADS, "feed_forward.in_layer"),
        by_inputs=("self_attention.out_layer", "cross_attention.out_layer", "feed_forward.out_layer"),
        per_head=tuple(
            f"{part}.{name}_norm" for part in ("self_attention", "cross_attention") for name in ("query", "key")
        ),
    ),
)
