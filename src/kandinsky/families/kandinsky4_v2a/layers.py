"""Layers of the video-to-audio U-Net, from small to large. Attribute names make the official tensor names.

Legend: B batch; H W rows and columns of the latent image, C its channels; S = H·W pixels; L text tokens; T frames of
the clip; E width of text and frame states; N heads; K head width; D width of the time embedding.
Images are [B, C, H, W] in memory with the channels last, so that pixels are tokens without a copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.ops.attention import attention
from kandinsky.ops.convolution import Conv2d
from kandinsky.ops.enlarge import convolve_doubled_image
from kandinsky.ops.linear import Linear

TRANSFORMER_EPS = 1e-6  # of the norm before a transformer; written into Diffusers' class


@dataclass(frozen=True, slots=True)
class Heard:
    """Keys and values that one transformer attends to; they are the same at every step of a run.

    Attributes:
        frames_k: [B, T, N, K].
        frames_v: [B, T, N, K].
        text_k: [B, L, N, K].
        text_v: [B, L, N, K].
    """

    frames_k: Tensor
    frames_v: Tensor
    text_k: Tensor
    text_v: Tensor


class Conditions:
    """Text and frames of one run, and what each transformer computes from them.

    That is computed when a transformer first runs, and not before: its weights may be on the device only then.

    Args:
        text_BLE: Embeddings of B prompts.
        frames_BTE: Embeddings of B clips.
    """

    def __init__(self, text_BLE: Tensor, frames_BTE: Tensor) -> None:
        self.text_BLE = text_BLE
        self.frames_BTE = frames_BTE
        self._heard: dict[nn.Module, Heard] = {}

    def heard_by(self, block: TransformerBlock) -> Heard:
        """What a block attends to."""
        if block not in self._heard:
            self._heard[block] = block.hear(self.text_BLE, self.frames_BTE)
        return self._heard[block]


def sinusoid(numbers: Tensor, width: int, *, shift: int = 0, cos_first: bool = False) -> Tensor:
    """Sines and cosines of numbers, [n, width] float32; frequencies fall from 1 to about 1/10000.

    Args:
        numbers: The numbers, [n].
        width: Sines and cosines together.
        shift: With 1 the last frequency is 1/10000 itself; with 0 the next one would be.
        cos_first: Cosines before sines.

    Returns:
        The table.
    """
    half = width // 2
    steps = torch.arange(half, device=numbers.device, dtype=torch.float32)
    # one frequency only: the official formula would divide by zero
    angles = numbers.float()[:, None] * torch.exp(steps * (-math.log(10000) / max(half - shift, 1)))
    sin, cos = angles.sin(), angles.cos()
    return torch.cat((cos, sin) if cos_first else (sin, cos), dim=-1)


class TimeEmbedding(nn.Module):
    """Embeds the level: its sines and cosines → D."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, out)
        self.linear_2 = Linear(out, out)

    def forward(self, waves_BC: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(waves_BC.to(self.linear_1.weight.dtype))))
        return out


class ResNet(nn.Module):
    """Two convolutions with a skip connection; the time embedding is added between.

    Args:
        scale: Divisor of the result.
    """

    def __init__(self, channels: int, out: int, time_width: int, params: V2AParams, scale: float = 1.0) -> None:
        super().__init__()
        groups, eps = params.norm_num_groups, params.norm_eps
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = Linear(time_width, out)
        self.norm2 = nn.GroupNorm(groups, out, eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = Conv2d(channels, out, 1) if channels != out else None
        self.scale = scale

    def forward(self, x_BCHW: Tensor, time_BD: Tensor) -> Tensor:
        x = self.conv1(F.silu(self.norm1(x_BCHW)))
        x = x + self.time_emb_proj(F.silu(time_BD))[:, :, None, None]
        x = self.conv2(F.silu(self.norm2(x)))
        past = x_BCHW if self.conv_shortcut is None else self.conv_shortcut(x_BCHW)
        out: Tensor = past + x if self.scale == 1 else (past + x) / self.scale
        return out


class FrameConditions(nn.Module):
    """The layers by which self-attention also attends to the clip's frames (official: ``VideoAttnProcessor``).

    ``video_out`` starts at zero: untrained, it changes nothing.
    """

    def __init__(self, channels: int, encoder_dim: int) -> None:
        super().__init__()
        self.video_q = Linear(channels, channels)
        self.video_k = Linear(encoder_dim, channels)
        self.video_v = Linear(encoder_dim, channels)
        self.video_out = Linear(channels, channels)
        nn.init.zeros_(self.video_out.weight)
        nn.init.zeros_(self.video_out.bias)

    def keys_values(self, frames_BTE: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, T, N, K]; the place of a frame is added to both, the same for every head."""
        k = self.video_k(frames_BTE).unflatten(-1, (num_heads, -1))
        v = self.video_v(frames_BTE).unflatten(-1, (num_heads, -1))
        places = torch.arange(k.shape[1], device=k.device)
        code = sinusoid(places, k.shape[-1], shift=1).to(k.dtype)[:, None]
        return k + code, v + code


class TextConditions(nn.Module):
    """Projects text embeddings to the width of the cross-attention, in each layer (official processor)."""

    def __init__(self, encoder_dim: int, width: int) -> None:
        super().__init__()
        self.text_projection = Linear(encoder_dim, width)


class AttentionLayers(nn.Module):
    """Projections of one attention, under Diffusers' names; ``processor`` holds what the conditions add."""

    def __init__(self, channels: int, context: int, processor: nn.Module) -> None:
        super().__init__()
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context, channels, bias=False)
        self.to_v = Linear(context, channels, bias=False)
        self.to_out = nn.ModuleList([Linear(channels, channels)])
        self.processor = processor


class SelfAttention(AttentionLayers):
    """Attention of pixels among themselves; its output also attends to the frames of the clip, and both are added."""

    processor: FrameConditions

    def __init__(self, channels: int, params: V2AParams) -> None:
        super().__init__(channels, channels, FrameConditions(channels, params.encoder_dim))
        self.num_heads = params.num_heads

    def forward(self, x_BSC: Tensor, heard: Heard) -> Tensor:
        heads = (self.num_heads, -1)
        q, k, v = (layer(x_BSC).unflatten(-1, heads) for layer in (self.to_q, self.to_k, self.to_v))
        x = self.to_out[0](attention(q, k, v).flatten(2))
        asked = self.processor.video_q(x).unflatten(-1, heads)
        told = attention(asked, heard.frames_k, heard.frames_v).flatten(2)
        out: Tensor = x + self.processor.video_out(told)
        return out


class CrossAttention(AttentionLayers):
    """Attention of pixels to the text."""

    processor: TextConditions

    def __init__(self, channels: int, params: V2AParams) -> None:
        width = params.cross_attention_dim
        super().__init__(channels, width, TextConditions(params.encoder_dim, width))
        self.num_heads = params.num_heads

    def keys_values(self, text_BLE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, N, K]."""
        context = self.processor.text_projection(text_BLE)
        heads = (self.num_heads, -1)
        return self.to_k(context).unflatten(-1, heads), self.to_v(context).unflatten(-1, heads)

    def forward(self, x_BSC: Tensor, heard: Heard) -> Tensor:
        q = self.to_q(x_BSC).unflatten(-1, (self.num_heads, -1))
        out: Tensor = self.to_out[0](attention(q, heard.text_k, heard.text_v).flatten(2))
        return out


class GatedGelu(nn.Module):
    """C → 4·C, one half gated by the other."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = Linear(channels, 2 * hidden)

    def forward(self, x_BSC: Tensor) -> Tensor:
        x, gate = self.proj(x_BSC).chunk(2, dim=-1)
        out: Tensor = x * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # the place between is dropout in the official list; it has no tensors
        self.net = nn.Sequential(GatedGelu(channels, 4 * channels), nn.Identity(), Linear(4 * channels, channels))

    def forward(self, x_BSC: Tensor) -> Tensor:
        out: Tensor = self.net(x_BSC)
        return out


class TransformerBlock(nn.Module):
    """Self attention with the frames, cross attention to the text, a feed-forward layer."""

    def __init__(self, channels: int, params: V2AParams) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, params)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, params)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def hear(self, text_BLE: Tensor, frames_BTE: Tensor) -> Heard:
        """Keys and values of the conditions."""
        frames = self.attn1.processor.keys_values(frames_BTE, self.attn1.num_heads)
        return Heard(*frames, *self.attn2.keys_values(text_BLE))

    def forward(self, x_BSC: Tensor, conditions: Conditions) -> Tensor:
        heard = conditions.heard_by(self)
        x = x_BSC + self.attn1(self.norm1(x_BSC), heard)
        x = x + self.attn2(self.norm2(x), heard)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class Transformer(nn.Module):
    """Pixels as tokens through one block, with a skip connection."""

    def __init__(self, channels: int, params: V2AParams) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(params.norm_num_groups, channels, TRANSFORMER_EPS)
        self.proj_in = Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, params)])
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor, conditions: Conditions) -> Tensor:
        tokens = self.proj_in(self.norm(x_BCHW)).flatten(2).transpose(1, 2)
        tokens = self.transformer_blocks[0](tokens, conditions)
        out: Tensor = x_BCHW + self.proj_out(tokens.transpose(1, 2).unflatten(2, x_BCHW.shape[2:]))
        return out


class Downsample(nn.Module):
    """Halves the sides. Padding 0 pads below and right only, as Diffusers does."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.conv(x_BCHW if self.conv.padding != (0, 0) else F.pad(x_BCHW, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Enlarges to a given size by the nearest pixel: odd sides must be restored exactly, so doubling is not enough."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor, size: torch.Size) -> Tensor:
        if size == torch.Size(2 * side for side in x_BCHW.shape[2:]):
            return convolve_doubled_image(x_BCHW, self.conv)
        out: Tensor = self.conv(F.interpolate(x_BCHW, size=size, mode="nearest"))
        return out
