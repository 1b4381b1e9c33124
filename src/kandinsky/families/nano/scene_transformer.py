"""The second Nano's network: the Kandinsky 5 transformer, and beside it a small head that sees one latent place.

The transformer's tokens are 2 × 2 places of 192 channels in a width of 384, so it cannot say everything of a place.
What is left is local: the noisy latent, what the subject's portrait holds for that place, and where that is. A head of
three layers turns these into what the transformer adds to.

Legend: B batch; T H W C latent frames, rows, columns, channels; D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.nano.cost import LOCAL_FEATURES, LOCAL_WIDTH
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.linear import Linear

TIMES = 8  # waves of the time


class LocalHead(nn.Module):
    """Of each place by itself: latent, condition channels, prompt and time to an estimate of the clean latent.

    Its last layer starts at zero.
    """

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.told = Linear(params.in_text_dim2, LOCAL_FEATURES - TIMES - params.input_channels)
        self.in_layer = Linear(LOCAL_FEATURES, LOCAL_WIDTH)
        self.inner = Linear(LOCAL_WIDTH, LOCAL_WIDTH)
        self.out_layer = Linear(LOCAL_WIDTH, params.out_visual_dim, bias=False)
        nn.init.zeros_(self.out_layer.weight)

    def forward(self, x_BTHWC: Tensor, pooled_BC: Tensor, time_B: Tensor) -> Tensor:
        """The estimate; ``x_BTHWC`` with its condition channels, time in [0, 1]."""
        waves = time_B.float()[:, None] * (math.pi * torch.arange(TIMES // 2, device=time_B.device))
        words = self.told(pooled_BC.to(self.told.weight.dtype))
        told = torch.cat([words, waves.sin().to(words), waves.cos().to(words)], dim=-1)
        B, T, H, W, _ = x_BTHWC.shape
        x = torch.cat([x_BTHWC, told.to(x_BTHWC)[:, None, None, None].expand(B, T, H, W, -1)], dim=-1)
        x = F.silu(self.in_layer(x.to(self.in_layer.weight.dtype)))
        out: Tensor = self.out_layer(F.silu(self.inner(x)))
        return out


def wiener(x_BTHWC: Tensor, time_B: Tensor, channels: int) -> Tensor:
    """The noisy latent scaled to the best linear guess of a clean one of variance 1; known frames stay as they are.

    With x = (1 - t) * clean + t * noise that is x * (1 - t) / ((1 - t)^2 + t^2): at t = 1 nothing is left of the noise,
    which a network would otherwise have to learn to overlook where what it is told is all there is.

    Args:
        channels: Of the latent; condition channels follow, the last of which marks known frames.
    """
    kept = ((1 - time_B) / ((1 - time_B) ** 2 + time_B**2)).to(x_BTHWC).view(-1, 1, 1, 1, 1)
    scale = torch.lerp(kept, torch.ones_like(kept), x_BTHWC[..., -1:])
    return torch.cat([x_BTHWC[..., :channels] * scale, x_BTHWC[..., channels:]], dim=-1)


class SceneTransformer(DiffusionTransformer3D):
    """Predicts the clean latent."""

    def __init__(self, params: DiTParams) -> None:
        super().__init__(params)
        self.local = LocalHead(params)

    def forward(self, x_BTHWC: Tensor, time: Tensor, text: TextEmbeddings, **ways: Any) -> Tensor:
        """As ``DiffusionTransformer3D.forward``, of whole clips."""
        x_BTHWC = wiener(x_BTHWC, time / 1000, self.params.in_visual_dim)
        seen: Tensor = super().forward(x_BTHWC, time, text, **ways)
        local: Tensor = self.local(x_BTHWC, text.pooled_BC.expand(len(x_BTHWC), -1), time / 1000)
        return seen + local
