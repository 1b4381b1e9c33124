"""The CogVideoX causal 3D autoencoder: Diffusers' network behind our interface.

Clips pass in pieces of a few frames whose convolutions remember the piece before, as the official code does; the
normalisation looks at one piece, so the pieces are part of the result. Memory does not grow with the length of a clip
if the pieces are consumed one by one (``decode_pieces``).

Legend: B batch, T frames, H rows, W columns, C channels; pixels in [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError, needs
from kandinsky.families.parts.params import LATENT_PIECE, PIXEL_PIECE, CogVideoXParams
from kandinsky.ops.enlarge import convolve_doubled_image

LOGVAR_RANGE = (-30.0, 20.0)


class Doubling(nn.Module):
    """Diffusers' layer that doubles clips in space, and in time if asked, and convolves each frame; its names.

    Frames that are repeated are convolved once.
    """

    def __init__(self, conv: nn.Conv2d, in_time: bool) -> None:
        super().__init__()
        self.conv = conv
        self.in_time = in_time

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames = x_BCTHW.shape[2]
        images = convolve_doubled_image(x_BCTHW.transpose(1, 2).flatten(0, 1), self.conv)
        x: Tensor = images.unflatten(0, (-1, frames)).transpose(1, 2)
        if not self.in_time or frames == 1:
            return x
        once = frames % 2  # the first frame of a clip stands alone
        return torch.cat((x[:, :, :once], x[:, :, once:].repeat_interleave(2, dim=2)), dim=2)


class CogVideoXAutoencoder(nn.Module):
    """Encode and decode in the official pieces. Weights load with ``keymaps.COGVIDEOX_VAE``; the network is ``net``.

    Source: ai-forever/Kandinsky-4, kandinsky/t2v_pipeline.py; Diffusers, AutoencoderKLCogVideoX.

    Attributes:
        latent_piece: Latent frames of a piece when decoding. The released model decodes two; images were decoded with
            one.

    Raises:
        BackendError: Diffusers is not installed.
    """

    def __init__(self, params: CogVideoXParams | None = None, *, latent_piece: int = LATENT_PIECE) -> None:
        super().__init__()
        self.latent_piece = latent_piece
        with needs("diffusers", "the CogVideoX autoencoder"):
            from diffusers import AutoencoderKLCogVideoX
        self.params = params or CogVideoXParams()
        net: Any = AutoencoderKLCogVideoX(**dataclasses.asdict(self.params))
        for block in net.decoder.up_blocks:
            if block.upsamplers is not None:
                block.upsamplers = nn.ModuleList(Doubling(one.conv, one.compress_time) for one in block.upsamplers)
        self.net = net

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Pixels → scaled latents (the posterior's mode). T must be 1 + a multiple of 4, H and W multiples of 8."""
        return self.posterior(video_BTHWC)[0] * self.params.scaling_factor

    def posterior(self, video_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-variance of the latents, channels last, without the scaling factor."""
        moments = torch.cat(list(self._pieces(self.net.encoder, video_BTHWC, PIXEL_PIECE)), dim=1)
        mean, logvar = moments.chunk(2, dim=-1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Scaled latents → pixels.

        Raises:
            RequestError: The number of latent frames is even, as in ``decode_pieces``.
        """
        return torch.cat(list(self.decode_pieces(latents_BTHWC)), dim=1)

    def decode_pieces(self, latents_BTHWC: Tensor) -> Iterator[Tensor]:
        """The same pixels, a few frames at a time: 1 + 4·(n − 1) of the first piece, 4·n of each further one.

        Raises:
            RequestError: The number of latent frames is even. The network takes the first piece of such a clip for a
                later one and makes four frames of the first latent, which it was never trained for.
        """
        first = self._first(latents_BTHWC.shape[1], self.latent_piece)
        if first > 1 and first % 2 == 0:
            raise RequestError(
                f"{latents_BTHWC.shape[1]} latent frames cannot be decoded: their number must be odd, as 1 + 2 a second"
            )
        return self._pieces(self.net.decoder, latents_BTHWC / self.params.scaling_factor, self.latent_piece)

    def encode_piece(self, video_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Mean and clamped log-variance of the latents of a piece of a clip, unscaled.

        Args:
            video_BTHWC: The first piece holds 1 + n · ratio frames, each further one n · ratio.
            memory: What the piece before left; None for the first.

        Returns:
            Both, and what the next piece is given as ``memory``.
        """
        moments, memory = self.net.encoder(video_BTHWC.permute(0, 4, 1, 2, 3), conv_cache=memory)
        mean, logvar = moments.permute(0, 2, 3, 4, 1).chunk(2, dim=-1)
        return mean, logvar.clamp(*LOGVAR_RANGE), memory

    def decode_piece(self, latents_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """Pixels of a piece of unscaled latents, and what the next piece is given as ``memory``."""
        pixels, memory = self.net.decoder(latents_BTHWC.permute(0, 4, 1, 2, 3), conv_cache=memory)
        return pixels.permute(0, 2, 3, 4, 1), memory

    def _pieces(self, coder: Callable[..., Any], x_BTHWC: Tensor, length: int) -> Iterator[Tensor]:
        x = x_BTHWC.to(next(self.net.parameters()).dtype).permute(0, 4, 1, 2, 3)
        frames = x.shape[2]
        memory = None
        start, end = 0, self._first(frames, length)
        while start < frames:
            out, memory = coder(x[:, :, start:end], conv_cache=memory)
            yield out.permute(0, 2, 3, 4, 1)
            start, end = end, end + length

    @staticmethod
    def _first(frames: int, length: int) -> int:
        """Frames of the first piece."""
        return frames - max(frames // length - 1, 0) * length
