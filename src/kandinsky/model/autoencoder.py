"""What every video autoencoder offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    # (shape, type) -> memory that is not the device's
    Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
    # one tile to or from latents
    Coder = Callable[[Tensor], Tensor]
    # (coder, pixel frames of a latent frame, pixels of a latent one) -> a coder that shares the tiles out
    Spread = Callable[[Coder, int, int], Coder]


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


@runtime_checkable
class StreamingAutoencoder(VideoAutoencoder, Protocol):
    """Also gives a clip piece by piece, holding no more of it than the piece needs."""

    def decode_pieces(self, latents_BTHWC: Tensor) -> Iterator[Tensor]:
        """Pixels [B, t, H, W, C] in order of time; together they are ``decode``'s."""
        ...


@runtime_checkable
class LayeredAutoencoder(VideoAutoencoder, Protocol):
    """Can decode layer by layer, the same function in less memory and more time, see ``families/parts/layered.py``."""

    layered: bool
    allocate: Allocate


def decode_pieces(vae: VideoAutoencoder, latents_BTHWC: Tensor) -> Iterator[Tensor]:
    """Pixels piece by piece; in one piece from an autoencoder that does not stream."""
    if isinstance(vae, StreamingAutoencoder):
        yield from vae.decode_pieces(latents_BTHWC)
    else:
        yield vae.decode(latents_BTHWC)
