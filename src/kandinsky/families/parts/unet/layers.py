"""Layers of the U-Net, from small to large. Attribute names make official tensor names (see ``weights/keymaps.py``).

Legend: R rows = B clips times T frames, the frames of a clip side by side; H W rows and columns; C channels; D width of
the conditions; S pixels of a frame; N heads; K head width; L text tokens. Everything is channels last, so that pixels
are tokens, and frames a second axis, without a copy.

A *condition* is the input of a norm's modulation: [rows, D], activation already applied; ``rows`` divides R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.ops.attention import attention
from kandinsky.ops.linear import Linear, linear


@dataclass(frozen=True, slots=True)
class Told:
    """The conditions of one pass, for all layers.

    Attributes:
        spatial: Condition of everything within a frame, one row per clip.
        temporal: Condition along time.
        place: Condition of the first norm of an attention along time.
        context_BLC: Text embeddings.
        mask_BL: True where a text token counts.
        frames: T.
        mixes: Whether anything is done along time.
    """

    spatial: Tensor
    temporal: Tensor
    place: Tensor
    context_BLC: Tensor
    mask_BL: Tensor | None
    frames: int
    mixes: bool


class TimeMLP(nn.Sequential):
    """A number → a condition of width D, by way of sines and cosines. The sines are made in float32.

    Quirk: frequencies fall to 1/10000 at the last of ``half``, hence the half − 1.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Identity(), nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, numbers_R: Tensor) -> Tensor:
        first: nn.Linear = self[1]  # type: ignore[assignment]
        half = first.in_features // 2
        steps = torch.arange(half, device=numbers_R.device, dtype=torch.float32)
        angles = numbers_R.float()[:, None] * torch.exp(steps * (-math.log(10000) / (half - 1)))
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        out: Tensor = self[3](self[2](first(waves.to(first.weight.dtype))))
        return out


class ConditionalNorm(nn.Module):
    """Group normalisation without weights of its own, then scaled and shifted by a condition."""

    def __init__(self, groups: int, channels: int, condition: int) -> None:
        super().__init__()
        self.groups = groups
        self.context_mlp = nn.Sequential(nn.Identity(), nn.Linear(condition, 2 * channels))

    def forward(self, x_RHWC: Tensor, condition: Tensor) -> Tensor:
        told = self.context_mlp(condition)
        if (repeats := len(x_RHWC) // len(told)) > 1:
            told = told.repeat_interleave(repeats, dim=0)
        scale, shift = told[:, None, None].chunk(2, dim=-1)
        normed = F.group_norm(x_RHWC.permute(0, 3, 1, 2), self.groups, eps=1e-5).permute(0, 2, 3, 1)
        return torch.addcmul(shift, normed, scale + 1)


class Attention(nn.Module):
    """Queries from one side, keys and values from the other; all layers without bias."""

    def __init__(self, channels: int, context: int, out: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_query = Linear(channels, out, bias=False)
        self.to_key = Linear(context, out, bias=False)
        self.to_value = Linear(context, out, bias=False)
        self.output_layer = Linear(out, out, bias=False)

    def forward(self, x_BSC: Tensor, context_BLC: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        if context_BLC.shape[1] == 1:  # one token gets all the weight, whatever the query
            out: Tensor = self.output_layer(self.to_value(context_BLC))
            return out
        heads = (-1, self.head_dim)
        q, k = self.to_query(x_BSC).unflatten(-1, heads), self.to_key(context_BLC).unflatten(-1, heads)
        mixed = attention(q, k, self.to_value(context_BLC).unflatten(-1, heads), mask=mask_BL)
        out = self.output_layer(mixed.flatten(2))
        return out


class FeedForward(nn.Sequential):
    """C → C·ratio → C at every pixel. The weights are those of 1×1 convolutions."""

    def __init__(self, channels: int, ratio: int) -> None:
        hidden = channels * ratio
        super().__init__(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.SiLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )

    def forward(self, x_RHWC: Tensor) -> Tensor:
        first, last = self[0].weight, self[2].weight
        return linear(F.silu(linear(x_RHWC, first.flatten(1)), inplace=True), last.flatten(1))  # type: ignore


class AttentionBlock(nn.Module):
    """Attention and a feed-forward layer: of a frame's pixels among themselves or to the text, or along time.

    Args:
        context: Width of the text embeddings, for attention to them.
        merged: Along time, both parts are blended in by learned weights and nothing is summed.
    """

    def __init__(self, channels: int, params: UNetParams, *, context: int | None = None, merged: bool = False) -> None:
        super().__init__()
        self.in_norm = ConditionalNorm(params.groups, channels, params.time_embed_dim)
        self.attention = Attention(channels, context or channels, channels, params.head_dim)
        self.out_norm = ConditionalNorm(params.groups, channels, params.time_embed_dim)
        self.feed_forward = FeedForward(channels, params.expansion_ratio)
        self.merged = merged
        if merged:
            self.temporal_merge1 = nn.Parameter(torch.zeros(1))
            self.temporal_merge2 = nn.Parameter(torch.zeros(1))

    def over_pixels(self, x_RHWC: Tensor, told: Tensor) -> Tensor:
        """Self-attention within each frame."""
        tokens = self.in_norm(x_RHWC, told).flatten(1, 2)
        x = x_RHWC + self.attention(tokens, tokens).view_as(x_RHWC)
        out: Tensor = x + self.feed_forward(self.out_norm(x, told))
        return out

    def to_text(self, x_RHWC: Tensor, told: Told) -> Tensor:
        """Cross-attention: the pixels of all frames of a clip to the clip's text."""
        B = len(told.context_BLC)
        tokens = x_RHWC.new_empty(0)
        if told.context_BLC.shape[1] > 1:
            tokens = self.in_norm(x_RHWC, told.spatial).reshape(B, -1, x_RHWC.shape[-1])
        mixed = self.attention(tokens, told.context_BLC, told.mask_BL)
        x = (x_RHWC.reshape(B, -1, x_RHWC.shape[-1]) + mixed).view_as(x_RHWC)
        out: Tensor = x + self.feed_forward(self.out_norm(x, told.spatial))
        return out

    def over_time(self, x_RHWC: Tensor, told: Told) -> Tensor:
        """Self-attention of each pixel along its clip."""
        R, H, W, C = x_RHWC.shape
        T = told.frames
        normed = self.in_norm(x_RHWC, told.place)
        tokens = normed.view(-1, T, H * W, C).transpose(1, 2).reshape(-1, T, C)
        mixed = self.attention(tokens, tokens)
        mixed = mixed.view(-1, H * W, T, C).transpose(1, 2).reshape(R, H, W, C)
        if not self.merged:
            x = x_RHWC + mixed
            out: Tensor = x + self.feed_forward(self.out_norm(x, told.temporal))
            return out
        x = torch.lerp(x_RHWC, mixed, self.temporal_merge1)
        return torch.lerp(x, self.feed_forward(self.out_norm(x, told.temporal)), self.temporal_merge2)


def convolve_time(x_RHWC: Tensor, weight: Tensor, bias: Tensor | None, frames: int) -> Tensor:
    """A convolution over the frames of each clip, the same at every pixel; zeros beyond the ends.

    weight: [out, in, k, 1, 1] of a three-dimensional convolution.
    """
    R, H, W, C = x_RHWC.shape
    weight = weight[..., 0]
    if weight.shape[2] == 1:
        return linear(x_RHWC, weight.flatten(1), bias)
    # time is one axis of an image, all pixels of a frame the other: with channels last this is a view
    x = x_RHWC.reshape(-1, frames, H * W, C).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, 0)).permute(0, 2, 3, 1).reshape(R, H, W, -1)


class GapMix(nn.Module):
    """(1 − m)·x + m·convolution of x over neighbouring gaps, m learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temporal_merge = nn.Parameter(torch.zeros(1))
        self.temporal_projection = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x_RHWC: Tensor, frames: int) -> Tensor:
        layer = self.temporal_projection
        return torch.lerp(x_RHWC, convolve_time(x_RHWC, layer.weight, layer.bias, frames), self.temporal_merge)


def _convolve(layer: nn.Conv2d | nn.ConvTranspose2d, x_RHWC: Tensor) -> Tensor:
    if layer.kernel_size == (1, 1):
        return linear(x_RHWC, layer.weight.flatten(1), layer.bias)
    out: Tensor = layer(x_RHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out


class Block(nn.Module):
    """Norm, activation, [doubling], convolution, [mix over gaps], [halving]."""

    def __init__(
        self, channels: int, out: int, kernel: int, params: UNetParams, *, up: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        self.group_norm = ConditionalNorm(params.groups, channels, params.time_embed_dim)
        self.up_sample = nn.ConvTranspose2d(channels, channels, 2, 2) if up else None
        self.projection = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        self.mix = GapMix(out) if params.temporal.gap_mixing else None
        self.down_sample = nn.Conv2d(out, out, 2, 2) if down else None

    def forward(self, x_RHWC: Tensor, told: Told) -> Tensor:
        x = F.silu(self.group_norm(x_RHWC, told.spatial), inplace=True)
        if self.up_sample is not None:
            x = _convolve(self.up_sample, x)
        x = _convolve(self.projection, x)
        if self.mix is not None and told.mixes:
            x = self.mix(x, told.frames)
        return x if self.down_sample is None else _convolve(self.down_sample, x)


class ResNetBlock(nn.Module):
    """Four blocks through a narrow middle, with a skip connection."""

    def __init__(self, channels: int, out: int, params: UNetParams, *, up: bool = False, down: bool = False) -> None:
        super().__init__()
        hidden = max(channels, out) // params.compression_ratio
        self.resnet_blocks = nn.ModuleList(
            [
                Block(channels, hidden, 1, params),
                Block(hidden, hidden, 3, params, up=up),
                Block(hidden, hidden, 3, params, down=down),
                Block(hidden, out, 1, params),
            ]
        )
        self.shortcut_up_sample = nn.ConvTranspose2d(channels, channels, 2, 2) if up else None
        self.shortcut_projection = nn.Conv2d(channels, out, 1) if channels != out else None
        self.shortcut_down_sample = nn.Conv2d(out, out, 2, 2) if down else None

    def forward(self, x_RHWC: Tensor, told: Told) -> Tensor:
        x = x_RHWC
        for block in self.resnet_blocks:
            x = block(x, told)
        past = x_RHWC
        for layer in (self.shortcut_up_sample, self.shortcut_projection, self.shortcut_down_sample):
            past = past if layer is None else _convolve(layer, past)
        return past + x


class TemporalResNetBlock(nn.Module):
    """The same along time: four convolutions over the frames, with a skip connection."""

    def __init__(self, channels: int, params: UNetParams) -> None:
        super().__init__()
        hidden = channels // params.compression_ratio
        widths = (channels, hidden, hidden, hidden, channels)
        self.temporal_resnet_blocks = nn.ModuleList(
            [
                nn.Sequential(
                    ConditionalNorm(params.groups, before, params.time_embed_dim),
                    nn.SiLU(),
                    nn.Conv3d(before, after, (kernel, 1, 1), padding=(kernel // 2, 0, 0)),
                )
                for before, after, kernel in zip(widths, widths[1:], (1, 3, 3, 1), strict=False)
            ]
        )

    def forward(self, x_RHWC: Tensor, told: Told) -> Tensor:
        x = x_RHWC
        for stage in self.temporal_resnet_blocks:
            norm, layer = stage.get_submodule("0"), cast(nn.Conv3d, stage.get_submodule("2"))
            x = convolve_time(F.silu(norm(x, told.temporal), inplace=True), layer.weight, layer.bias, told.frames)
        return x_RHWC + x
