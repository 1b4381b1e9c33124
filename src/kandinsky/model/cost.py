"""What a network costs in one generation, for plans. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from kandinsky.model.values import LatentShape, VideoShape

if TYPE_CHECKING:
    from kandinsky.ops.attention_spec import AttentionSpec

PROMPT_TOKENS = 128  # of an average prompt, if its length is not known


@dataclass(frozen=True, slots=True)
class Operations:
    """Amount of work by kind, since each kind reaches a different share of a processor's peak.

    Floating-point operations; a multiply-add is two.

    Attributes:
        linear: Operations of linear layers.
        convolution: Operations of convolutions.
        attention: Operations of the two matrix products of dense attention.
        scores: Number of scores of dense attention, one for each query, key and head; each costs an exponential.
        sparse: Operations of the two matrix products of block-sparse attention, in the blocks that are computed.
        moved: Bytes read and written by element-wise steps between these layers, each fused.
        kernels: Number of kernels launched one after another.
    """

    linear: float = 0.0
    convolution: float = 0.0
    attention: float = 0.0
    scores: float = 0.0
    sparse: float = 0.0
    moved: float = 0.0
    kernels: float = 0.0

    @classmethod
    def attending(cls, queries: float, keys: float, width: float, head: float) -> Operations:
        """The operations of dense attention with all heads.

        Args:
            queries: Number of queries.
            keys: Number of keys.
            width: Width of all heads together.
            head: Width of one head.

        Returns:
            The operations.
        """
        pairs = queries * keys
        return cls(attention=4 * pairs * width, scores=pairs * width / head)

    def __add__(self, other: Operations) -> Operations:
        return Operations(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Operations:
        return Operations(*(getattr(self, f.name) * times for f in fields(self)))

    @property
    def flops(self) -> float:
        """All floating-point operations of layers."""
        return self.linear + self.convolution + self.attention + self.sparse


@dataclass(frozen=True, slots=True)
class Load:
    """What a generation asks of one network.

    Attributes:
        shape: One clip, in pixels.
        latent: One clip, for the denoiser.
        steps: Sampling steps.
        is_guided: Whether each step takes two passes.
        width: Bytes of a number of the compute type.
        attention: The visual self attention.
        weights: Bytes of the network's weights on its device.
    """

    shape: VideoShape
    latent: LatentShape
    steps: int
    is_guided: bool
    width: int
    attention: AttentionSpec
    weights: int = 0

    @property
    def prompts(self) -> int:
        """Number of prompts that are encoded: the prompt, and with guidance the negative prompt."""
        return 1 + self.is_guided

    @property
    def passes(self) -> int:
        """Number of passes of the denoiser, including those of guidance."""
        return self.steps * self.prompts


@dataclass(frozen=True, slots=True)
class Cost:
    """What one network costs in one generation.

    Attributes:
        work: Peak bytes of activations.
        operations: Everything it computes.
        tokens: Tokens that its blocks see at once.
        in_blocks: Share of its weights in blocks.
        block: Share of its weights in the largest block.
        linear: Share of its weights in layers that are quantised.
        block_work: Peak bytes of activations under offload `block`; None = as ``work``.
        kept: Share of the blocks that block-sparse attention is expected to compute; 1 if it is dense.
    """

    work: int
    operations: Operations = Operations()
    tokens: int = 0
    in_blocks: float = 0.0
    block: float = 0.0
    linear: float = 0.0
    block_work: int | None = None
    kept: float = 1.0
