"""A plan's figures where several processes make one clip: what each of them holds. No torch.

The first process also encodes the text and, where decoding is not shared, decodes; the others hold the transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky.runtime.parallel.layout import Layout


@dataclass(frozen=True, slots=True)
class Company:
    """Several processes. why: this layout.   everyone: names of the networks that all of them hold."""

    layout: Layout
    why: str
    everyone: tuple[str, ...] = ("dit",)


def dit_weights(whole: int, in_blocks: int, one_block: int, layout: Layout) -> int:
    """Bytes of a transformer's weights on one process.

    Args: whole, in_blocks, one_block: bytes of all weights, of all blocks together, of one.
    """
    cut = whole - in_blocks + in_blocks // layout.tp
    if layout.fsdp == 1:
        return cut
    # its shard of everything, and the whole of a block while it runs and of the next, which is on its way
    return cut // layout.fsdp + 2 * one_block // layout.tp


def dit_work(work: int, layout: Layout) -> int:
    """Bytes of activations on one process: its tokens; cut widths are not counted, the stream stays whole."""
    return work // layout.context
