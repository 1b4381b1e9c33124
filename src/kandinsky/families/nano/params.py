"""Hyper-parameters of Nano's autoencoder. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kandinsky.model.params import read_params


@dataclass(frozen=True, slots=True)
class NanoAutoencoderParams:
    """latent_channels: C of the latent. width: of the latent grid. fine_width: of the grid of 4 × 4 pixels."""

    latent_channels: int = 48
    temporal: int = 4
    spatial: int = 8
    encoder_width: int = 160
    encoder_blocks: int = 1
    width: int = 192
    blocks: int = 2
    fine_width: int = 64
    fine_blocks: int = 2

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> NanoAutoencoderParams:
        """Raises: RequestError for a key that is not a field."""
        return read_params(cls, values, "autoencoder parameter")

    @property
    def patch_features(self) -> int:
        return self.temporal * self.spatial**2 * 3
