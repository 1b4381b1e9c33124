"""The second Nano's network: the Kandinsky 5 transformer, and beside it a small head that sees a few places.

The transformer's tokens are 2 × 2 places of 192 channels in a width of 256, so it cannot say everything of a place.
What is left is local: the guess of the clean latent there and in the eight places around it, and where in its subject
that is. A head of three layers turns these into what the transformer adds to.

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
from kandinsky.families.nano.cost import AROUND, LOCAL_TOLD, LOCAL_WIDTH, local_features
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.params import LinearPatchParams
from kandinsky.families.nano.portraits import GRID, PortraitDecoder
from kandinsky.families.nano.scenes import MOST_SUBJECTS
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.linear import Linear

TIMES = 8  # waves of the time


class LocalHead(nn.Module):
    """Of each place and the eight around it: latent, condition channels, prompt and time to a correction.

    Its last layer starts at zero.
    """

    def __init__(self, params: DiTParams) -> None:
        super().__init__()
        self.channels = params.in_visual_dim
        self.told = Linear(params.in_text_dim2, LOCAL_TOLD - TIMES)
        self.in_layer = Linear(local_features(params), LOCAL_WIDTH)
        self.inner = Linear(LOCAL_WIDTH, LOCAL_WIDTH)
        self.out_layer = Linear(LOCAL_WIDTH, params.out_visual_dim, bias=False)
        nn.init.zeros_(self.out_layer.weight)

    def forward(self, x_BTHWC: Tensor, pooled_BC: Tensor, time_B: Tensor) -> Tensor:
        """The correction; ``x_BTHWC`` with its condition channels, time in [0, 1]."""
        waves = time_B.float()[:, None] * (math.pi * torch.arange(TIMES // 2, device=time_B.device))
        words = self.told(pooled_BC.to(self.told.weight.dtype))
        told = torch.cat([words, waves.sin().to(words), waves.cos().to(words)], dim=-1)
        B, T, H, W, _ = x_BTHWC.shape
        x_BTHWC = x_BTHWC.to(told.dtype)
        frames = F.pad(x_BTHWC[..., : self.channels], (0, 0, 1, 1, 1, 1))
        around = [frames[:, :, y : y + H, x : x + W] for y in range(AROUND) for x in range(AROUND)]
        places = told[:, None, None, None].expand(B, T, H, W, -1)
        x = F.silu(self.in_layer(torch.cat([*around, x_BTHWC[..., self.channels :], places], dim=-1)))
        out: Tensor = self.out_layer(F.silu(self.inner(x)))
        return out


class SceneTransformer(DiffusionTransformer3D):
    """Predicts what a guess of the clean latent lacks.

    It holds what drafts are made with (``draft.py``): the decoder of portraits and the linear encoder, which is the
    autoencoder's own.
    """

    def __init__(self, params: DiTParams) -> None:
        super().__init__(params)
        nn.init.zeros_(self.out_layer.out_layer.weight)
        if self.out_layer.out_layer.bias is not None:
            nn.init.zeros_(self.out_layer.out_layer.bias)
        self.local = LocalHead(params)
        self.where = nn.Parameter(torch.empty(MOST_SUBJECTS * GRID**2, params.in_text_dim))
        nn.init.normal_(self.where, std=0.1)
        self.portraits = PortraitDecoder(params.in_text_dim)
        self.linear = LinearPatches(LinearPatchParams(latent_channels=params.in_visual_dim))

    def forward(self, x_BTHWC: Tensor, time: Tensor, text: TextEmbeddings, **ways: Any) -> Tensor:
        """As ``DiffusionTransformer3D.forward``, of whole clips; the latent is the guess."""
        tokens = text.tokens_BLC
        where = F.pad(self.where, (0, 0, 0, tokens.shape[1] - len(self.where))).to(tokens)
        text = TextEmbeddings(tokens + where, text.pooled_BC, text.mask_BL)
        seen: Tensor = super().forward(x_BTHWC, time, text, **ways)
        local: Tensor = self.local(x_BTHWC, text.pooled_BC.expand(len(x_BTHWC), -1), time / 1000)
        return seen + local
