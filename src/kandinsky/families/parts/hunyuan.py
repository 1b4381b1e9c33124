"""The HunyuanVideo causal 3D autoencoder: Diffusers' network behind our interface.

Legend: B batch, T frames, H rows, W columns, C channels; pixels in [-1, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import RequestError, needs
from kandinsky.families.parts.carried import run_piece
from kandinsky.families.parts.layered import Allocate, decode_layered, on_host
from kandinsky.families.parts.params import HunyuanParams
from kandinsky.families.parts.progressive import check_grows, grown
from kandinsky.families.parts.tiles import WHOLE_VOXELS, Tiling
from kandinsky.families.parts.tiling import TIME, Coder, Spread, tiled
from kandinsky.ops import convolution
from kandinsky.ops.attention import attention
from kandinsky.ops.enlarge import convolve_doubled, pays
from kandinsky.ops.native import volumes

LOGVAR_RANGE = (-30.0, 20.0)
Tilings = Literal["none", "auto", "official"]


# Diffusers' class decodes no higher ratio; the weights do not depend on it.
DIFFUSERS_TEMPORAL = 4


class CausalMidBlock(nn.Module):
    """Diffusers' middle block, its tensors and names, without the mask.

    A token sees the tokens of its own and of earlier frames. Diffusers and the official code write that as a matrix of
    (frames·rows·columns)² numbers, 145 GB for five seconds of 768x512; here each frame asks the frames up to itself.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attentions = block.attentions
        self.resnets = block.resnets

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] → the same shape."""
        x = self.resnets[0](x)
        for layer, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(x if layer is None else _attend_to_the_past(layer, x))
        return x


class ResidualBlock(nn.Module):
    """Diffusers' residual block, its tensors and names.

    Where our own kernels serve, norm, activation and the edges that are repeated are one pass, and channels lie last in
    memory, as oneDNN's convolutions want them.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut
        self.nonlinearity, self.dropout = block.nonlinearity, block.dropout

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] → the same with other channels."""
        if self._is_fast(x):
            y = self.conv1.conv(volumes.normed(x, self.norm1, activates=True, front=2, side=1))
            y = self.conv2.conv(volumes.normed(y, self.norm2, activates=True, front=2, side=1))
            return y.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))  # type: ignore[no-any-return]
        x = x.contiguous()
        y = self.conv1(self.nonlinearity(self.norm1(x)))
        y = self.conv2(self.dropout(self.nonlinearity(self.norm2(y))))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))  # type: ignore[no-any-return]

    def _is_fast(self, x: Tensor) -> bool:
        known = isinstance(self.nonlinearity, nn.SiLU) and not (self.training and self.dropout.p)
        for norm, layer in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            known = known and type(norm) is nn.GroupNorm and _is_own(layer) and layer.pad_mode == "replicate"
            known = known and tuple(layer.time_causal_padding) == (1, 1, 1, 1, 2, 0)
            known = known and volumes.serves(x, norm.num_channels) and norm.weight.dtype is x.dtype
        return bool(known)


def _is_own(layer: Any) -> bool:
    """Whether a causal convolution may be taken apart: nobody wrote over its pass (``carried``) or watches it."""
    return "forward" not in vars(layer) and not (layer._forward_hooks or layer._forward_pre_hooks)


class EnlargingConv(nn.Module):
    """Diffusers' layer that enlarges by the nearest pixel and convolves causally, its tensors and names.

    In time every frame is doubled but a clip's first.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.conv = layer.conv
        self.upsample_factor = layer.upsample_factor

    @property
    def past(self) -> int:
        """Frames before those of a piece that are needed."""
        return 2 // int(self.upsample_factor[0])

    def forward(self, x: Tensor) -> Tensor:
        """A whole clip [B, C, T, H, W]."""
        layer: nn.Conv3d = self.conv.conv
        is_fast = self.conv.pad_mode == "replicate" and volumes.serves(x, layer.in_channels)
        if is_fast and _is_own(self.conv):
            if pays(x, layer):
                padded = volumes.normed(x, None, activates=False, front=self.past, side=1)
                return self._doubled(padded, first=True)
            alone = int(self.upsample_factor[0]) - 1
            x = x.contiguous(memory_format=volumes.LAST)
            x = F.interpolate(x, scale_factor=self.upsample_factor, mode="nearest")[:, :, alone:]
            return layer(volumes.normed(x, None, activates=False, front=2, side=1))  # type: ignore[no-any-return]
        return self.behind(x[:, :, :1].expand(-1, -1, self.past, -1, -1), x, first=True)

    def behind(self, past: Tensor, x: Tensor, *, first: bool) -> Tensor:
        """A piece of a clip.

        Args:
            past: The frames before it; at the beginning its first, repeated.
            x: The piece.
            first: Whether it begins the clip.
        """
        x = torch.cat((past, x), dim=2)
        layer: nn.Conv3d = self.conv.conv
        if pays(x, layer):
            return self._doubled(F.pad(x, (1, 1, 1, 1, 0, 0), mode=self.conv.pad_mode), first=first)
        alone = int(self.upsample_factor[0]) - 1 if first else 0
        x = F.interpolate(x.contiguous(), scale_factor=self.upsample_factor, mode="nearest")[:, :, alone:]
        out: Tensor = layer(F.pad(x, (1, 1, 1, 1, 0, 0), mode=self.conv.pad_mode))
        return out

    def _doubled(self, padded: Tensor, *, first: bool) -> Tensor:
        factors = [int(factor) for factor in self.upsample_factor]
        space = [("kept", "doubled")[factor - 1] for factor in factors[1:]]
        axes: Any = (("kept", "past")[factors[0] - 1], *space)
        layer: nn.Conv3d = self.conv.conv
        made = convolve_doubled(padded, layer.weight, layer.bias, axes)
        return made[:, :, factors[0] - 1 if first else 0 :]


def _attend_to_the_past(layer: Any, x: Tensor) -> Tensor:
    _, _, T, H, W = x.shape
    tokens_BSD = x.permute(0, 2, 3, 4, 1).flatten(1, 3)
    normed = layer.group_norm(tokens_BSD.transpose(1, 2)).transpose(1, 2)
    q, k, v = (linear(normed).unflatten(-1, (layer.heads, -1)) for linear in (layer.to_q, layer.to_k, layer.to_v))
    ends = range(H * W, T * H * W + 1, H * W)
    frames = [attention(q[:, end - H * W : end], k[:, :end], v[:, :end]) for end in ends]
    mixed = layer.to_out[0](torch.cat(frames, dim=1).flatten(-2)) + tokens_BSD
    out: Tensor = mixed.unflatten(1, (T, H, W)).permute(0, 4, 1, 2, 3)
    return out


class HunyuanAutoencoder(nn.Module):
    """Encode and decode whole, or in the official tiles.

    ``spread``, if set, wraps the function that decodes one tile.
    The weights load with ``keymaps.HUNYUAN_VAE``; the network itself is ``net``.
    Quirk: Diffusers' own ``decode`` tiles in time by itself above 16 frames, which moves the result; its parts are
    called directly here.

    Args:
        params: Hyper-parameters.
        tiling: "none" codes the clip whole: exact, and the default. "official" lays the official tiles (see
            ``Tiling.official``); "auto" does so above ``WHOLE_VOXELS``, whatever the machine; a ``Tiling`` lays exactly
            these. Tiles are another function than the whole clip; their memory does not grow with its length.
        layered: Decode layer by layer (see ``layered.py``): the same function as without, whole or tile by tile, in a
            part of the memory and a little more time.
        allocate: For a layer's frames that are too large for the device.

    Raises:
        BackendError: Diffusers is not installed.
        RequestError: The tiling is unknown.
    """

    offload_blocks: ClassVar[tuple[str, ...]] = ()  # layered decoding runs parts of blocks

    def __init__(
        self,
        params: HunyuanParams | None = None,
        *,
        tiling: Tilings | Tiling = "none",
        layered: bool = False,
        allocate: Allocate = on_host,
    ) -> None:
        super().__init__()
        if not isinstance(tiling, Tiling) and tiling not in get_args(Tilings):
            raise RequestError(f"unknown tiling `{tiling}`: use {', '.join(f'`{t}`' for t in get_args(Tilings))}")
        with needs("diffusers", "the HunyuanVideo autoencoder"):
            from diffusers import AutoencoderKLHunyuanVideo
        self.params = params or HunyuanParams()
        self.tiling = tiling
        self.layered = layered
        self.allocate = allocate
        self.spread: Spread | None = None
        temporal = self.params.temporal_compression_ratio
        built = {**dataclasses.asdict(self.params), "temporal_compression_ratio": min(temporal, DIFFUSERS_TEMPORAL)}
        net: Any = AutoencoderKLHunyuanVideo(**built)
        if temporal > DIFFUSERS_TEMPORAL:
            _compress_further(net, temporal)
        for coder in (net.encoder, net.decoder):
            coder.mid_block = CausalMidBlock(coder.mid_block)
        for block in (*net.encoder.down_blocks, *net.decoder.up_blocks, net.encoder.mid_block, net.decoder.mid_block):
            block.resnets = nn.ModuleList(map(ResidualBlock, block.resnets))
        for block in net.decoder.up_blocks:
            if block.upsamplers is not None:
                block.upsamplers = nn.ModuleList(map(EnlargingConv, block.upsamplers))
        convolution.use(net)
        self.net = net

    def begin_as(self, config: Mapping[str, Any], read: Callable[[nn.Module], None]) -> None:
        """Begin as a network of a lower ratio; see ``progressive.py``.

        Args:
            config: Its hyper-parameters under Diffusers' names.
            read: Reads its weights into it.

        Raises:
            RequestError: This network cannot begin as that one.
        """
        params = HunyuanParams.from_dict(config)
        check_grows(self.params, params)
        lower = HunyuanAutoencoder(params)
        read(lower)
        self.net.load_state_dict(grown(self.net.state_dict(), lower.net.state_dict(), self.params))

    def encode(self, video_BTHWC: Tensor) -> Tensor:
        """Pixels → scaled latents (the posterior's mode). T must be 1 + a multiple of 4, H and W multiples of 8."""
        return self.posterior(video_BTHWC)[0] * self.params.scaling_factor

    def posterior(self, video_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and clamped log-variance of the latents, channels last, without the scaling factor."""
        x = _channels_first(video_BTHWC)
        moments = torch.cat(list(self._run(self._moments, x, "encode")), dim=TIME)
        mean, logvar = moments.chunk(2, dim=1)
        # clamped after blending, as the official tiling does
        return _channels_last(mean), _channels_last(logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latents_BTHWC: Tensor) -> Tensor:
        """Scaled latents → pixels."""
        return torch.cat(list(self.decode_pieces(latents_BTHWC)), dim=1)

    def decode_pieces(self, latents_BTHWC: Tensor) -> Iterator[Tensor]:
        """Scaled latents → pixels, piece by piece in time; in one piece if the clip is decoded as a whole."""
        z = _channels_first(latents_BTHWC / self.params.scaling_factor)
        yield from map(_channels_last, self._run(self._pixels, z, "decode"))

    def _run(self, coder: Coder, x: Tensor, direction: Literal["encode", "decode"]) -> Iterator[Tensor]:
        x = x.to(self._dtype)
        temporal, spatial = self.params.temporal_compression_ratio, self.params.spatial_compression_ratio
        grow_t, grow_s = (temporal, spatial) if direction == "decode" else (1, 1)
        height, width = x.shape[3] * grow_s, x.shape[4] * grow_s
        voxels = ((x.shape[2] - 1) * grow_t + 1) * height * width
        if self.spread is not None and direction == "decode":
            coder = self.spread(coder, temporal, spatial)
        # the one image of a clip made from it is never cut, in the official code either
        is_image = direction == "encode" and x.shape[2] == 1 and self.tiling == "official"
        if self.tiling == "none" or is_image or (self.tiling == "auto" and voxels <= WHOLE_VOXELS):
            if self.layered and direction == "decode":
                yield from decode_layered(self.net, x, self.allocate)
            else:
                yield coder(x)
            return
        tiling = self.tiling if isinstance(self.tiling, Tiling) else Tiling.official(height, width)
        yield from tiled(coder, x, tiling, direction=direction, temporal=temporal, spatial=spatial)

    def encode_piece(self, video_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Mean and clamped log-variance of the latents of a piece of a clip, unscaled; see ``carried.run_piece``.

        Returns:
            Both, and what the next piece is given as ``memory``.
        """
        moments, memory = run_piece(self.net, self._moments, _channels_first(video_BTHWC), memory)
        mean, logvar = moments.chunk(2, dim=1)
        return _channels_last(mean), _channels_last(logvar.clamp(*LOGVAR_RANGE)), memory

    def decode_piece(self, latents_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """Pixels of a piece of unscaled latents, and what the next piece is given as ``memory``."""
        whole: Callable[[Tensor], Tensor] = lambda z: self.net.decoder(self.net.post_quant_conv(z))  # noqa: E731
        pixels, memory = run_piece(self.net, whole, _channels_first(latents_BTHWC), memory)
        return _channels_last(pixels), memory

    def decode_more(self, latents_BTHWC: Tensor, carried: Any = None) -> tuple[Tensor, Any]:
        """As ``model/autoencoder.CarryingAutoencoder``: another function than decoding whole, see ``carried``."""
        return self.decode_piece((latents_BTHWC / self.params.scaling_factor).to(self._dtype), carried)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.net.parameters()).dtype
        return dtype

    def _moments(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.quant_conv(self.net.encoder(x))
        return out

    def _pixels(self, z: Tensor) -> Tensor:
        if self.layered:
            return torch.cat(list(decode_layered(self.net, z, self.allocate)), dim=TIME)
        out: Tensor = self.net.decoder(self.net.post_quant_conv(z))
        return out


def _compress_further(net: Any, temporal: int) -> None:
    """Let as many of the outer levels as the ratio needs halve the frames too, and the decoder's double them.

    Raises:
        RequestError: The ratio is no power of two, or the network has too few levels.
    """
    halvings = temporal.bit_length() - 1
    down = [block.downsamplers[0].conv.conv for block in net.encoder.down_blocks if block.downsamplers is not None]
    up = [block.upsamplers[0] for block in net.decoder.up_blocks if block.upsamplers is not None]
    if 2**halvings != temporal or halvings > len(down):
        raise RequestError(f"temporal_compression_ratio {temporal} needs a power of two and as many halvings of space")
    for number, layer in enumerate(down):
        layer.stride = (2 if number < halvings else 1, *layer.stride[1:])
    for number, layer in enumerate(reversed(up)):
        layer.upsample_factor = (2 if number < halvings else 1, *layer.upsample_factor[1:])


def _channels_first(x_BTHWC: Tensor) -> Tensor:
    return x_BTHWC.permute(0, 4, 1, 2, 3)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1)
