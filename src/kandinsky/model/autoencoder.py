"""The interface of every video autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    # (shape, type) -> memory outside the device
    Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
    # one tile to or from latents
    Coder = Callable[[Tensor], Tensor]
    # (coder, pixel frames per latent frame, pixels per latent pixel) -> a coder that distributes the tiles
    Spread = Callable[[Coder, int, int], Coder]


@runtime_checkable
class VideoAutoencoder(Protocol):
    """Encodes clips to latents and decodes them. Legend: B batch, T frames, H rows, W columns, C channels.

    A clip of 1 + n·temporal frames has 1 + n latent frames; one frame is a still image.
    """

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Encode pixels.

        Args:
            video_BTHWC: Pixels in [-1, 1].

        Returns:
            Latents as the denoiser sees them: the posterior's mode, scaled.
        """
        ...

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Decode latents.

        Args:
            latents_BTHWC: Latents as the denoiser sees them.

        Returns:
            Pixels, about [-1, 1], not clamped.
        """
        ...


@runtime_checkable
class StreamingAutoencoder(VideoAutoencoder, Protocol):
    """Also decodes a clip piece by piece, holding no more of it than the piece needs."""

    def decode_pieces(self, latents_BTHWC: Tensor) -> Iterator[Tensor]:
        """Decode latents piece by piece.

        Args:
            latents_BTHWC: Latents as the denoiser sees them.

        Yields:
            Pixels [B, t, H, W, C] in order of time; together they equal ``decode``'s.
        """
        ...


@runtime_checkable
class CarryingAutoencoder(VideoAutoencoder, Protocol):
    """Also decodes a clip whose end is not known yet: what later frames need of earlier ones is carried along."""

    def decode_more(self, latents_BTHWC: Tensor, carried: Any = None) -> tuple[Tensor, Any]:
        """Decode the next latent frames of a clip.

        Args:
            latents_BTHWC: Latents as the denoiser sees them.
            carried: What the call before returned; None at the beginning, where the first latent frame is one pixel
                frame.

        Returns:
            Pixels [B, t, H, W, C], and what the next call is given.
        """
        ...


@runtime_checkable
class LayeredAutoencoder(VideoAutoencoder, Protocol):
    """Can decode layer by layer, the same function in less memory and more time; see ``families/parts/layered.py``.

    Attributes:
        layered: Whether it does.
        allocate: Makes memory that is not the device's, from (shape, type).
    """

    layered: bool
    allocate: Allocate


def decode_pieces(vae: VideoAutoencoder, latents_BTHWC: Tensor, chunk: int | None = None) -> Iterator[Tensor]:
    """Decode latents piece by piece, or in one piece if the autoencoder does not stream.

    Args:
        vae: The autoencoder.
        latents_BTHWC: Latents as the denoiser sees them.
        chunk: Latent frames of the pieces in which the clip was made, where a stream of it would be decoded so too.

    Yields:
        Pixels [B, t, H, W, C] in order of time.
    """
    if chunk is not None and isinstance(vae, CarryingAutoencoder):
        carried = None
        for latents in latents_BTHWC.split(chunk, dim=1):
            pixels, carried = vae.decode_more(latents.contiguous(), carried)
            yield pixels
    elif isinstance(vae, StreamingAutoencoder):
        yield from vae.decode_pieces(latents_BTHWC)
    else:
        yield vae.decode(latents_BTHWC)
