"""The HunyuanVideo decoder one layer at a time: every layer runs over all frames in chunks before the next begins.

The whole clip at once needs several copies of the widest layer. Decoding frame after frame, as causal convolutions
would allow, is not the same function: each of the decoder's 30 group norms takes its mean and variance over all frames
and pixels. So a layer is finished for all frames first; its output is kept (`_Kept`), its statistics are summed up on
the way, and the next layer starts. The result equals the whole decode up to the order of float sums.

What is held, for a clip of T latent frames of h × w, at the widest point and in the released sizes:
- on the device: one chunk of a few frames (``CHUNK`` numbers a tensor), whatever T is; the keys and values of the
  middle block, 2·512 numbers a latent position; and what is kept, while it is smaller than ``ON_DEVICE`` bytes;
- on the host otherwise: 256 numbers a pixel of the finished clip. This grows with T. Tiles in time bound it.
What is enlarged is wider than all else, and made twice in place of keeping it: in all 1.1 times the arithmetic of the
whole decode on a processor and 1.3 times on a GPU (the official tiles in time: 2.3 times).

Legend: activations are [1, C, T, H, W], with the channels last in memory; G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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
        net: The network of ``HunyuanAutoencoder``.
        z: The latents.
        allocate: Makes memory for what is too large for the device.

    Yields:
        Pixels.
    """
    for pieces in zip(*(_decode(net, clip, allocate) for clip in z.split(1)), strict=True):
        yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _decode(net: Any, z: Tensor, allocate: Allocate) -> Iterator[Tensor]:
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
    norm, conv = _Norm(decoder.conv_norm_out, stats, decoder.conv_act), _CausalConv(decoder.conv_out)
    for x in source.chunks():
        yield conv(x, norm)


def _middle(block: Any) -> Iterator[tuple[Any, Any | None]]:
    """Residual blocks of the middle, each with the attention layer in front of it."""
    yield from zip(block.resnets, (None, *block.attentions), strict=True)


class _Source(Protocol):
    """Frames of a layer, readable any number of times.

    Attributes:
        frames: Their number.
    """

    frames: int

    def chunks(self) -> Iterator[Tensor]: ...


class _Convolved:
    """The first convolution of the latents."""

    def __init__(self, z: Tensor, conv: Any) -> None:
        self.z, self.conv, self.frames = z, conv, z.shape[2]

    def chunks(self) -> Iterator[Tensor]:
        conv = _CausalConv(self.conv)
        for x in self.z.split(_frames(conv.conv.out_channels, *self.z.shape[3:]), dim=2):
            yield conv(x)


class _Enlarged:
    """Frames enlarged in space, and in time but for the first, then convolved; made again each time."""

    def __init__(self, source: _Source, layer: Any) -> None:
        assert isinstance(source, _Kept)
        self.source, self.layer = source, layer
        self.time, *self.space = (int(factor) for factor in layer.upsample_factor)
        self.frames = (source.frames - 1) * self.time + 1

    def chunks(self) -> Iterator[Tensor]:
        _, _, H, W = self.source.shape
        size = _frames(self.layer.conv.conv.out_channels, H * self.space[0], W * self.space[1])
        past: Tensor | None = None
        for x in self.source.chunks(max(1, size // self.time)):
            before = x[:, :, :1].expand(-1, -1, self.layer.past, -1, -1) if past is None else past
            yield self.layer.behind(before, x, first=past is None)
            past = torch.cat((before, x), dim=2)[:, :, -self.layer.past :]


class _Kept:
    """All frames of one layer's output, on the device while they are small."""

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor, allocate: Allocate) -> None:
        C, T, H, W = self.shape = shape
        self.device, self.frames = like.device, T
        frames_first = (1, T, H, W, C)  # so that a chunk is one stretch of memory
        is_small = C * T * H * W * like.element_size() <= ON_DEVICE
        self.data = like.new_empty(frames_first) if is_small else allocate(frames_first, like.dtype)

    def chunks(self, frames: int | None = None) -> Iterator[Tensor]:
        C, _, H, W = self.shape
        for part in self.data.split(frames or _frames(C, H, W), dim=1):
            yield part.to(self.device).permute(0, 4, 1, 2, 3)

    def write(self, start: int, x: Tensor) -> None:
        self.data[:, start : start + x.shape[2]].copy_(x.permute(0, 2, 3, 4, 1))


@dataclass(slots=True)
class _Statistics:
    """Mean and variance of the groups of a layer, gathered over chunks. [G], float64."""

    groups: int
    count: float = 0.0
    mean: Tensor | None = None
    squares: Tensor | None = None  # sum of squared distances from the mean

    def add(self, x: Tensor) -> None:
        count = x.numel() // self.groups
        mean, squares = _moments(x, self.groups)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean, squares
            return
        # Chan's rule for joining two sets; plain sums of squares would cancel
        whole = self.count + count
        distance = mean - self.mean
        self.squares = self.squares + squares + distance.square() * (self.count * count / whole)
        self.mean = self.mean + distance * (count / whole)
        self.count = whole


def _moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Of each group the mean, and the sum of squared distances from it; [G], float64.

    First of each channel, which the processor does side by side, then of the group's channels by Chan's rule.
    """
    rows = x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    means = rows.mean(0)
    squares = (rows - means).square_().sum(0)
    each = means.double().view(groups, -1)
    mean = each.mean(1)
    apart = (each - mean[:, None]).square().sum(1) * len(rows)
    return mean, squares.double().view(groups, -1).sum(1) + apart


class _Norm:
    """A group norm whose statistics are known, with the activation behind it."""

    def __init__(self, norm: Any, stats: _Statistics, act: nn.Module | None = None) -> None:
        assert stats.mean is not None and stats.squares is not None
        each = norm.num_channels // norm.num_groups
        deviation = (stats.squares / stats.count + norm.eps).rsqrt().repeat_interleave(each)
        scale = deviation * norm.weight.double()
        shift = norm.bias.double() - stats.mean.repeat_interleave(each) * scale
        self.type = torch.promote_types(norm.weight.dtype, torch.float32)
        self.scale, self.shift = (t.to(self.type)[None, :, None, None, None] for t in (scale, shift))
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        normed = torch.addcmul(self.shift, x.to(self.type), self.scale).to(x.dtype)
        return normed if self.act is None else self.act(normed)


class _CausalConv:
    """A causal convolution that remembers the last frames it saw."""

    def __init__(self, layer: Any) -> None:
        self.conv: nn.Conv3d = layer.conv
        self.side, self.front = layer.time_causal_padding[0], layer.time_causal_padding[4]
        assert layer.pad_mode == "replicate"
        self.before: Tensor | None = None

    def __call__(self, x: Tensor, norm: _Norm | None = None) -> Tensor:
        """Normalise, if told to, and convolve."""
        x = x if norm is None else norm(x)
        if self.front or self.side:
            x = self._padded(x)
        out: Tensor = self.conv(x)
        return out

    def _padded(self, x: Tensor) -> Tensor:
        side, front = self.side, self.front
        B, C, T, H, W = x.shape
        padded = x.new_empty(B, T + front, H + 2 * side, W + 2 * side, C).permute(0, 4, 1, 2, 3)
        own = padded[:, :, front:]
        own[..., side : side + H, side : side + W] = x
        for number in range(side):
            for place, edge in ((number, side), (-1 - number, -1 - side)):
                own[..., side : side + H, place] = own[..., side : side + H, edge]
            for place, edge in ((number, side), (-1 - number, -1 - side)):
                own[..., place, :] = own[..., edge, :]
        padded[:, :, :front] = own[:, :, :1] if self.before is None else self.before
        if front:
            self.before = padded[:, :, -front:].clone()  # a view would keep the whole chunk alive
        return padded


def _residual(block: Any, source: _Source, stats: _Statistics | None, allocate: Allocate) -> tuple[_Kept, _Statistics]:
    """One residual block over all frames."""
    act, groups = block.nonlinearity, block.norm1.num_groups
    skips = source if block.conv_shortcut is None else None
    if not isinstance(skips, _Kept):
        shortcut = None if block.conv_shortcut is None else _CausalConv(block.conv_shortcut)
        stats, writing = _Statistics(groups), _Writing(source.frames, allocate)
        for x in source.chunks():
            stats.add(x)
            writing(x if shortcut is None else shortcut(x))
        skips = writing.kept
        source = skips if shortcut is None else source
    assert stats is not None
    norm1, conv1 = _Norm(block.norm1, stats, act), _CausalConv(block.conv1)
    inner, writing = _Statistics(groups), _Writing(source.frames, allocate)
    for x in source.chunks():
        y = conv1(x, norm1)
        inner.add(y)
        writing(y)
    kept = writing.kept
    norm2, conv2, after, start = _Norm(block.norm2, inner, act), _CausalConv(block.conv2), _Statistics(groups), 0
    for x, past in zip(kept.chunks(), skips.chunks(), strict=True):
        y = conv2(x, norm2).add_(past)
        kept.write(start, y)
        after.add(y)
        start += y.shape[2]
    return kept, after


class _Writing:
    """Keeps a layer's output as it comes."""

    def __init__(self, frames: int, allocate: Allocate) -> None:
        self._frames, self._allocate, self._done = frames, allocate, 0
        self._kept: _Kept | None = None

    def __call__(self, x: Tensor) -> None:
        if self._kept is None:
            self._kept = _Kept((x.shape[1], self._frames, x.shape[3], x.shape[4]), x, self._allocate)
        self._kept.write(self._done, x)
        self._done += x.shape[2]

    @property
    def kept(self) -> _Kept:
        assert self._kept is not None
        return self._kept


def _attend(layer: Any, kept: _Kept, stats: _Statistics) -> _Statistics:
    """The middle block's attention: a token sees its own and earlier frames. All keys and values are on the device."""
    norm = _Norm(layer.group_norm, stats)
    frame = kept.shape[2] * kept.shape[3]

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


def _frames(channels: int, H: int, W: int) -> int:
    return max(1, CHUNK // (channels * H * W))
