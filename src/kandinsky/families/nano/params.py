"""Hyper-parameters of Nano's own networks. No torch."""

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


MOST_SUBJECTS = 3  # of a scene
GRID = 6  # places of a portrait's codes, along each side
PORTRAIT, FRAMES = 144, 25  # pixels of a portrait's side, and its frames
CELL = PORTRAIT // (2 * GRID)  # pixels of the finest places, along each side
PIXELS, MOVES = 128, 320
"""Components of the finest places in one frame, and in all of them; see ``portraits.py``."""


@dataclass(frozen=True, slots=True)
class LinearPatchParams:
    """Sizes of the map. A clip has 1 + temporal·k frames and k + 1 latent frames."""

    latent_channels: int = 192
    temporal: int = 8
    spatial: int = 16

    @property
    def still_features(self) -> int:
        return self.spatial**2 * 3

    @property
    def moving_features(self) -> int:
        return self.temporal * self.still_features


@dataclass(frozen=True, slots=True)
class NanoDecoderParams:
    """Widths and numbers of blocks from the latent's grid to half the pixels, each stage twice as fine."""

    widths: tuple[int, int, int, int] = (160, 64, 48, 32)
    blocks: tuple[int, int, int, int] = (2, 2, 1, 1)


@dataclass(frozen=True, slots=True)
class NanoPatchParams(Readable):
    """Hyper-parameters of the second Nano's autoencoder: a linear encoder, and a decoder that is learned.

    Attributes:
        latent_channels: C of the latent.
        temporal: Pixel frames of a latent frame, but the first.
        spatial: Pixels of a latent along each side.
        widths: Channels of the decoder from the latent's grid to half the pixels.
        depths: Blocks at each of these widths.
    """

    what = "autoencoder parameter"
    latent_channels: int = 192
    temporal: int = 8
    spatial: int = 16
    widths: tuple[int, int, int, int] = NanoDecoderParams().widths
    depths: tuple[int, int, int, int] = NanoDecoderParams().blocks

    @property
    def linear(self) -> LinearPatchParams:
        return LinearPatchParams(self.latent_channels, self.temporal, self.spatial)

    @property
    def decoder(self) -> NanoDecoderParams:
        return NanoDecoderParams(self.widths, self.depths)


@dataclass(frozen=True, slots=True)
class NanoSceneParams(Readable):
    """Hyper-parameters of the second Nano's memory of words.

    Attributes:
        concepts: How many things it can show.
        codes: Channels of a token: codes of a place of a portrait.
        pooled: Channels of the pooled vector.
    """

    what = "memory parameter"
    concepts: int = 574
    codes: int = 768
    pooled: int = 256
