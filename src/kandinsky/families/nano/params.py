"""Hyper-parameters of Nano's autoencoder. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky.model.params import Readable


@dataclass(frozen=True, slots=True)
class NanoAutoencoderParams(Readable):
    """Hyper-parameters of Nano's video autoencoder.

    Attributes:
        latent_channels: C of the latent.
        width: Channels at the resolution of the latent.
        fine_width: Channels at a resolution of 4 × 4 pixels.
    """

    what = "autoencoder parameter"
    latent_channels: int = 48
    temporal: int = 4
    spatial: int = 8
    encoder_width: int = 160
    encoder_blocks: int = 1
    width: int = 192
    blocks: int = 2
    fine_width: int = 64
    fine_blocks: int = 2

    @property
    def patch_features(self) -> int:
        return self.temporal * self.spatial**2 * 3
