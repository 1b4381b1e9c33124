"""The learned half of the second Nano's autoencoder: what the linear decoder cannot say.

The linear decoder's clip shows the borders of its patches. This network sees the latents and that clip, and adds what
is missing: blocks of convolutions at 12 × 12, 24 × 24, 48 × 48 and 96 × 96 places for a clip of 192 × 192, each
looking at its own and the one frame before, so it is causal and can stream. It has no normalisation: nothing depends
on a frame's neighbours in time but by these looks. Spatial convolutions pad with zeros.

Legend: B batch, T frames (latent frames inside the first stage, pixel frames after it), H W rows and columns, C
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.params import NanoDecoderParams as NanoDecoderParams


class CausalBlock(nn.Module):
    """A 3 × 3 convolution in space, then a look at this frame and the one before; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Conv2d(2 * width, width, 1)
        nn.init.zeros_(self.time.weight)
        assert self.time.bias is not None
        nn.init.zeros_(self.time.bias)

    def forward(self, x_NCHW: Tensor, batch: int, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            x_NCHW: Frames of ``batch`` clips in a row, [B·T, C, H, W].
            batch: B.
            last: What it returned of the frames before; None where these are the clips' first frames.

        Returns:
            The frames, and what the next ones need of the last of them.
        """
        h = F.silu(self.space(F.silu(x_NCHW)))
        frames = h.unflatten(0, (batch, -1))
        before = torch.cat([frames[:, :1] if last is None else last, frames[:, :-1]], dim=1).flatten(0, 1)
        out: Tensor = x_NCHW + self.time(torch.cat([h, before], dim=1))
        return out, frames[:, -1:].clone()  # a view would keep all of them


class NanoDecoder(nn.Module):
    """Latents to clips; holds the linear maps, which stay as they are.

    Args:
        linear: The encoder whose latents it decodes.
        params: Sizes.
    """

    def __init__(self, linear: LinearPatches, params: NanoDecoderParams | None = None) -> None:
        super().__init__()
        self.linear, self.params = linear, params or NanoDecoderParams()
        widths = self.params.widths
        self.temporal = linear.params.temporal
        self.first = nn.Conv2d(linear.params.latent_channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList(CausalBlock(width) for _ in range(count))
            for width, count in zip(widths, self.params.blocks, strict=True)
        )
        self.finer = nn.ModuleList(
            nn.Conv2d(coarse, fine * 4 * (self.temporal if stage == 0 else 1), 1)
            for stage, (coarse, fine) in enumerate(pairwise(widths))
        )
        self.seen = nn.Conv2d(12, widths[-1], 3, padding=1)
        self.last = nn.Conv2d(widths[-1], 12, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Encode a video in [-1, 1] of 1 + 8k frames to latents of k + 1 frames, float32."""
        return self.linear.encode(video_BTHWC)

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Decode latents [B, T, H, W, C] to float32 video [B, 1 + 8 (T − 1), 16 H, 16 W, 3] in about [-1, 1]."""
        return self.decode_more(latents_BTHWC)[0]

    def forward(self, latents_BTHWC: Tensor) -> Tensor:
        """``decode``, for training."""
        return self.decode(latents_BTHWC)

    def decode_more(
        self, latents_BTHWC: Tensor, carried: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """As ``model/autoencoder.CarryingAutoencoder``: together the pieces are what ``decode`` gives of the whole."""
        B, T = latents_BTHWC.shape[:2]
        begins, left = carried is None, list[Tensor]()
        coarse = self.linear.decode(latents_BTHWC, begins=begins).permute(0, 1, 4, 2, 3).flatten(0, 1)
        h = latents_BTHWC.to(self.first.weight.dtype).permute(0, 1, 4, 2, 3).flatten(0, 1)
        h = self.first(h.contiguous(memory_format=torch.channels_last))
        for stage, blocks in enumerate(self.stages):
            if stage:
                h = self.finer[stage - 1](h)
                if stage == 1:  # a latent frame becomes eight, of the first only the last is one
                    h = h.unflatten(1, (self.temporal, -1)).unflatten(0, (B, T)).flatten(1, 2)
                    h = h[:, self.temporal - 1 if begins else 0 :].flatten(0, 1)
                h = F.pixel_shuffle(h, 2).contiguous(memory_format=torch.channels_last)
            if stage == len(self.stages) - 1:
                seen = F.pixel_unshuffle(coarse.to(h.dtype), 2)
                h = h + self.seen(seen.contiguous(memory_format=torch.channels_last))
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                h, last = block(h, B, None if carried is None else carried[len(left)])
                left.append(last)
        video = coarse + F.pixel_shuffle(self.last(F.silu(h)), 2).float()
        out: Tensor = video.unflatten(0, (B, -1)).permute(0, 1, 3, 4, 2)
        return out, left
