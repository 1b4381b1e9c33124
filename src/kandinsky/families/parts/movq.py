"""MoVQ, the autoencoder of Kandinsky 3 and Kandinsky Video: images, or clips with a decoder that has temporal layers.

The decoder's norms are modulated by the latent itself. There is no codebook and no scaling: latents are the encoder's
output. Names of tensors are the official ones.

Legend: B clips, T frames, H rows, W columns, C channels; R = B·T images; pixels in [-1, 1]. Latents have an eighth of
the sides at full size. Inside, images are [R, C, H, W] in a channels-last memory format.
Source: ai-forever/KandinskyVideo@4e10a23 and @914eac1, movq.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.parts.params import MOVQ_PIECE, MovqParams
from kandinsky.ops.attention import attention
from kandinsky.ops.enlarge import Doubling
from kandinsky.ops.native import images

GROUPS, EPS = 32, 1e-6


@dataclass(frozen=True, slots=True)
class Clips:
    """Conditions of the decoder's layers: latents [R, z, h, w] and the number of frames per clip."""

    latents: Tensor | None
    frames: int


class Norm(nn.Module):
    """Group normalisation; in the decoder scaled and shifted by the latent at each pixel."""

    def __init__(self, channels: int, z_channels: int | None) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(GROUPS, channels, eps=EPS)
        if z_channels is not None:
            self.conv_y = nn.Conv2d(z_channels, channels, 1)
            self.conv_b = nn.Conv2d(z_channels, channels, 1)

    def forward(self, x: Tensor, latents: Tensor | None, *, activates: bool = False) -> Tensor:
        """Of [R, C, H, W]; with ``activates`` the SiLU of it. One pass where our own kernels serve."""
        # a 1x1 convolution and repeating pixels may change places: the small one is convolved
        pieces = None if latents is None else (self.conv_y(latents), self.conv_b(latents))
        sides = None if latents is None else (latents.shape[-2], latents.shape[-1])
        if images.serves(x, self.norm_layer, sides):
            return images.normed(x, self.norm_layer, pieces, activates=activates)
        out: Tensor = self.norm_layer(x)
        if pieces is not None:
            size = (x.shape[-2], x.shape[-1])
            scale, shift = (F.interpolate(piece, size, mode="nearest") for piece in pieces)
            out = torch.addcmul(shift, out, scale)
        return F.silu(out) if activates else out


class ResnetBlock(nn.Module):
    """Two convolutions with a skip connection, each mixed with one along time if the clip's frames are connected."""

    def __init__(self, channels: int, out: int, z_channels: int | None, *, temporal: bool = False) -> None:
        super().__init__()
        self.norm1 = Norm(channels, z_channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = Norm(out, z_channels)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None
        self.temporal = temporal
        if temporal:
            for number in "12":
                self.register_parameter(f"temporal_merge{number}", nn.Parameter(torch.zeros(1)))
                self.add_module(f"temporal_projection{number}", nn.Conv3d(out, out, 3, padding=1))

    def forward(self, x: Tensor, clips: Clips) -> Tensor:
        h = self._mixed(self.conv1(self.norm1(x, clips.latents, activates=True)), "1", clips.frames)
        h = self._mixed(self.conv2(self.norm2(h, clips.latents, activates=True)), "2", clips.frames)
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h

    def _mixed(self, x: Tensor, number: str, frames: int) -> Tensor:
        if not self.temporal:
            return x
        clip = x.unflatten(0, (-1, frames)).transpose(1, 2)
        along = self.get_submodule(f"temporal_projection{number}")(clip).transpose(1, 2).flatten(0, 1)
        return torch.lerp(x, along, self.get_parameter(f"temporal_merge{number}"))


class AttnBlock(nn.Module):
    """Attention with one head: over the pixels of an image, or over the frames of a clip at each pixel."""

    def __init__(self, channels: int, z_channels: int | None) -> None:
        super().__init__()
        self.norm = Norm(channels, z_channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def over_pixels(self, x: Tensor, clips: Clips) -> Tensor:
        latents = clips.latents
        if latents is not None and clips.frames > 1:
            # official quirk: every frame of a clip is normalised with the first frame's latent
            latents = latents[:: clips.frames].repeat_interleave(clips.frames, dim=0)
        tokens = self.norm(x, latents).flatten(2).transpose(1, 2)
        return x + self._attend(tokens).transpose(1, 2).view_as(x)

    def over_time(self, x: Tensor, frames: int) -> Tensor:
        """Official quirk: the norm does not receive the latent, so its convolutions have no effect."""
        tokens = self.norm(x, None).unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2)  # B H W T C
        mixed = self._attend(tokens.flatten(0, 2)).view_as(tokens)
        return x + mixed.permute(0, 3, 4, 1, 2).flatten(0, 1)

    def _attend(self, tokens: Tensor) -> Tensor:
        q, k, v = (F.linear(tokens, one.weight.flatten(1), one.bias)[:, :, None] for one in (self.q, self.k, self.v))
        return F.linear(attention(q, k, v)[:, :, 0], self.proj_out.weight.flatten(1), self.proj_out.bias)


class Halving(nn.Module):
    """A convolution at every second pixel, with zeros added to the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Middle(nn.Module):
    """The narrowest place of both halves."""

    def __init__(self, channels: int, z_channels: int | None, *, temporal: bool, attends_time: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, z_channels, temporal=temporal)
        self.attn_1 = AttnBlock(channels, z_channels)
        self.temporal_attn_1 = AttnBlock(channels, z_channels) if attends_time else None
        self.block_2 = ResnetBlock(channels, channels, z_channels, temporal=temporal)

    def forward(self, x: Tensor, clips: Clips) -> Tensor:
        x = self.attn_1.over_pixels(self.block_1(x, clips), clips)
        if self.temporal_attn_1 is not None:
            x = self.temporal_attn_1.over_time(x, clips.frames)
        out: Tensor = self.block_2(x, clips)
        return out


class Level(nn.Module):
    """The blocks of one size, attention after each where the size has it, and the step to the next size."""

    def __init__(
        self,
        widths: tuple[int, int],
        count: int,
        z_channels: int | None = None,
        *,
        attends: bool,
        temporal: bool = False,
        attends_time: bool = False,
    ) -> None:
        super().__init__()
        before, width = widths
        self.block = nn.ModuleList(
            ResnetBlock(width if i else before, width, z_channels, temporal=temporal) for i in range(count)
        )
        self.attn = nn.ModuleList(AttnBlock(width, z_channels) for _ in range(count if attends else 0))
        along = count if attends and attends_time else 0
        self.temporal_attn = nn.ModuleList(AttnBlock(width, z_channels) for _ in range(along))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor, clips: Clips) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x, clips)
            if len(self.attn):
                x = cast(AttnBlock, self.attn[i]).over_pixels(x, clips)
            if len(self.temporal_attn):
                x = cast(AttnBlock, self.temporal_attn[i]).over_time(x, clips.frames)
        step = self.downsample or self.upsample
        return x if step is None else step(x)


class Encoder(nn.Module):
    """Encode images to latents, each independently."""

    def __init__(self, params: MovqParams) -> None:
        super().__init__()
        widths, last = params.widths, len(params.ch_mult) - 1
        self.conv_in = nn.Conv2d(params.in_channels, params.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level((widths[i - 1] if i else params.ch, width), params.num_res_blocks, attends=params.attends(i))
            level.downsample = Halving(width) if i < last else None
            self.down.append(level)
        self.mid = Middle(widths[-1], None, temporal=False, attends_time=False)
        self.norm_out = Norm(widths[-1], None)
        self.conv_out = nn.Conv2d(widths[-1], params.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        alone = Clips(None, 1)
        x = self.conv_in(x)
        for level in self.down:
            x = level(x, alone)
        out: Tensor = self.conv_out(self.norm_out(self.mid(x, alone), None, activates=True))
        return out


class Decoder(nn.Module):
    """Decodes latents to images. ``up.0`` is the finest level."""

    def __init__(self, params: MovqParams) -> None:
        super().__init__()
        widths, z, last = params.widths, params.z_channels, len(params.ch_mult) - 1
        time = {"temporal": params.temporal, "attends_time": params.temporal and params.temporal_attention_block}
        self.conv_in = nn.Conv2d(z, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], z, **time)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[min(i + 1, last)]
            level = Level((before, width), params.num_res_blocks + 1, z, attends=params.attends(i), **time)
            level.upsample = Doubling(nn.Conv2d(width, width, 3, padding=1)) if i > 0 else None
            self.up.append(level)
        self.norm_out = Norm(widths[0], z)
        self.conv_out = nn.Conv2d(widths[0], params.out_ch, 3, padding=1)

    def forward(self, x: Tensor, clips: Clips) -> Tensor:
        x = self.mid(self.conv_in(x), clips)
        for level in reversed(self.up):
            x = level(x, clips)
        out: Tensor = self.conv_out(self.norm_out(x, clips.latents, activates=True))
        return out


class MovqAutoencoder(nn.Module):
    """Encodes images and clips to latents, and decodes them.

    With ``params.temporal`` a clip is decoded in the official pieces, which affect the result, as frames of different
    pieces are independent; otherwise every frame is an image of its own.
    """

    def __init__(self, params: MovqParams | None = None) -> None:
        super().__init__()
        self.params = params = params or MovqParams()
        z = params.z_channels
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)
        self.quant_conv = nn.Conv2d(z, z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)

    @property
    def offload_blocks(self) -> tuple[str, ...]:
        """Lists of blocks that may be moved one by one."""
        return ("encoder.down", "decoder.up")

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Pixels → latents; H and W must be multiples of 8 (of ``params.spatial``)."""
        images = [self.quant_conv(self.encoder(one)) for one in self._images(video_BTHWC).split(1)]
        return self._clips(torch.cat(images), video_BTHWC)

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Latents → pixels, about [-1, 1], not clamped."""
        return torch.cat(list(self.decode_pieces(latents_BTHWC)), dim=1)

    def decode_pieces(self, latents_BTHWC: Tensor) -> Iterator[Tensor]:
        """The same pixels piece by piece: as many pieces as the clip has latents, divided by 4, at least one."""
        frames = latents_BTHWC.shape[1]
        yield from map(self.decode_whole, latents_BTHWC.chunk(max(frames // MOVQ_PIECE, 1), dim=1))

    def decode_whole(self, latents_BTHWC: Tensor) -> Tensor:
        """All frames as one piece; a network without temporal layers still decodes them one by one."""
        z = self._images(latents_BTHWC)
        frames = latents_BTHWC.shape[1] if self.params.temporal else 1
        done = [self.decoder(self.post_quant_conv(one), Clips(one, frames)) for one in z.split(frames)]
        return self._clips(torch.cat(done), latents_BTHWC)

    def _images(self, x_BTHWC: Tensor) -> Tensor:
        return x_BTHWC.flatten(0, 1).movedim(-1, 1).to(self.quant_conv.weight.dtype)

    def _clips(self, images: Tensor, like_BTHWC: Tensor) -> Tensor:
        out: Tensor = images.movedim(1, -1).unflatten(0, like_BTHWC.shape[:2])
        return out
