"""Heads of a discriminator that looks through the U-Net, as drawn for Kandinsky 3.1 Flash.

One behind each level of the way down. Legend: as in ``layers.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.parts.unet.layers import Attention, ConditionalNorm, Told
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.families.parts.unet.unet import UNet


class Norm(nn.GroupNorm):
    """Group normalisation whose weights follow by themselves.

    PyTorch's own, on CPU with channels last, ends the process in its backward pass where the input, such as a feature
    of a frozen network, needs no gradient (2.13).
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        normed = F.group_norm(x_NCHW, self.num_groups, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], normed, self.weight[:, None, None])


class Head(nn.Module):
    """A 1×1 convolution, a residual 3×3 convolution and residual attention to the text, then a logit of each place.

    Source: ai-forever/Kandinsky-3, drawing of the distillation of Kandinsky 3.1 Flash.
    """

    def __init__(self, channels: int, params: UNetParams) -> None:
        super().__init__()
        groups, told = params.groups, params.time_embed_dim
        self.in_layer = nn.Sequential(Norm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 1))
        self.norm = ConditionalNorm(groups, channels, told)
        self.projection = nn.Conv2d(channels, channels, 3, padding=1)
        self.text_norm = ConditionalNorm(groups, channels, told)
        self.attention = Attention(channels, params.context_dim, channels, params.head_dim)
        self.out_layer = nn.Sequential(Norm(groups, channels), nn.SiLU(), nn.Conv2d(channels, 1, 1))

    def forward(self, x_RHWC: Tensor, _before_RHWC: Tensor, told: Told) -> Tensor:
        """What a level gave and what it was given, see ``unet.Level``. Returns [R, H, W, 1]."""
        x = self.in_layer(x_RHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        wide = F.silu(self.norm(x, told.spatial)).permute(0, 3, 1, 2)
        x = x + self.projection(wide).permute(0, 2, 3, 1)
        tokens = self.text_norm(x, told.spatial).reshape(len(told.context_BLC), -1, x.shape[-1])
        x = x + self.attention(tokens, told.context_BLC, told.mask_BL).expand_as(tokens).reshape(x.shape)
        out: Tensor = self.out_layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


def heads(network: nn.Module) -> dict[str, nn.Module]:
    """A head behind each level of the way down; see ``model/family.Heads``."""
    assert isinstance(network, UNet)
    widths = network.params.widths[1:]
    return {f"down_samples.{number}": Head(width, network.params) for number, width in enumerate(widths)}
