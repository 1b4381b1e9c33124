"""Keys and values of finished chunks of frames, block by block, for networks under causal attention.

What a finished chunk's tokens are asked for by later ones does not change any more, so it is computed once. Keys are
held as they are before they are turned: their position is counted within what a chunk sees (``ops/causal.py``), and
changes as the window rolls on. What rolls out of it is forgotten, so memory does not grow with the clip.

Legend: B batch; S tokens of a chunk; N heads; K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.blocks import Mix
from kandinsky.ops.causal import attend
from kandinsky.ops.rope import Rotation

Pair = tuple[Tensor, Tensor]  # keys and values, each [B, S, N, K]


class KeyValues:
    """What one pass (a network with one text) remembers of finished chunks.

    Args:
        spec: Causal attention, which says what is kept.
    """

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self.chunks: list[int] = []  # frames of those that are kept
        self._blocks: dict[int, list[Pair]] = {}
        self._new: dict[int, Pair] | None = None

    @property
    def frames(self) -> int:
        """Latent frames that the next chunk sees before itself."""
        return sum(self.chunks)

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return sum(x.nbytes for pairs in self._blocks.values() for pair in pairs for x in pair)

    @contextmanager
    def keeping(self, frames: int) -> Iterator[None]:
        """While a finished chunk passes through the network, keep its keys and values; no gradient goes into them.

        Args:
            frames: Latent frames of the chunk.
        """
        self._new = {}
        try:
            yield
            for block, pair in self._new.items():
                self._blocks[block] = self.spec.kept([*self._blocks.get(block, []), pair])
            if self._new:
                self.chunks = self.spec.kept([*self.chunks, frames])
        finally:
            self._new = None

    def mix(self, block: int, rotation: Rotation) -> Mix:
        """The attention of a chunk's tokens to themselves and to what is kept.

        What is kept is looked up now, not when the mix runs: a block that is computed again for its gradient, after
        more chunks were finished, sees what it saw.

        Args:
            block: Number of the block.
            rotation: Turns of the tokens of ``frames`` frames and of the chunk.
        """
        before, new, backend = list(self._blocks.get(block, [])), self._new, self.spec.backend

        def mix(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor) -> Tensor:
            if new is not None and block not in new:
                new[block] = (k_BSNK.detach(), v_BSNK.detach())
            return attend(
                q_BSNK, [*(k for k, _ in before), k_BSNK], [*(v for _, v in before), v_BSNK], rotation, backend
            )

        return mix
