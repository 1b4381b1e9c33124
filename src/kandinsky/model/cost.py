"""What a network costs in one generation, for plans. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky.model.values import LatentShape, VideoShape


@dataclass(frozen=True, slots=True)
class Load:
    """What a generation asks of the networks.

    shape, latent: of one clip.   steps: of the sampler.   passes: of the denoiser in all, guidance counted.
    width: bytes of a number of the compute type.   kept: share of the blocks that block-sparse attention computes.
    """

    shape: VideoShape
    latent: LatentShape
    steps: int
    passes: int
    width: int
    kept: float = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one network.

    in_blocks, block, linear: shares of its weights in blocks, in the largest block, and in layers that are quantised.
    work:  bytes of activations at their peak.   block_work: the same under offload `block`; None = the same.
    flops: operations of all its passes.   tokens: a block sees at once.
    """

    work: int
    flops: float = 0.0
    tokens: int = 0
    in_blocks: float = 0.0
    block: float = 0.0
    linear: float = 0.0
    block_work: int | None = None
