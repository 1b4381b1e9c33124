"""What every video autoencoder offers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class VideoAutoencoder(Protocol):
    """Clips to latents and back. Legend: B batch, T frames, H rows, W columns, C channels.

    A clip of 1 + n·temporal frames has 1 + n latent frames; one frame is a still image.
    """

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Pixels in [-1, 1] → latents as the denoiser sees them: the posterior's mode, scaled."""
        ...

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Latents as the denoiser sees them → pixels, about [-1, 1], not clamped."""
        ...
