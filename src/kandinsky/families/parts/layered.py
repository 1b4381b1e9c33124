"""The HunyuanVideo decoder one layer at a time: every layer runs over all frames in chunks before the next begins.

The whole clip at once needs several copies of the widest layer. Decoding frame after frame, as causal convolutions
would allow, is not the same function: each of the decoder's 30 group norms takes its mean and variance over all frames
and pixels. So a layer is finished for all frames first; its output is kept (`Kept`), its statistics are summed up on
the way, and the next layer starts. The result equals the whole decode up to the order of float sums.

What is held, for a clip of T latent frames of h × w, at the widest point and in the released sizes:
- on the device: one chunk of a few frames (``CHUNK`` numbers a tensor), whatever T is; the keys and values of the
  middle block, 2·512 numbers a latent position; and what is kept, while it is smaller than ``ON_DEVICE`` bytes;
- on the host otherwise: 128 numbers a pixel of the finished clip. This grows with T. Tiles in time bound it.
The first convolution of each residual block runs twice and those after an enlargement three times, in place of keeping
their outputs: in all about twice the arithmetic of the whole decode (the official tiles in time: 2.3 times).

Legend: activations are [B, C, T, H, W]; G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.parts.tiles import CHUNK, ON_DEVICE
from kandinsky.ops.attention import attention

# (shape, type) -> memory that is not the device's; the default is the host's
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


def on_host(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Plain main memory."""
    return torch.empty(shape, dtype=dtype)


def decode_layered(net: Any, z: Tensor, allocate: Allocate = on_host) -> Iterator[Tensor]:
    """Pixels [B, 3, t, H, W] of latents [B, C, T, h, w], piece by piece in time, first frame first.

    Args:
        net: Diffusers' ``AutoencoderKLHunyuanVideo`` or a network of its parts.
        z: The latents.
        allocate: Makes memory for what is too large for the device.

    Yields:
        Pixels.
    """
    decoder = net.decoder
    source: _Source = _Convolved(net.post_quant_conv(z), decoder.conv_in)
    stats: _Statistics | None = None
    for resnet, layer in _middle(decoder.mid_block):
        if layer is not None:
            assert isinstance(source, _Kept) and stats is not None
            stats = _attend(layer, source, stats)
        source, stats = _residual(resnet, source, stats, allocate)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            source, stats = _residual(resnet, source, stats, allocate)
        for enlarge in block.upsamplers or ():
            source, stats = _Enlarged(source, enlarge), None
    assert isinstance(source, _Kept) and stats is not None
    norm, conv = _Norm(decoder.conv_norm_out, stats), _CausalConv(decoder.conv_out)
    for x in source.chunks():
        yield conv(decoder.conv_act(norm(x)))


def _middle(block: Any) -> Iterator[tuple[Any, Any | None]]:
    """Residual blocks of the middle, each with the attention layer in front of it."""
    yield from zip(block.resnets, (None, *block.attentions), strict=True)


class _Source(Protocol):
    """Frames of a layer, readable any number of times."""

    def chunks(self) -> Iterator[Tensor]: ...


class _Convolved:
    """The first convolution of the latents: small enough to be recreated each time."""

    def __init__(self, z: Tensor, conv: Any) -> None:
        self.z, self.conv = z, conv

    def chunks(self) -> Iterator[Tensor]:
        conv = _CausalConv(self.conv)
        for x in self.z.split(_frames(conv.out_channels, *self.z.shape[3:]), dim=2):
            yield conv(x)


class _Enlarged:
    """Frames enlarged in space, and in time but for the first, then convolved; recreated each time."""

    def __init__(self, source: _Source, layer: Any) -> None:
        assert isinstance(source, _Kept)
        self.source, self.layer = source, layer

    def chunks(self) -> Iterator[Tensor]:
        conv = _CausalConv(self.layer.conv)
        time, *space = (int(factor) for factor in self.layer.upsample_factor)
        H, W = self.source.shape[3] * space[0], self.source.shape[4] * space[1]
        is_first = True
        for x in self.source.chunks(max(1, _frames(conv.out_channels, H, W) // time)):
            parts = []
            if is_first:
                parts.append(_nearest(x[:, :, :1], (1, *space)))
                x, is_first = x[:, :, 1:], False
            if x.shape[2]:
                parts.append(_nearest(x, (time, *space)))
            yield conv(torch.cat(parts, dim=2))


def _nearest(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    for dim, factor in enumerate(factors, start=2):
        if factor > 1:
            x = x.repeat_interleave(factor, dim=dim)
    return x


class _Kept:
    """All frames of one layer's output, on the device while they are small."""

    def __init__(self, shape: tuple[int, ...], like: Tensor, allocate: Allocate) -> None:
        B, C, T, H, W = self.shape = shape
        self.device = like.device
        frames_first = (T, B, C, H, W)  # so that a chunk is one stretch of memory
        numbers = B * C * T * H * W
        self.data = (
            like.new_empty(frames_first)
            if numbers * like.element_size() <= ON_DEVICE
            else allocate(frames_first, like.dtype)
        )

    def chunks(self, frames: int | None = None) -> Iterator[Tensor]:
        frames = frames or _frames(self.shape[1], *self.shape[3:])
        for part in self.data.split(frames):
            yield part.to(self.device).permute(1, 2, 0, 3, 4)

    def write(self, start: int, x: Tensor) -> None:
        self.data[start : start + x.shape[2]].copy_(x.permute(2, 0, 1, 3, 4))


@dataclass(slots=True)
class _Statistics:
    """Mean and variance of the groups of a layer, gathered over chunks. [B, G], float64."""

    groups: int
    count: float = 0.0
    mean: Tensor | None = None
    squares: Tensor | None = None  # sum of squared distances from the mean

    def add(self, x: Tensor) -> None:
        values = x.float().reshape(x.shape[0], self.groups, -1)  # x is contiguous in nothing but its groups
        variance, mean = torch.var_mean(values, dim=-1, correction=0)
        count, variance, mean = values.shape[-1], variance.double(), mean.double()
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean, variance * count
            return
        # Chan's rule for joining two sets; plain sums of squares would cancel
        whole = self.count + count
        distance = mean - self.mean
        self.squares = self.squares + variance * count + distance.square() * (self.count * count / whole)
        self.mean = self.mean + distance * (count / whole)
        self.count = whole


class _Norm:
    """A group norm whose statistics are known."""

    def __init__(self, norm: Any, stats: _Statistics) -> None:
        assert stats.mean is not None and stats.squares is not None
        each = norm.num_channels // norm.num_groups
        deviation = (stats.squares / stats.count + norm.eps).rsqrt().repeat_interleave(each, dim=1)
        scale = deviation * norm.weight.double()
        shift = norm.bias.double() - stats.mean.repeat_interleave(each, dim=1) * scale
        self.scale, self.shift = (t.float()[:, :, None, None, None] for t in (scale, shift))

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x.float(), self.scale).to(x.dtype)


class _CausalConv:
    """A causal convolution that remembers the last frames it saw."""

    def __init__(self, layer: Any) -> None:
        *self.space, self.front, _ = layer.time_causal_padding
        self.mode = layer.pad_mode
        self.conv: nn.Conv3d = layer.conv
        self.out_channels = self.conv.out_channels
        self.before: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.front:
            before = x[:, :, :1].expand(-1, -1, self.front, -1, -1) if self.before is None else self.before
            x = torch.cat([before, x], dim=2)
            self.before = x[:, :, -self.front :].clone()  # a view would keep the whole chunk alive
        if any(self.space):
            x = F.pad(x, (*self.space, 0, 0), mode=self.mode)
        out: Tensor = self.conv(x)
        return out


def _residual(block: Any, source: _Source, stats: _Statistics | None, allocate: Allocate) -> tuple[_Kept, _Statistics]:
    """One residual block over all frames; what is kept is overwritten where it has the same shape."""
    act, groups = block.nonlinearity, block.norm1.num_groups
    if stats is None:
        stats = _Statistics(groups)
        for x in source.chunks():
            stats.add(x)
    norm1, conv1 = _Norm(block.norm1, stats), _CausalConv(block.conv1)
    inner = _Statistics(groups)
    for x in source.chunks():
        inner.add(conv1(act(norm1(x))))
    conv1, norm2, conv2 = _CausalConv(block.conv1), _Norm(block.norm2, inner), _CausalConv(block.conv2)
    shortcut = None if block.conv_shortcut is None else _CausalConv(block.conv_shortcut)
    kept = source if isinstance(source, _Kept) and shortcut is None else None
    after, start, frames = _Statistics(groups), 0, _count(source)
    for x in source.chunks():
        y = conv2(act(norm2(conv1(act(norm1(x)))))) + (x if shortcut is None else shortcut(x))
        if kept is None:
            kept = _Kept((*y.shape[:2], frames, *y.shape[3:]), y, allocate)
        kept.write(start, y)
        after.add(y)
        start += y.shape[2]
    assert kept is not None
    return kept, after


def _attend(layer: Any, kept: _Kept, stats: _Statistics) -> _Statistics:
    """The middle block's attention: a token sees its own and earlier frames. All keys and values are on the device."""
    norm = _Norm(layer.group_norm, stats)
    frame = kept.shape[3] * kept.shape[4]

    def tokens(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 4, 1).flatten(1, 3)

    def heads(linear: nn.Module, x_BSD: Tensor) -> Tensor:
        out: Tensor = linear(x_BSD).unflatten(-1, (layer.heads, -1))
        return out

    pairs = [(heads(layer.to_k, n), heads(layer.to_v, n)) for n in (tokens(norm(x)) for x in kept.chunks())]
    k, v = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
    del pairs
    after, start = _Statistics(stats.groups), 0
    for x in kept.chunks():
        q = heads(layer.to_q, tokens(norm(x)))
        ends = range((start + 1) * frame, (start + x.shape[2]) * frame + 1, frame)
        mixed = [attention(part, k[:, :end], v[:, :end]) for part, end in zip(q.split(frame, 1), ends, strict=True)]
        y = layer.to_out[0](torch.cat(mixed, dim=1).flatten(-2)) + tokens(x)
        y = y.unflatten(1, x.shape[2:]).permute(0, 4, 1, 2, 3)
        kept.write(start, y)
        after.add(y)
        start += x.shape[2]
    return after


def _count(source: _Source) -> int:
    """Frames a source has."""
    if isinstance(source, _Kept):
        return source.shape[2]
    if isinstance(source, _Convolved):
        return source.z.shape[2]
    assert isinstance(source, _Enlarged)
    return (source.source.shape[2] - 1) * int(source.layer.upsample_factor[0]) + 1


def _frames(channels: int, H: int, W: int) -> int:
    return max(1, CHUNK // (channels * H * W))
