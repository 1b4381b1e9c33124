"""The video-to-audio U-Net: Stable Diffusion 1's over spectrogram images, with a clip's frames in every self attention.

Text and frames are the same at every step, so what the layers compute from them is computed once a run, see
``Conditions``.

Source: ai-forever/Kandinsky-4@7506103, kandinsky4_video2audio/model/unet.py and attention_processors.py; Diffusers,
UNet2DConditionModel.
Legend: see ``layers.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.kandinsky4_v2a.layers import (
    Conditions,
    Downsample,
    ResNet,
    TimeEmbedding,
    Transformer,
    Upsample,
    sinusoid,
)
from kandinsky.families.kandinsky4_v2a.params import CROSS_DOWN, CROSS_UP, V2AParams

TIME_RATIO = 4


class DownLevel(nn.Module):
    """Residual layers, each followed by a transformer if the level has them; then half the size."""

    def __init__(self, channels: int, out: int, params: V2AParams, time: int, *, attends: bool, last: bool) -> None:
        super().__init__()
        widths = [channels, *[out] * (params.layers_per_block - 1)]
        self.resnets = nn.ModuleList([ResNet(width, out, time, params) for width in widths])
        self.attentions = nn.ModuleList([Transformer(out, params) for _ in widths] if attends else [])
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out, params.downsample_padding)])

    def forward(self, x_BCHW: Tensor, time_BD: Tensor, conditions: Conditions) -> list[Tensor]:
        """Returns every state that the way up uses again, in order."""
        x, kept = x_BCHW, []
        for number, resnet in enumerate(self.resnets):
            x = resnet(x, time_BD)
            if self.attentions:
                x = self.attentions[number](x, conditions)
            kept.append(x)
        for layer in self.downsamplers:
            kept.append(layer(x))
        return kept


class MiddleLevel(nn.Module):
    def __init__(self, channels: int, params: V2AParams, time: int) -> None:
        super().__init__()
        scale = params.mid_block_scale_factor
        self.resnets = nn.ModuleList([ResNet(channels, channels, time, params, scale) for _ in range(2)])
        self.attentions = nn.ModuleList([Transformer(channels, params)])

    def forward(self, x_BCHW: Tensor, time_BD: Tensor, conditions: Conditions) -> Tensor:
        x = self.attentions[0](self.resnets[0](x_BCHW, time_BD), conditions)
        out: Tensor = self.resnets[1](x, time_BD)
        return out


class UpLevel(nn.Module):
    """As on the way down, with one more layer; each uses a state from there. Then the size of the level above.

    Args:
        skips: Channels of the states it uses, in order.
    """

    def __init__(
        self, channels: int, skips: list[int], out: int, params: V2AParams, time: int, *, attends: bool, last: bool
    ) -> None:
        super().__init__()
        before = [channels, *[out] * (len(skips) - 1)]
        pairs = zip(before, skips, strict=True)
        self.resnets = nn.ModuleList([ResNet(width + skip, out, time, params) for width, skip in pairs])
        self.attentions = nn.ModuleList([Transformer(out, params) for _ in skips] if attends else [])
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out)])

    def forward(self, x_BCHW: Tensor, kept: list[Tensor], time_BD: Tensor, conditions: Conditions) -> Tensor:
        """``kept``: states of the way down; those taken are removed from its end."""
        x = x_BCHW
        for number, resnet in enumerate(self.resnets):
            x = resnet(torch.cat((x, kept.pop()), dim=1), time_BD)
            if self.attentions:
                x = self.attentions[number](x, conditions)
        for layer in self.upsamplers:
            x = layer(x, kept[-1].shape[2:])
        return x


class V2AUNet(nn.Module):
    """Predicts the noise in a latent spectrogram, given its level and embeddings of text and frames."""

    # the middle runs once; its two lists would be moved for nothing
    offload_blocks = ("down_blocks", "up_blocks")

    def __init__(self, params: V2AParams | None = None) -> None:
        super().__init__()
        self.params = params = params or V2AParams()
        widths, last = params.block_out_channels, len(params.block_out_channels) - 1
        time = TIME_RATIO * widths[0]
        self.conv_in = nn.Conv2d(params.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], time)
        self.down_blocks = nn.ModuleList(
            DownLevel(widths[max(i - 1, 0)], width, params, time, attends=kind == CROSS_DOWN, last=i == last)
            for i, (width, kind) in enumerate(zip(widths, params.down_block_types, strict=True))
        )
        self.mid_block = MiddleLevel(widths[-1], params, time)
        # the channels of every state that is kept on the way down, in order
        kept = [widths[0]]
        for i, width in enumerate(widths):
            kept += [width] * (params.layers_per_block + (i < last))
        self.up_blocks = nn.ModuleList()
        before = widths[-1]
        for i, (width, kind) in enumerate(zip(reversed(widths), params.up_block_types, strict=True)):
            skips = [kept.pop() for _ in range(params.layers_per_block + 1)]
            attends = kind == CROSS_UP
            self.up_blocks.append(UpLevel(before, skips, width, params, time, attends=attends, last=i == last))
            before = width
        self.conv_norm_out = nn.GroupNorm(params.norm_num_groups, widths[0], params.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], params.out_channels, 3, padding=1)

    def forward(self, x_BHWC: Tensor, level_B: Tensor, conditions: Conditions) -> Tensor:
        """The noise in a latent image.

        Args:
            x_BHWC: State; H and W are free, also odd.
            level_B: 0 … 999, 999 = noise.
            conditions: Of this run.

        Returns:
            [B, H, W, C] in the type of the weights.
        """
        params = self.params
        x = x_BHWC.to(self.conv_in.weight.dtype).permute(0, 3, 1, 2)
        if params.center_input_sample:
            x = 2 * x - 1
        waves = sinusoid(
            level_B, params.block_out_channels[0], shift=params.freq_shift, cos_first=params.flip_sin_to_cos
        )
        time = self.time_embedding(waves)
        x = self.conv_in(x)
        kept = [x]
        for level in self.down_blocks:
            kept += level(kept[-1], time, conditions)
        x = self.mid_block(kept[-1], time, conditions)
        for level in self.up_blocks:
            x = level(x, kept, time, conditions)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        out: Tensor = x.permute(0, 2, 3, 1)
        return out
